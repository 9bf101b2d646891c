"""Siblings trained together: the weights that each gets alone, and the tree that grows alone."""

import dataclasses
import itertools
from functools import partial

import jax
import numpy as np
import pytest
from test_training_fit import CHECKED, COUNT, RECIPE, SHORT, node, same, source

from data.base.errors import UserError
from data.training import growth
from trunk_jax.machine import memory
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.training import fit, siblings

# Two nodes of one shape, whose epochs have 3 steps and 2, and one of another shape.
SMALL = dataclasses.replace(RECIPE, batch_size=10)
NODES = {"sg1": (COUNT, (1, 3)), "sg2": (50, (0, 2)), "sg3": (COUNT, (0, 1, 2))}


def fitting(name, dtype="float32"):
    count, classes = NODES[name]
    network = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == np.float32 else leaf,
        node(outputs=len(classes)),
    )
    return fit.fitting(
        SMALL,
        SHORT,
        f"{name}/class",
        network,
        source(count, keep=classes),
        source(CHECKED, keep=classes),
        restore=lambda *_: None,
        save=lambda *_: None,
        report=lambda **_: None,
    )


def both(dtype="float32", told=None):
    """(results together, results one at a time) by node."""
    lines = [] if told is None else told
    together = siblings.fit_all(list(map(partial(fitting, dtype=dtype), NODES)), lines.append)
    alone = [siblings.fit_all([fitting(name, dtype)], lines.append)[0] for name in NODES]
    return dict(zip(NODES, zip(together, alone, strict=True), strict=True))


@pytest.mark.slow
def test_siblings_together_get_the_weights_that_each_gets_alone():
    with jax.enable_x64(True):
        found = both("float64")
    for together, alone in found.values():
        assert (together.epoch, together.accuracy) == (alone.epoch, alone.accuracy)
    one, other = (to_state_dict(result.network) for result in found["sg1"])
    assert one["features.1.num_batches_tracked"] == 3 * found["sg1"][0].epoch
    assert to_state_dict(found["sg2"][0].network)["features.1.num_batches_tracked"] in (2, 4)
    for name in ("sg1", "sg2"):
        one, other = (to_state_dict(result.network) for result in found[name])
        for key in one:
            # float64: the sums of 6 steps in another order, times Adam's 1 / sqrt(v) ~ 1e3
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-10)
    # no partner of its shape: the very same program
    assert same(*(result.network for result in found["sg3"]))


def test_memory_too_short_for_all_trains_them_one_by_one_and_says_so(monkeypatch):
    compiled = memory.compile_within

    def short(function, *arguments, **more):
        if function is siblings.train_steps:
            raise UserError("a training step needs 2.0 GB of memory and 1.0 GB are free")
        return compiled(function, *arguments, **more)

    monkeypatch.setattr(memory, "compile_within", short)
    notes = []
    pair = [fitting(name) for name in ("sg1", "sg2")]
    found = siblings.fit_all(pair, lambda note: notes.append(note))
    assert len(notes) == SHORT.epochs
    assert "one after the other" in notes[0]
    assert "1.0 GB are free" in notes[0]
    alone = siblings.fit_all([fitting("sg1")], notes.append)[0]
    assert same(found[0].network, alone.network)


@pytest.mark.parametrize("choice", ["together", "alone", "auto"])
def test_the_choice(choice):
    on_accelerator = jax.default_backend() != "cpu"
    assert siblings.wanted(choice) == {"together": True, "alone": False}.get(choice, on_accelerator)


def test_a_tree_grown_side_by_side_is_the_tree_grown_one_by_one():
    groups = {10: ((0, 6), (1, 4, 7), (2,), (3, 5, 8, 9)), 4: ((0, 1), (2, 3)), 3: ((0, 2), (1,))}
    ahead, trained = [], []

    def grow(**more):
        return growth.grow(
            10,
            fit=lambda tree, node, phase: trained.append((tree.names[node], phase)),
            likelihood=lambda tree, node: None,
            decide=lambda tree, node, take: groups.get(len(tree.members(node)), ((0, 1),)),
            finish=lambda tree, node: None,
            **more,
        )

    plain = grow()
    serial, trained[:] = list(trained), []
    tree = grow(fit_siblings=lambda stages: ahead.append([str(stage) for stage in stages]))
    assert tree == plain
    # each stage is asked for ahead of its turn, once, and none is left out
    assert sorted(f"{name}/{phase}" for name, phase in serial) == sorted(itertools.chain(*ahead))
    assert sorted(trained) == sorted(serial)
    assert [len(stages) for stages in ahead] == [1, 1, 3, 2, 1, 2]
