"""What the commands need of this framework: its device, a finished tree read back, costs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.recipes.baselines import models as recipes
from data.recipes.recipe import Recipe, image_shape
from data.training.framework import Framework, Predictions
from data.tree import hierarchy
from data.tree.hierarchy import Node, Tree
from trunk_jax import nodes
from trunk_jax.baselines import int8
from trunk_jax.baselines.layers import Resize
from trunk_jax.inference import route
from trunk_jax.inference.load import load_networks
from trunk_jax.machine import devices, settings
from trunk_jax.network.augment import prepare
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import Network, cost, feature_shape
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


def predict(
    recipe: Recipe, tree: Tree, networks: dict[Node, Network], images: np.ndarray
) -> Predictions:
    """`route.predict`; a monolith's batches are its recipe's, for its maps are large."""
    images = as_images(images, image_shape(recipe))
    batch = recipe.eval_batch_size if recipe.monolith is not None else route.BATCH
    follow = partial(route.predict, recipe, tree, batch=batch)
    return devices.predict(follow, networks, images, batch)


def as_int8(
    recipe: Recipe, networks: dict[Node, Network], images: np.ndarray
) -> tuple[np.ndarray, int]:
    """(labels that the int8 form of a quantisation-aware baseline predicts, its bytes)."""
    images = as_images(images, image_shape(recipe))
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
    tree: Tree, networks: dict[Node, Network], image_shape: nodes.Shape
) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of each node, by name."""
    shapes = {hierarchy.ROOT: image_shape}
    result = {}
    for node in tree.nodes:
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
    settings=settings.recorded,
)
