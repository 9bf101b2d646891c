"""Inputs that are computed once: the same training, and what happens when memory is short."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_training_fit import COUNT, RECIPE, SHORT, node, run, source

from data.images.augmentation import Augmentation
from trunk_jax.machine import memory
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import features
from trunk_jax.training import feature_cache, fit

ABOVE = node()
MINE = (1, 3)
PLAIN = Augmentation()


def kept(policy=PLAIN, passes=2, told=None, above=(ABOVE,)):
    train = source(COUNT, above=above, keep=MINE)
    program = fit.program_of(RECIPE, SHORT, ABOVE)
    lines = [] if told is None else told
    return feature_cache.cached_source(
        program, train, policy, passes, lambda note: lines.append(note)
    )


def test_kept_inputs_are_the_features_of_the_nodes_own_images():
    found, plain = kept(), source(COUNT, keep=MINE)
    mine = np.flatnonzero(np.asarray(plain.targets) >= 0)
    assert found.above == ()
    images = jnp.asarray(plain.images[mine], jnp.float32) / 255
    # one rounding of a program of another shape
    np.testing.assert_allclose(
        found.cached[found.cached_rows[mine]], features(ABOVE, images), rtol=1e-6, atol=1e-6
    )


def test_training_on_kept_inputs_is_training_on_images():
    plain = source(COUNT, above=(ABOVE,), keep=MINE)
    shape = kept().cached.shape[1:]
    # Not Adam: its step is of the size of the rate whatever the gradient, so that on some
    # processors the rounding of a gradient near 0 is all that one sees.
    phase = dataclasses.replace(SHORT, optimizer="sgd")
    one, rows, _ = run(node(shape, 2), train=plain, check=plain, phase=phase)
    other, others, _ = run(node(shape, 2), train=kept(), check=kept(), phase=phase)
    assert [row["train_accuracy"] for row in rows] == [row["train_accuracy"] for row in others]
    one, other = to_state_dict(one.network), to_state_dict(other.network)
    for key in one:
        # 12 steps: of weights of 0.1 a rounding of 1e-7 in each, and as much again from the inputs
        np.testing.assert_allclose(one[key], other[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [{"policy": Augmentation(flip=True)}, {"passes": 1}, {"above": ()}],
    ids=["augmented", "used once", "a root"],
)
def test_inputs_that_vary_or_are_used_once_are_not_kept(case):
    assert kept(**case).cached is None


def test_short_memory_is_said_and_training_goes_on(monkeypatch):
    needed = 128 * 4 * 4 * 32 * 4
    told = []
    monkeypatch.setattr(memory, "available", lambda: needed / feature_cache.SHARE)
    assert kept(told=told).cached is not None
    assert not told
    monkeypatch.setattr(memory, "available", lambda: needed / feature_cache.SHARE - 1)
    found = kept(told=told)
    assert found.cached is None
    assert found.above == (ABOVE,)
    assert len(told) == 1
    assert "inputs not kept" in told[0]


def test_on_a_cpu_no_more_is_kept_however_much_is_free(monkeypatch):
    needed = 128 * 4 * 4 * 32 * 4
    told = []
    monkeypatch.setattr(memory, "available", lambda: 2**50)
    monkeypatch.setattr(feature_cache, "MOST", needed - 1)
    assert (kept(told=told).cached is None) == (feature_cache.jax.default_backend() == "cpu")
    assert "a CPU may use" in told[0]
