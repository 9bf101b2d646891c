"""A recipe's baseline as a network: empty, to load weights into, or as training starts from it."""

import jax
import numpy as np

from data.base.streams import stream
from data.recipes.baselines import models as recipes
from data.recipes.baselines.architectures import Architecture
from data.recipes.recipe import Recipe
from trunk_jax.baselines import build
from trunk_jax.network.exchange import from_state_dict, shapes, to_state_dict
from trunk_jax.network.network import Network, split
from trunk_jax.nodes.node import Shape


def empty(recipe: Recipe, in_shape: Shape, outputs: int) -> Network:
    """The network of the recipe's model for images of `in_shape` (height, width, channels)."""
    assert recipe.baseline is not None  # or it would be a tree
    side, _, channels = in_shape
    spec = recipes.spec_of(recipe, side)
    return split(build(spec, channels, outputs, size=recipe.baseline.size))


def start(recipe: Recipe, in_shape: Shape, outputs: int) -> Network:
    """As `empty`, with the weights that training starts from. UserError if they do not fit."""
    side, _, channels = in_shape

    def shapes_of(spec: Architecture) -> dict[str, tuple[int, ...]]:
        return shapes(jax.eval_shape(lambda: split(build(spec, channels, outputs))))

    def fresh(spec: Architecture) -> dict[str, np.ndarray]:
        rng = stream(recipe.seed, "root", "class", "weights")
        return to_state_dict(split(build(spec, channels, outputs, rng=rng)))

    weights = recipes.start(recipe, side, shapes_of, fresh)
    return from_state_dict(empty(recipe, in_shape, outputs), weights)
