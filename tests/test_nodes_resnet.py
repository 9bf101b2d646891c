"""Residual nodes of our own, in both frameworks: shapes, costs, names, live shortcuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from data.images import specs
from data.recipes.networks import network
from trunk_jax import nodes
from trunk_jax.network import exchange
from trunk_jax.network.network import cost, feature_shape, split
from trunk_torch_ref import nodes as torch_nodes
from trunk_torch_ref.measure.costs import cost as torch_cost

DATASETS = ("cifar10", "svhn", "emnist", "digits")


def _build(dataset, backbone, name, shape, outputs):
    rng = np.random.default_rng(0)
    return split(nodes.build(dataset, backbone, name, shape, outputs, rng=rng))


def _by_hand(spec, shape, outputs):
    """Parameters and multiply-adds, counted from the definition."""
    height, width, channels = shape
    parameters = multiply_adds = 0

    def conv(k, i, o, stride):
        nonlocal parameters, multiply_adds, height, width
        height, width = -(-height // stride), -(-width // stride)
        parameters += k * k * i * o + 2 * o  # and batch norm's scale and shift
        multiply_adds += k * k * i * o * height * width

    if spec.stem:
        conv(3, channels, spec.stem, 1)
        channels = spec.stem
    for block in spec.blocks:
        conv(3, channels, block.out, block.stride)
        conv(3, block.out, block.out, 1)
        if block.stride != 1 or channels != block.out:
            conv(1, channels, block.out, 1)  # at the size that the stride has made already
        channels = block.out
    parameters += channels * outputs + outputs
    multiply_adds += channels * outputs
    return {"parameters": parameters, "multiply_adds": multiply_adds}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("backbone", ["resnet", "monolith"])
def test_costs(dataset, backbone):
    spec = specs.spec(dataset)
    shape, outputs = spec.image_shape, len(spec.class_names)
    root = _build(dataset, backbone, "root", shape, outputs)
    expected = _by_hand(network(dataset, backbone, "root"), shape, outputs)
    assert cost(root, shape) == expected
    height, width, channels = shape
    theirs = torch_nodes.build(dataset, backbone, "root", (channels, height, width), outputs)
    assert torch_cost(theirs, (channels, height, width)) == expected
    assert exchange.to_state_dict(root).keys() == theirs.state_dict().keys()


# Issue 5's budgets for the mean path; here for the longest, so that no tree exceeds them.
@pytest.mark.parametrize(
    ("dataset", "multiply_adds", "parameters"),
    [("cifar10", 41e6, 0.27e6), ("svhn", 40e6, 0.23e6), ("emnist", 40e6, 0.22e6)],
)
def test_a_path_of_two_nodes_is_within_the_budget(dataset, multiply_adds, parameters):
    spec = specs.spec(dataset)
    shape, outputs = spec.image_shape, len(spec.class_names)
    root = _build(dataset, "resnet", "root", shape, outputs)
    inner = feature_shape(root, shape)
    child = _build(dataset, "resnet", "sg1", inner, outputs)
    costs = cost(root, shape), cost(child, inner)
    assert sum(c["multiply_adds"] for c in costs) <= multiply_adds
    assert sum(c["parameters"] for c in costs) <= parameters


def test_shortcuts_are_live():
    """With the last scale of every residual at 0, a stride-1 block is the identity on ReLU's."""
    module = nodes.build("digits", "resnet", "sg1", (4, 4, 32), 3, rng=np.random.default_rng(0))
    for block in module.features:
        block.residual[4].scale[...] = jnp.zeros_like(block.residual[4].scale[...])
    x = jax.nn.relu(jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 32)), jnp.float32))
    assert np.array_equal(module.features(x), x)
    theirs = torch_nodes.build("digits", "resnet", "sg1", (32, 4, 4), 3).eval()
    for block in theirs.features:
        torch.nn.init.zeros_(block.residual[4].weight)
    image = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
    assert torch.equal(theirs.features(image), image)
