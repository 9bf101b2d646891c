"""Inference through a tree: each image is computed by the nodes on its own path, and no others."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.model import Model, Predictions, Visit, predictions
from data.inference.stopping import NEVER
from data.tree import hierarchy
from data.tree.hierarchy import ROOT, Node
from trunk_jax.inference.microbatched import infer
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, dtype_of, feature_shape, input_shape

BATCH = 256


@partial(jax.jit, static_argnames=("mean", "std", "dtype"))
def _normalise(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: str) -> Array:
    return prepare(images, {}, Augmentation(), mean, std, dtype)


@partial(jax.jit, static_argnames=("columns", "deeper"))
def _visit(
    network: Network,
    x: Array,
    rows: Int[Array, " b"],
    temperature: float = 1.0,
    columns: tuple[tuple[int, ...], ...] | None = None,
    deeper: tuple[bool, ...] = (),
    threshold: float = NEVER,
    second: float | None = None,
) -> tuple[Array, Array, Array, Array]:
    """(features, log-probabilities, branch taken, second branch) of a node for some rows of `x`.

    A branch is -1 where none is taken. `columns`: in a tree with exits, the outputs of each branch,
    of which those are taken that are `deeper`, by images whose largest probability is below
    `threshold`. `second`: as in `Stopping`.
    """
    features, scores = infer(network, x[rows])
    likelihoods = jax.nn.log_softmax(scores / temperature, axis=1)
    best, other = scores.argmax(1), jnp.full(len(scores), -1)
    if columns is None and second is None:
        return features, likelihoods, best, other
    shares = jnp.exp(likelihoods)
    branches = shares
    if columns is not None:
        branches = jnp.stack([shares[:, np.array(each)].sum(1) for each in columns], axis=1)
        best = branches.argmax(1)
    if second is not None and branches.shape[1] > 1:
        rest = branches.at[jnp.arange(len(best)), best].set(-1)
        other = jnp.where(rest.max(1) >= second, rest.argmax(1), -1)
    if columns is not None:
        unsure, open_to = shares.max(1) < threshold, jnp.asarray(deeper)
        best = jnp.where(unsure & open_to[best], best, -1)
        other = jnp.where(unsure & (other >= 0) & open_to[other], other, -1)
    return features, likelihoods, best, other


@jax.jit
def _both(network: Network, x: Array) -> tuple[Array, Array]:
    """(features, scores) of a node."""
    return infer(network, x)


@jax.jit
def _features(network: Network, x: Array) -> Array:
    return infer(network, x)[0]


def predict(model: Model, images: Any, batch: int | None = None) -> Predictions:
    """Follow each image from the root to a leaf.

    `images`: what `as_images` takes, uint8 or floats from 0 to 1; UserError for anything else.
    `batch`: images at a time; None: `batch_of`.
    """
    images = as_images(images, model.image_shape)
    return predictions(model.tree, walk(model, images, batch), len(images))


def walk(model: Model, images: Images, batch: int | None = None) -> Iterator[Visit]:
    """The visits that take each image to its leaf, batch by batch, a node before its children.

    A batch is partitioned by child at each node. Parts are padded to one of three sizes
    (the batch, a quarter, a sixteenth) with their own first image, so that few shapes are
    compiled.
    """
    tree, networks = model.tree, model.networks
    leaves = set(tree.paths)
    batch = max(1, min(batch or batch_of(model), len(images)))
    decided = {node: _rule_at(model, node) for node in tree.nodes}

    def visit(node: Node, x: Array, rows: np.ndarray, places: np.ndarray) -> Iterator[Visit]:
        """`rows` of `x` are the images at `places`."""
        padded = np.full(bucket(len(rows), batch), rows[0], np.int32)
        padded[: len(rows)] = rows
        features, *outputs = _visit(networks[node], x, padded, **decided[node])
        likelihoods, *branches = (np.asarray(output)[: len(rows)] for output in outputs)
        found = Visit(node, places, branches[0], likelihoods, branches[1])
        yield found
        for child, mine in found.taken:
            if child not in leaves:
                yield from visit(child, features, np.flatnonzero(mine), places[mine])

    for x, places in _batches(model, images, batch):
        yield from visit(ROOT, x, np.arange(len(places)), places)


def _rule_at(model: Model, node: Node) -> dict[str, Any]:
    """The arguments of `_visit` that say where images go from a node."""
    tree, rule, name = model.tree, model.stopping, model.tree.names[node]
    result: dict[str, Any] = {"temperature": rule.temperature(name), "second": rule.second}
    if tree.exits:
        columns = tree.columns(node)
        deeper = tuple((*node, branch) not in tree.paths for branch in range(len(columns)))
        result |= {"columns": columns, "deeper": deeper, "threshold": rule.threshold(name)}
    return result


def features(model: Model, images: Images, node: Node) -> Float[np.ndarray, "n *features"]:
    """What the children of `node` are given for all images, wherever they would go."""
    batch, found = max(1, min(batch_of(model), len(images))), []
    for x, places in _batches(model, images, batch):
        for above in (*hierarchy.ancestors(node), node):
            x = _features(model.networks[above], x)
        found.append(np.asarray(x)[: len(places)])
    if not found:
        given = input_shape(model.networks, node, model.image_shape)
        shape = feature_shape(model.networks[node], given)
        return np.zeros((0, *shape), str(dtype_of(model.networks[node])))
    return np.concatenate(found)


def scores(model: Model, images: Any) -> dict[Node, Float[np.ndarray, "n outputs"]]:
    """The scores of every node for all images, wherever they would go.

    `images`: as for `predict`.
    """
    images = as_images(images, model.image_shape)
    batch, nodes = max(1, min(batch_of(model), len(images))), model.tree.nodes
    found: dict[Node, list[np.ndarray]] = {node: [] for node in nodes}
    for x, places in _batches(model, images, batch):
        given = {ROOT: x}
        for node in nodes:  # a node comes before those below it
            features, mine = _both(model.networks[node], given[node])
            given |= dict.fromkeys(model.tree.children(node), features)
            found[node].append(np.asarray(mine)[: len(places)])
    width = model.tree.width
    return {n: np.concatenate([np.zeros((0, width(n))), *found[n]]) for n in nodes}


def batch_of(model: Model) -> int:
    """Images at a time; of a monolithic baseline its recipe's number, for its maps are large."""
    return model.recipe.eval_batch_size if model.recipe.baseline is not None else BATCH


def _batches(model: Model, images: Images, batch: int) -> Iterator[tuple[Array, np.ndarray]]:
    """(`batch` images as the root is given them, which these are); the last one filled up."""
    recipe, dtype = model.recipe, str(dtype_of(model.networks[ROOT]))
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        x = np.zeros((batch, *part.shape[1:]), np.uint8)
        x[: len(part)] = part
        normalised = _normalise(x, recipe.mean, recipe.std, dtype)
        yield normalised, np.arange(start, start + len(part))


def bucket(count: int, batch: int) -> int:
    """The least of the three sizes of a part that holds `count` images."""
    sizes = [size for size in (batch // 16, batch // 4) if size >= count]
    return max(1, sizes[0] if sizes else batch)
