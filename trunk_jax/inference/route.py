"""Inference through a tree: each image is computed by the nodes on its own path, and no others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.recipes.recipe import Recipe, image_shape
from data.training.framework import Predictions
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_jax.inference.microbatched import infer
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, apply, dtype_of

BATCH = 256


@partial(jax.jit, static_argnames=("mean", "std", "dtype"))
def _normalise(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: str) -> Array:
    return prepare(images, {}, Augmentation(), mean, std, dtype)


@jax.jit
def _visit(network: Network, x: Array, rows: Int[Array, " b"]) -> tuple[Array, Array, Array]:
    """(features, chosen output, its log-probability) of a node for the given rows of `x`."""
    features, scores = infer(network, x[rows])
    chosen = scores.argmax(1)
    likelihood = jax.nn.log_softmax(scores, axis=1)
    return features, chosen, jnp.take_along_axis(likelihood, chosen[:, None], 1)[:, 0]


def predict(
    recipe: Recipe,
    tree: Tree,
    networks: dict[Node, Network],
    images: np.ndarray,
    batch: int = BATCH,
) -> Predictions:
    """Follow each image from the root to a leaf.

    `images`: what `as_images` takes, uint8 or floats from 0 to 1; UserError for anything else.
    A batch is partitioned by child at each node. Parts are padded to one of three sizes
    (the batch, a quarter, a sixteenth) with their own first image, so that few shapes are
    compiled.
    """
    images = as_images(images, image_shape(recipe))
    leaves = {path: label for label, path in enumerate(tree.paths)}
    labels = np.full(len(images), -1, np.int32)
    confidence = np.zeros(len(images))
    batch = max(1, min(batch, len(images)))
    dtype = str(dtype_of(networks[ROOT]))

    def visit(node: Node, x: Array, rows: np.ndarray, places: np.ndarray) -> None:
        """`rows` of `x` are the images at `places`."""
        padded = np.full(bucket(len(rows), batch), rows[0], np.int32)
        padded[: len(rows)] = rows
        features, *outputs = _visit(networks[node], x, padded)
        chosen, likelihood = (np.asarray(output)[: len(rows)] for output in outputs)
        confidence[places] += likelihood
        for output in np.unique(chosen):
            mine = np.flatnonzero(chosen == output)
            child = (*node, int(output))
            if child in leaves:
                labels[places[mine]] = leaves[child]
            else:
                visit(child, features, mine, places[mine])

    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        places = np.arange(start, start + len(part))
        x = np.zeros((batch, *part.shape[1:]), np.uint8)
        x[: len(part)] = part
        x = _normalise(x, recipe.mean, recipe.std, dtype)
        visit(ROOT, x, np.arange(len(part)), places)
    return Predictions(labels, np.exp(confidence))


def first_input(recipe: Recipe, networks: dict[Node, Network], image: np.ndarray):
    """One image, of what `as_images` takes, as the root is given it, [1, h, w, c]."""
    image = as_images(image, image_shape(recipe))
    return _normalise(image, recipe.mean, recipe.std, str(dtype_of(networks[ROOT])))


@jax.jit
def _probabilities(network: Network, x: Array) -> tuple[Array, Array]:
    (features, scores), _ = apply(network, x)
    return features, jax.nn.softmax(scores, axis=1)


def visit(network: Network, x: Array) -> tuple[Array, np.ndarray]:
    """(features, probability of each output) of a node for a batch of one."""
    features, probabilities = _probabilities(network, x)
    return features, np.asarray(probabilities)[0]


def bucket(count: int, batch: int) -> int:
    """The least of the three sizes of a part that holds `count` images."""
    sizes = [size for size in (batch // 16, batch // 4) if size >= count]
    return max(1, sizes[0] if sizes else batch)
