"""What the commands need of this framework: its device, a finished tree read back, costs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.base.errors import UserError
from data.images.augmentation import Augmentation
from data.recipes.baselines import models as recipes
from data.recipes.recipe import Recipe
from data.run import compression, runfolder
from data.run.compression import Compression
from data.training.framework import Framework, Predictions
from data.tree import hierarchy
from data.tree.hierarchy import Path as NodePath
from data.tree.hierarchy import Tree
from trunk_jax import nodes
from trunk_jax.baselines import int8
from trunk_jax.baselines import start as baselines
from trunk_jax.baselines.layers import Resize
from trunk_jax.inference import route
from trunk_jax.machine import devices
from trunk_jax.network.augment import prepare
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import Network, cost, feature_shape, split
from trunk_jax.shrink.prune import resized
from trunk_jax.shrink.quantized import quantize
from trunk_jax.training import grow


def device() -> dict[str, Any]:
    """What the run computes on."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": 1 if devices.mesh() is None else devices.mesh().size,
        "processes": jax.process_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def load_networks(
    folder: Path, recipe: Recipe, tree: Tree, image_shape: nodes.Shape
) -> dict[NodePath, Network]:
    """The network of every node of a run, from `weights/`. UserError if any does not fit."""
    networks: dict[NodePath, Network] = {}
    how = compression.read(folder)
    shapes = {hierarchy.ROOT: image_shape}
    for node in hierarchy.nodes(tree):
        name = tree.names[node]
        if node != hierarchy.ROOT:
            shapes[node] = feature_shape(networks[node[:-1]], shapes[node[:-1]])
        weights = runfolder.read_weights(folder, name)
        template = _template(recipe, name, shapes[node], hierarchy.width(tree, node))
        try:
            network = compressed(template, how, shapes[node], weights)
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
    if recipe.monolith is not None:
        return baselines.empty(recipe, shape, outputs)
    where, rng = (recipe.dataset, recipe.backbone, name), np.random.default_rng(0)
    return split(nodes.build(*where, shape, outputs, faults=recipe.faults, rng=rng))


def predict(
    recipe: Recipe, tree: Tree, networks: dict[NodePath, Network], images: np.ndarray
) -> Predictions:
    """`route.predict`; a monolith's batches are its recipe's, for its maps are large."""
    batch = recipe.eval_batch_size if recipe.monolith is not None else route.BATCH
    follow = partial(route.predict, recipe, tree, batch=batch)
    return devices.predict(follow, networks, images, batch)


def as_int8(
    recipe: Recipe, networks: dict[NodePath, Network], images: np.ndarray
) -> tuple[np.ndarray, int]:
    """(labels that the int8 form of a quantisation-aware baseline predicts, its bytes)."""
    network = networks[hierarchy.ROOT]
    spec = recipes.spec_of(recipe, images.shape[1])
    model = int8.convert(to_state_dict(network), spec)
    resize, labels = Resize(recipe.monolith.size), []
    for start in range(0, len(images), recipe.eval_batch_size):
        part = jnp.asarray(images[start : start + recipe.eval_batch_size])
        x = resize(prepare(part, {}, Augmentation(), recipe.mean, recipe.std))
        labels.append(np.asarray(int8.scores(model, x).argmax(1)))
    return np.concatenate(labels), int8.size(model)


def costs(
    tree: Tree, networks: dict[NodePath, Network], image_shape: nodes.Shape
) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of each node, by name."""
    shapes = {hierarchy.ROOT: image_shape}
    result = {}
    for node in hierarchy.nodes(tree):
        if node != hierarchy.ROOT:
            shapes[node] = feature_shape(networks[node[:-1]], shapes[node[:-1]])
        result[tree.names[node]] = cost(networks[node], shapes[node])
    return result


def out_of_memory(error: RuntimeError) -> bool:
    """Whether XLA says that memory ran out."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


FRAMEWORK = Framework(
    name="jax",
    device=device,
    grow=grow.grow,
    load_networks=load_networks,
    predict=predict,
    int8=as_int8,
    costs=costs,
    out_of_memory=out_of_memory,
)
