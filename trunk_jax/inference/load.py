"""A finished run's networks, read back from its folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.base.errors import UserError
from data.inference import stopping
from data.recipes.recipe import Recipe, image_shape
from data.run import compression, runfolder
from data.run.compression import Compression
from data.tree.hierarchy import Node, Tree
from trunk_jax import nodes
from trunk_jax.baselines import start as baselines
from trunk_jax.inference.model import Model
from trunk_jax.network.exchange import from_state_dict
from trunk_jax.network.network import Network, input_shape, split
from trunk_jax.shrink.prune import resized
from trunk_jax.shrink.quantized import quantize


def load(folder: Path) -> Model:
    """The tree of a finished run, of either framework. UserError if it is no such folder."""
    recipe, tree = runfolder.read_recipe(folder), runfolder.read_tree(folder)
    networks = load_networks(folder, recipe, tree, image_shape(recipe))
    return Model(recipe, tree, networks, folder, stopping.read(folder, tree))


def load_networks(
    folder: Path, recipe: Recipe, tree: Tree, in_shape: nodes.Shape
) -> dict[Node, Network]:
    """The network of every node of a run, from `weights/`. UserError if any does not fit.

    `in_shape`: height, width and channels of the images.
    """
    networks: dict[Node, Network] = {}
    how = compression.read(folder)
    shapes: dict[Node, nodes.Shape] = {}
    for node in tree.nodes:
        name, shape = tree.names[node], input_shape(networks, node, in_shape, shapes)
        weights = runfolder.read_weights(folder, name)
        template = _template(recipe, name, shape, tree.width(node))
        try:
            network = compressed(template, how, shape, weights)
            networks[node] = from_state_dict(network, weights)
        except UserError as error:
            raise UserError(f"{name} of {folder}: {error}") from None
    return networks


def compressed(
    network: Network,
    how: Compression | None,
    in_shape: nodes.Shape,
    weights: Mapping[str, np.ndarray],
) -> Network:
    """The network as a compressed run has it, still with values of its own.

    UserError if pruned layers do not fit together.
    """
    if how is None:
        return network
    if how.method == "int8":
        return quantize(network)
    return resized(network, in_shape, weights)


def _template(recipe: Recipe, name: str, shape: nodes.Shape, outputs: int) -> Network:
    """A node's network, whose weights are about to be set."""
    if recipe.baseline is not None:
        return baselines.empty(recipe, shape, outputs)
    layers, rng = recipe.network(name), np.random.default_rng(0)
    return split(nodes.make(layers, shape, outputs, faults=recipe.faults, rng=rng))
