"""One image through one compiled program gives what a batch gives."""

import jax.numpy as jnp
import numpy as np

from data.recipes import recipe
from data.tree import hierarchy
from trunk_jax import nodes
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.inference.single import compile_single
from trunk_jax.network.network import apply, feature_shape, features, split

RECIPE = recipe.load("corrected", "digits", "vgg")
SHAPE = (8, 8, 1)


def grown():
    """A tree of three levels with random weights."""
    tree = hierarchy.bare(10)
    tree = hierarchy.regroup(tree, (), ((0, 1, 2, 3, 4, 5), (6,), (7, 8, 9)))
    tree = hierarchy.regroup(tree, (0,), ((0, 1, 2), (3, 4, 5)))
    networks = {}
    for place, node in enumerate(tree.nodes):
        shape = SHAPE
        for ancestor in hierarchy.ancestors(node):
            shape = feature_shape(networks[ancestor], shape)
        rng = np.random.default_rng(place)
        outputs = tree.width(node)
        name = "root" if node == () else "sg1"
        networks[node] = split(nodes.build("digits", "vgg", name, shape, outputs, rng=rng))
    return tree, networks


def balanced(tree, networks, images):
    """The networks with biases that give each output about its share of the images."""
    for node in tree.nodes:
        x = jnp.asarray(images, jnp.float32) / 255
        for ancestor in hierarchy.ancestors(node):
            x = features(networks[ancestor], x)
        classifier = networks[node].params["classifier"][0]
        classifier["bias"] = classifier["bias"] - apply(networks[node], x)[0][1].mean(0)
    return networks


def test_one_program_takes_each_image_down_the_path_that_a_batch_gives():
    tree, networks = grown()
    images = np.random.default_rng(0).integers(0, 256, (64, *SHAPE), np.uint8)
    networks = balanced(tree, networks, images)
    expected = route.predict(Model(RECIPE, tree, networks), images)
    run = compile_single(Model(RECIPE, tree, networks))
    labels, confidences, paths = zip(*(run(image) for image in images), strict=True)
    np.testing.assert_array_equal(np.stack(labels), expected.labels)
    # float32: a handful of layers, in programs of other shapes
    np.testing.assert_allclose(np.stack(confidences), expected.confidence, rtol=1e-5)
    for label, path in zip(labels, paths, strict=True):
        assert tuple(int(step) for step in path if step >= 0) == tree.paths[int(label)]
    assert len(set(map(int, labels))) > 5
