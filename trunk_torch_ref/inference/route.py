"""Inference through a tree: each image is computed by the nodes on its own path, and no others."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.model import Model, Predictions, Visit, predictions
from data.inference.stopping import Stopping
from data.tree import hierarchy
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.network.network import feature_shape, input_shape, location
from trunk_torch_ref.network.network import features as features_of

BATCH = 256


def predict(model: Model, images: Any, batch: int | None = None) -> Predictions:
    """Follow each image from the root to a leaf, a batch at a time, in eval mode.

    `images`: what `as_images` takes, uint8 or floats from 0 to 1; UserError for anything else.
    `batch`: images at a time; None: `batch_of`.
    """
    images = as_images(images, model.image_shape)
    return predictions(model.tree, walk(model, images, batch), len(images))


def walk(model: Model, images: Images, batch: int | None = None) -> Iterator[Visit]:
    """The visits that take each image to its leaf, batch by batch, a node before its children."""
    tree, rule = model.tree, model.stopping
    leaves = set(tree.paths)

    def visit(node: Node, x: Tensor, places: np.ndarray) -> Iterator[Visit]:
        """`x` are the inputs of the images at `places`."""
        with torch.no_grad():
            features, scores = model.networks[node].eval()(x)
            likelihoods = (scores / rule.temperature(tree.names[node])).log_softmax(1)
            ways = onward(tree, node, scores, likelihoods, rule)
            chosen, second = (each.cpu().numpy() for each in ways)
        found = Visit(node, places, chosen, likelihoods.cpu().numpy(), second)
        yield found
        for child, mine in found.taken:
            if child not in leaves:
                rows = torch.tensor(mine, device=features.device)
                yield from visit(child, features[rows], places[mine])

    for x, places in _batches(model, images, batch or batch_of(model)):
        yield from visit(ROOT, x, places)


def onward(
    tree: Tree, node: Node, scores: Tensor, likelihoods: Tensor, rule: Stopping
) -> tuple[Tensor, Tensor]:
    """The branches that images take from a node: the best, and one besides; -1 for none.

    `likelihoods`: log-probabilities of its outputs, of which it gave the `scores`; [n, outputs].
    In a tree with exits only branches with a network are taken.
    """
    shares = likelihoods.exp()
    branches = shares
    best = scores.argmax(1)  # probabilities of different scores may be equal
    if tree.exits:
        columns = tree.columns(node)
        branches = torch.stack([shares[:, list(each)].sum(1) for each in columns], dim=1)
        best = branches.argmax(1)
    second = torch.full_like(best, -1)
    if rule.second is not None and branches.shape[1] > 1:
        rest = branches.scatter(1, best[:, None], -1.0)
        likely = rest.amax(1) >= rule.second
        second[likely] = rest.argmax(1)[likely]
    if tree.exits:
        deeper = torch.tensor(
            [(*node, branch) not in tree.paths for branch in range(branches.shape[1])],
            device=best.device,
        )
        goes = shares.amax(1) < rule.threshold(tree.names[node])
        best = torch.where(goes & deeper[best], best, -1)
        second = torch.where(goes & (second >= 0) & deeper[second], second, -1)
    return best, second


def features(model: Model, images: Images, node: Node) -> Float[np.ndarray, "n *features"]:
    """What the children of `node` are given for all images; channels last, as the images'."""
    found = []
    for x, _ in _batches(model, images, batch_of(model)):
        for above in (*hierarchy.ancestors(node), node):
            x = features_of(model.networks[above], x)
        found.append(np.moveaxis(x.cpu().numpy(), 1, -1))
    if not found:
        height, width, channels = model.image_shape
        shape = input_shape(model.networks, node, (channels, height, width))
        deep, *sides = feature_shape(model.networks[node], shape)
        return np.zeros((0, *sides, deep), np.float32)
    return np.concatenate(found)


@torch.no_grad()
def scores(model: Model, images: Any) -> dict[Node, Float[np.ndarray, "n outputs"]]:
    """The scores of every node for all images, wherever they would go.

    `images`: as for `predict`.
    """
    images = as_images(images, model.image_shape)
    nodes = model.tree.nodes
    found: dict[Node, list[np.ndarray]] = {node: [] for node in nodes}
    for x, _ in _batches(model, images, batch_of(model)):
        given = {ROOT: x}
        for node in nodes:  # a node comes before those below it
            features, mine = model.networks[node].eval()(given[node])
            given |= dict.fromkeys(model.tree.children(node), features)
            found[node].append(mine.cpu().numpy())
    width = model.tree.width
    return {n: np.concatenate([np.zeros((0, width(n))), *found[n]]) for n in nodes}


def batch_of(model: Model) -> int:
    """Images at a time; of a monolithic baseline its recipe's number, for its maps are large."""
    return model.recipe.eval_batch_size if model.recipe.baseline is not None else BATCH


def _batches(model: Model, images: Images, batch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """(at most `batch` images as the root is given them, which these are)."""
    recipe = model.recipe
    device, dtype = location(model.networks[ROOT])
    for begin in range(0, len(images), batch):
        part = np.ascontiguousarray(images[begin : begin + batch].transpose(0, 3, 1, 2))
        pixels = torch.tensor(part, device=device)
        x = prepare(pixels, {}, Augmentation(), recipe.mean, recipe.std, dtype)
        yield x, np.arange(begin, begin + len(part))
