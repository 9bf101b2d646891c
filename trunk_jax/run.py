"""A run of this framework: its configuration and device, and a finished tree read back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from data import hierarchy, runfolder
from data.errors import UserError
from data.hierarchy import Path as NodePath
from data.hierarchy import Tree
from data.options import TrainOptions
from data.recipe import Recipe, to_json
from trunk_jax import nodes
from trunk_jax.exchange import from_state_dict
from trunk_jax.network import Network, cost, feature_shape, split

FRAMEWORK = "jax"


def config(options: TrainOptions, fingerprint: str) -> dict[str, Any]:
    """All that decides a run's result."""
    return {
        "format": runfolder.FORMAT,
        "framework": FRAMEWORK,
        "flags": options.flags,
        "dataset_sha256": fingerprint,
        "recipe": to_json(options.recipe),
    }


def device() -> dict[str, Any]:
    """What the run computes on."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def load_networks(
    folder: Path, recipe: Recipe, tree: Tree, image_shape: nodes.Shape
) -> dict[NodePath, Network]:
    """The network of every node of a run, from `weights/`. UserError if any does not fit."""
    networks: dict[NodePath, Network] = {}
    shapes = {hierarchy.ROOT: image_shape}
    for node in hierarchy.nodes(tree):
        name = tree.names[node]
        if node != hierarchy.ROOT:
            shapes[node] = feature_shape(networks[node[:-1]], shapes[node[:-1]])
        module = nodes.build(
            recipe.dataset,
            recipe.backbone,
            name,
            shapes[node],
            hierarchy.width(tree, node),
            faults=recipe.faults,
            rng=np.random.default_rng(0),
        )
        try:
            networks[node] = from_state_dict(split(module), runfolder.read_weights(folder, name))
        except UserError as error:
            raise UserError(f"{name} of {folder}: {error}") from None
    return networks


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
