"""Inference in pieces: their size, and that they are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from trunk_jax import nodes
from trunk_jax.inference import microbatched as inference
from trunk_jax.inference.microbatched import images_at_once, in_microbatches, infer
from trunk_jax.network.network import apply, split


def root(dataset, backbone, shape):
    """An untrained root, with statistics that are not those of the data."""
    faults = ("pointwise_padding",) if backbone == "mobilenet" else ()
    rng = np.random.default_rng(0)
    return split(nodes.build(dataset, backbone, "root", shape, 10, faults=faults, rng=rng))


@pytest.mark.parametrize(
    ("dataset", "backbone", "images"),
    # the largest maps: 38 x 38 x 128 of 2**20 values; 32 x 32 x 64 and 32 x 32 x 24 of 2**22
    [("svhn", "mobilenet", 4), ("cifar10", "vgg", 64), ("cifar10", "resnet", 128)],
)
def test_a_piece_has_the_images_whose_largest_map_is_within_the_bound(dataset, backbone, images):
    network = root(dataset, backbone, (32, 32, 3))
    x = jax.ShapeDtypeStruct((256, 32, 32, 3), jnp.float32)
    assert images_at_once(lambda x: apply(network, x)[0], x) == images


# the same layers, and depthwise ones, which take long
@pytest.mark.parametrize(
    "backbone", [pytest.param("mobilenet", marks=pytest.mark.slow), "vgg", "resnet"]
)
@pytest.mark.parametrize(
    "count", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8)), 19]
)
def test_pieces_give_what_the_whole_gives(backbone, count, monkeypatch):
    monkeypatch.setattr(inference, "images_at_once", lambda f, x: 4)
    network = root("digits", backbone, (8, 8, 1))
    x = jnp.asarray(np.random.default_rng(1).random((count, 8, 8, 1)), jnp.float32)
    for found, wanted in zip(infer(network, x), apply(network, x)[0], strict=True):
        # the same sums in programs of other shapes: roundings of values of order 1
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_function_is_given_a_piece_at_a_time_on_a_cpu(monkeypatch):
    monkeypatch.setattr(inference, "images_at_once", lambda f, x: 4)
    seen = []

    def f(x):
        seen.append(len(x))
        return x.sum((1, 2, 3))

    x = jnp.arange(4 * 19, dtype=jnp.float32).reshape(19, 2, 2, 1)
    np.testing.assert_array_equal(in_microbatches(f, x), x.sum((1, 2, 3)))
    assert {4, 3} <= set(seen)  # 19 are four times four and three
    seen.clear()
    np.testing.assert_array_equal(in_microbatches(f, x, Mesh(jax.devices(), "x")), x.sum((1, 2, 3)))
    assert seen == [19]  # a batch that devices share is not cut


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="pieces are for CPUs")
def test_a_program_of_many_images_holds_the_maps_of_a_few():
    network = root("svhn", "mobilenet", (32, 32, 3))
    x = jax.ShapeDtypeStruct((256, 32, 32, 3), jnp.float32)
    whole = jax.jit(lambda network, x: apply(network, x)[0]).lower(network, x).compile()
    pieces = jax.jit(infer).lower(network, x).compile()
    needed = [program.memory_analysis().temp_size_in_bytes for program in (whole, pieces)]
    assert needed[1] < needed[0] / 8  # 4 images of 256, beside outputs of all
