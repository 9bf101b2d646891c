"""Inference through a tree: each image is computed by the nodes on its own path, and no others."""

import numpy as np
import torch
from torch import Tensor

from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.recipes.recipe import Recipe, image_shape
from data.training.framework import Predictions
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.network.network import location
from trunk_torch_ref.nodes import NodeNetwork

BATCH = 256


@torch.no_grad()
def predict(
    recipe: Recipe,
    tree: Tree,
    networks: dict[Node, NodeNetwork],
    images: np.ndarray,
    batch: int = BATCH,
) -> Predictions:
    """Follow each image from the root to a leaf, a batch at a time, in eval mode.

    `images`: what `as_images` takes, uint8 or floats from 0 to 1; UserError for anything else.
    """
    images = as_images(images, image_shape(recipe))
    device, dtype = location(networks[ROOT])
    leaves = {path: label for label, path in enumerate(tree.paths)}
    labels = np.full(len(images), -1, np.int32)
    likelihood = np.zeros(len(images))

    def visit(node: Node, x: Tensor, places: np.ndarray) -> None:
        """`x` are the inputs of the images at `places`."""
        features, scores = networks[node].eval()(x)
        best = scores.log_softmax(1).max(1)
        chosen = best.indices.cpu().numpy()
        likelihood[places] += best.values.cpu().numpy()
        for output in np.unique(chosen):
            mine = chosen == output
            child = (*node, int(output))
            if child in leaves:
                labels[places[mine]] = leaves[child]
            else:
                visit(child, features[torch.tensor(mine, device=device)], places[mine])

    for begin in range(0, len(images), batch):
        part = np.ascontiguousarray(images[begin : begin + batch].transpose(0, 3, 1, 2))
        pixels = torch.tensor(part, device=device)
        x = prepare(pixels, {}, Augmentation(), recipe.mean, recipe.std, dtype)
        visit(ROOT, x, np.arange(begin, begin + len(part)))
    return Predictions(labels, np.exp(likelihood))
