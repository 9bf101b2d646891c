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
from trunk_torch_ref import nodes
from trunk_torch_ref.baselines import start as baselines
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.machine.devices import where
from trunk_torch_ref.network.exchange import from_state_dict
from trunk_torch_ref.network.network import initial, input_shape
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.shrink.prune import resized
from trunk_torch_ref.shrink.quantized import quantize


def channel_first(image_shape: tuple[int, int, int]) -> nodes.Shape:
    """(height, width, channels) as datasets state it to (channels, height, width)."""
    height, width, channels = image_shape
    return channels, height, width


def load(folder: Path) -> Model:
    """The tree of a finished run, of either framework. UserError if it is no such folder."""
    recipe, tree = runfolder.read_recipe(folder), runfolder.read_tree(folder)
    networks = load_networks(folder, recipe, tree, image_shape(recipe))
    return Model(recipe, tree, networks, folder, stopping.read(folder, tree))


def load_networks(
    folder: Path, recipe: Recipe, tree: Tree, in_shape: tuple[int, int, int]
) -> dict[Node, NodeNetwork]:
    """The network of every node of a run, from `weights/`. UserError if any does not fit.

    `in_shape`: height, width and channels of the images.
    """
    networks: dict[Node, NodeNetwork] = {}
    how = compression.read(folder)
    shapes: dict[Node, nodes.Shape] = {}
    for node in tree.nodes:
        name = tree.names[node]
        shape = input_shape(networks, node, channel_first(in_shape), shapes)
        template = _template(recipe, name, shape, tree.width(node))
        weights = runfolder.read_weights(folder, name)
        try:
            template = compressed(template, how, shape, weights)
            loaded = from_state_dict(template, weights)
        except UserError as error:
            raise UserError(f"{name} of {folder}: {error}") from None
        networks[node] = loaded.to(where()).eval()
    return networks


def compressed(
    network: NodeNetwork,
    how: Compression | None,
    in_shape: nodes.Shape,
    weights: Mapping[str, np.ndarray],
) -> NodeNetwork:
    """The network as a compressed run has it, still with values of its own.

    UserError if pruned layers do not fit together.
    """
    if how is None:
        return network
    if how.method == "int8":
        return quantize(network)
    return initial(lambda: resized(network, in_shape, weights), seed=0)


def _template(recipe: Recipe, name: str, shape: nodes.Shape, outputs: int) -> NodeNetwork:
    """A node's network, whose weights are about to be set."""
    if recipe.baseline is not None:
        return baselines.empty(recipe, shape, outputs)
    layers = recipe.network(name)
    return initial(lambda: nodes.make(layers, shape, outputs, faults=recipe.faults), seed=0)
