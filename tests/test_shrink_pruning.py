"""Structured pruning: which channels, what follows them, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from data.base.errors import UserError
from data.recipes.baselines import pruning
from data.recipes.baselines.architectures import ARCHITECTURES, Vgg
from trunk_jax import baselines
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import apply, cost, split
from trunk_torch_ref import baselines as torch_baselines
from trunk_torch_ref.network.exchange import from_state_dict as torch_from_state_dict

PLAIN = Vgg(stages=((6, 8), (10,)), pools=2, pool=2, hidden=(12,))
NORMED = Vgg(stages=((6, 8), (10,)), pools=1, pool=1, hidden=(), batch_norm=True)


def weights_of(spec, seed=0):
    network = split(baselines.build(spec, 3, 5, rng=np.random.default_rng(seed)))
    rng = np.random.default_rng(seed + 1)
    return {
        key: np.abs(rng.normal(1, 0.2, value.shape)).astype(np.float32)
        if value.ndim == 1
        else value
        for key, value in to_state_dict(network).items()
    }


@pytest.mark.parametrize("spec", [PLAIN, NORMED], ids=["plain", "batch norm"])
@pytest.mark.parametrize("image", [8, 16])
def test_the_count_is_the_networks(spec, image):
    network = jax.eval_shape(lambda: split(baselines.build(spec, 3, 10)))
    found = cost(network, (image, image, 3))["multiply_adds"]
    assert found == pruning.multiply_adds(spec, image)


@pytest.mark.parametrize("speed_up", [1, 1.5, 2, 4])
def test_the_narrow_network_is_the_widest_that_is_cheap_enough(speed_up):
    spec = ARCHITECTURES["vgg16"]
    narrow = pruning.narrowed(spec, speed_up, 224)
    most = pruning.multiply_adds(spec, 224) / speed_up
    assert 0.97 * most < pruning.multiply_adds(narrow, 224) <= most
    shares = [
        n / w
        for a, b in zip(narrow.stages, spec.stages, strict=True)
        for n, w in zip(a, b, strict=True)
    ]
    assert max(shares) - min(shares) < 1 / 64, "the same share of every layer"
    assert (narrow == spec) == (speed_up == 1)


def test_the_releases_network_is_halved():
    """399 to 200 million at 32x32 (docs/trunk.md; a million each is batch norm's)."""
    spec = ARCHITECTURES["vgg16_bn_small"]
    narrow = pruning.narrowed(spec, 2, 32)
    assert 196e6 < pruning.multiply_adds(narrow, 32) < 200e6


@pytest.mark.parametrize("spec", [PLAIN, NORMED], ids=["plain", "batch norm"])
def test_removing_silent_channels_changes_no_score(spec):
    """Channels of L1 0, whose outputs are 0, are those that go; both frameworks agree."""
    weights = weights_of(spec)
    narrow = pruning.narrowed(spec, 2, 16)
    silent = np.random.default_rng(5)
    place = 0
    for stage, (widths, fewer) in enumerate(zip(spec.stages, narrow.stages, strict=True)):
        for width, count in zip(widths, fewer, strict=True):
            gone = silent.permutation(width)[count:]
            weights[f"features.{place}.weight"][gone] = 0
            weights[f"features.{place}.bias"][gone] = 0
            if spec.batch_norm:
                for leaf in ("bias", "running_mean"):
                    weights[f"features.{place + 1}.{leaf}"][gone] = 0
            place += 3 if spec.batch_norm else 2
        place += stage < spec.pools
    pruned = pruning.prune(weights, spec, narrow)
    x = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)
    image = jnp.asarray(x.transpose(0, 2, 3, 1))
    whole = from_state_dict(split(baselines.build(spec, 3, 5)), weights)
    less = from_state_dict(split(baselines.build(narrow, 3, 5)), pruned)
    expected = np.asarray(apply(whole, image)[0][1])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(apply(less, image)[0][1], expected, rtol=0, atol=1e-5)
    module = torch_from_state_dict(torch_baselines.build(narrow, 3, 5), pruned).eval()
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.tensor(x))[1], expected, rtol=0, atol=1e-5)


def test_the_strongest_channels_stay_in_their_order():
    spec = Vgg(stages=((4,),), pools=0, pool=1, hidden=())
    narrow = Vgg(stages=((2,),), pools=0, pool=1, hidden=())
    weights = weights_of(spec)
    for channel, size in enumerate((1.0, 0.2, -3.0, 0.1)):
        weights["features.0.weight"][channel] = size
    pruned = pruning.prune(weights, spec, narrow)
    assert pruned["features.0.weight"][:, 0, 0, 0].tolist() == [1.0, -3.0]
    expected = weights["classifier.0.weight"][:, [0, 2]]
    np.testing.assert_array_equal(pruned["classifier.0.weight"], expected)


@pytest.mark.parametrize("speed_up", [0.5, float("nan"), float("inf"), 1e9])
def test_a_senseless_speed_up_is_one_line(speed_up):
    with pytest.raises(UserError, match="--speed-up"):
        pruning.narrowed(PLAIN, speed_up, 16)
