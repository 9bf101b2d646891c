"""Inference through a tree against a loop that takes one image at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.recipes import recipe
from data.tree import hierarchy
from trunk_jax import nodes
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.network.network import apply, feature_shape, split

RECIPE = recipe.load("corrected", "digits", "vgg")
# outputs of the root: classes 0, 2, 4; class 1; classes 3, 5. Of the first: 0; 2, 4.
TREE = hierarchy.regroup(hierarchy.bare(6), (), ((0, 2, 4), (1,), (3, 5)))
TREE = hierarchy.regroup(TREE, (0,), ((0,), (1, 2)))
COUNT = 70


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def networks():
    """Random networks whose outputs are each the best of some images."""
    found, inputs = {}, {(): jnp.asarray(images(), jnp.float32) / 255}
    for index, node in enumerate(TREE.nodes):
        x = inputs[node]
        network = split(
            nodes.build(
                "digits",
                "vgg",
                TREE.names[node],
                x.shape[1:],
                TREE.width(node),
                rng=np.random.default_rng(index),
            )
        )
        (features, scores), _ = jax.jit(apply)(network, x)
        bias = network.params["classifier"][0]["bias"]
        network.params["classifier"][0]["bias"] = bias - scores.mean(0)
        found[node] = network
        inputs |= dict.fromkeys(TREE.children(node), features)
    return found


@pytest.fixture(scope="module")
def walked(networks):
    """(path, likelihood) of each image, walked alone."""
    step = jax.jit(apply)
    result = []
    for image in images():
        node, x, likelihood = (), jnp.asarray(image[None], jnp.float32) / 255, 1.0
        while node in networks:
            (x, scores), _ = step(networks[node], x)
            output = int(scores.argmax())
            likelihood *= float(jax.nn.softmax(scores)[0, output])
            node = (*node, output)
        result.append((node, likelihood))
    return result


def test_the_images_take_every_path(walked):
    assert {path for path, _ in walked} == set(TREE.paths)


@pytest.mark.parametrize("batch", [256, 33])
def test_predictions_are_those_of_each_image_alone(networks, walked, batch):
    found = route.predict(Model(RECIPE, TREE, networks), images(), batch=batch)
    assert [TREE.paths[label] for label in found.labels] == [path for path, _ in walked]
    # batches of other sizes round otherwise: float32, some ten layers
    np.testing.assert_allclose(found.confidence, [sure for _, sure in walked], rtol=1e-4)


def test_a_node_computes_its_own_images_alone_in_few_shapes(networks, walked, monkeypatch):
    visits, sizes = dict.fromkeys(networks, 0), set()
    visit = route._visit

    def counted(network, x, rows, **rule):
        node = next(node for node, one in networks.items() if one is network)
        visits[node] += len(np.unique(rows))  # padding repeats an image of the node's own
        sizes.add(len(rows))
        return visit(network, x, rows, **rule)

    monkeypatch.setattr(route, "_visit", counted)
    route.predict(Model(RECIPE, TREE, networks), images(), batch=33)
    for node, count in visits.items():
        assert count == sum(path[: len(node)] == node for path, _ in walked)
    assert visits[()] == COUNT
    assert 0 < visits[0, 1] < visits[0,] < COUNT
    assert sizes == {33, 8, 2}


def test_normalisation_is_the_recipes(networks):
    shifted = dataclasses.replace(RECIPE, mean=(0.5,), std=(0.25,))
    found = route.predict(Model(shifted, TREE, networks), images()[:2])
    x = (jnp.asarray(images()[:2], jnp.float32) / 255 - 0.5) / 0.25
    (_, scores), _ = apply(networks[()], x)
    outputs = [TREE.paths[label][0] for label in found.labels]
    assert outputs == np.asarray(scores.argmax(1)).tolist()


def test_a_flat_tree_is_one_network():
    tree = hierarchy.bare(10)
    network = split(
        nodes.build("digits", "vgg", "root", (8, 8, 1), 10, rng=np.random.default_rng(0))
    )
    assert feature_shape(network, (8, 8, 1)) == (4, 4, 32)
    found = route.predict(Model(RECIPE, tree, {(): network}), images()[:2])
    (_, scores), _ = apply(network, jnp.asarray(images()[:2], jnp.float32) / 255)
    np.testing.assert_array_equal(found.labels, scores.argmax(1))
    sure = jax.nn.softmax(scores).max(1)
    np.testing.assert_allclose(found.confidence, sure, rtol=1e-5)  # float32
