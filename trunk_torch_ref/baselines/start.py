"""A recipe's baseline as a network: empty, to load weights into, or as training starts from it."""

import numpy as np
import torch

from data.base.streams import integer
from data.recipes.baselines import models as recipes
from data.recipes.baselines.architectures import Architecture
from data.recipes.recipe import Recipe
from trunk_torch_ref.baselines import build
from trunk_torch_ref.network.exchange import from_state_dict, to_state_dict
from trunk_torch_ref.network.network import initial
from trunk_torch_ref.nodes.node import NodeNetwork, Shape


def empty(recipe: Recipe, in_shape: Shape, outputs: int) -> NodeNetwork:
    """The network of the recipe's model for images of `in_shape` (channels, height, width)."""
    assert recipe.baseline is not None  # or it would be a tree
    channels, side, _ = in_shape
    size = recipe.baseline.size
    spec = recipes.spec_of(recipe, side)
    return initial(lambda: build(spec, channels, outputs, size=size), 0)


def start(recipe: Recipe, in_shape: Shape, outputs: int) -> NodeNetwork:
    """As `empty`, with the weights that training starts from. UserError if they do not fit."""
    channels, side, _ = in_shape

    def shapes_of(spec: Architecture) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            module = build(spec, channels, outputs)
        return {key: tuple(value.shape) for key, value in module.state_dict().items()}

    def fresh(spec: Architecture) -> dict[str, np.ndarray]:
        seed = integer(recipe.seed, "root", "class", "weights")
        return to_state_dict(initial(lambda: build(spec, channels, outputs), seed))

    weights = recipes.start(recipe, side, shapes_of, fresh)
    return from_state_dict(empty(recipe, in_shape, outputs), weights)
