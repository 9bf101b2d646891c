"""Counted costs against costs worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.recipes.networks import _NETWORKS
from trunk_jax import nodes
from trunk_jax.layers.basic import BatchNorm, Conv, Linear, MaxPool, Relu6
from trunk_jax.measure.costs import network_costs
from trunk_jax.measure.program import Work, peak_bytes, work
from trunk_jax.network.network import apply, cost, split

RNG = np.random.default_rng(0)


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("layer", "x", "multiply_adds", "others"),
    [
        # 5 x 7 map, 3 x 3 windows over 4 channels, 6 kernels; a bias on each value
        (Conv(4, 6, 3, padding=1, rng=RNG), (1, 5, 7, 4), 5 * 7 * 6 * 9 * 4, 5 * 7 * 6),
        # stride 2: 3 x 4 windows
        (Conv(4, 6, 3, stride=2, padding=1, bias=False, rng=RNG), (1, 5, 7, 4), 12 * 6 * 36, 0),
        # 1 x 1 with padding 1 is a product of the inner map alone: the frame is zeros
        (Conv(4, 6, 1, bias=False, rng=RNG), (1, 5, 7, 4), 35 * 4 * 6, 0),
        # depthwise: one channel a kernel
        (Conv(8, 8, 3, padding=1, groups=8, bias=False, rng=RNG), (1, 5, 7, 8), 35 * 8 * 9, 0),
        (Linear(10, 3, rng=RNG), (1, 10), 30, 3),
        # subtract, multiply, add on each value; variance + eps, root, times scale a channel
        (BatchNorm(6), (1, 5, 7, 6), 0, 3 * 35 * 6 + 3 * 6),
        (Relu6(), (1, 5, 7, 6), 0, 2 * 35 * 6),
        (MaxPool(), (1, 5, 7, 6), 0, 3 * (2 * 3 * 6)),
    ],
)
def test_layers_by_hand(layer, x, multiply_adds, others):
    assert work(layer, shape(*x)) == Work(multiply_adds, others)


def test_a_whole_node_by_hand():
    """digits vgg root: c16 c32 M D on 8 x 8 x 1, then 512 -> 6."""
    network = split(nodes.build("digits", "vgg", "root", (8, 8, 1), 6, rng=RNG))
    found = network_costs(network, (8, 8, 1))
    first, second = 64 * 9 * 16, 64 * 9 * 16 * 32
    # bias, batch norm, ReLU: 5 on each value; 3 a channel of batch norm
    others = 5 * 64 * (16 + 32) + 3 * (16 + 32) + 3 * 16 * 32 + 6
    assert found["multiply_adds"] == first + second + 512 * 6
    assert found["flops"] == 2 * (first + second + 512 * 6) + others
    # two maps of 8 x 8 x 32 in float32: batch norm's input and its result
    assert found["peak_activation_bytes"] == 2 * 64 * 32 * 4
    parameters = (9 + 3) * 16 + (9 * 16 + 3) * 32 + 513 * 6
    assert found["parameters"] == parameters
    # running mean and variance of each channel, and two counters of four bytes
    assert found["weight_bytes"] == 4 * (parameters + 2 * 48) + 2 * 4


@pytest.mark.parametrize(("dataset", "backbone"), _NETWORKS)
@pytest.mark.parametrize("faults", [(), ("pointwise_padding",)])
def test_two_ways_of_counting_multiply_adds_agree(dataset, backbone, faults):
    """From the operations here, from the layers there; every kind of node."""
    shapes = {"digits": (8, 8, 1), "emnist": (28, 28, 1)}
    for name, given in (("root", shapes.get(dataset, (32, 32, 3))), ("sg2", (8, 8, 32))):
        network = split(nodes.build(dataset, backbone, name, given, 5, faults=faults, rng=RNG))
        layers = cost(network, given)["multiply_adds"]
        operations = work(lambda n, x: apply(n, x)[0], network, shape(1, *given)).multiply_adds
        if faults and backbone == "mobilenet":  # the frame of zeros is never multiplied
            assert layers / 3 < operations < layers
        else:
            assert operations == layers


def test_memory_of_a_shortcut():
    """The input of a block is kept until it is added."""
    x = shape(100)
    assert peak_bytes(lambda w, x: x * 2 * 3 * 4, (), x) == 800
    assert peak_bytes(lambda w, x: x * 2 * 3 * 4 + x, (), x) == 1200
    # a weight and what follows from weights alone are no activations; neither is a view
    assert peak_bytes(lambda w, x: (x.reshape(10, 10) * (w + 1)).reshape(-1), shape(10), x) == 800


def test_unread_results_go_at_once():
    def wasteful(w, x):
        jnp.sin(x)
        return x * 2

    assert peak_bytes(wasteful, (), shape(100)) == 800
