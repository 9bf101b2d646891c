"""What the commands need of this framework: its device, a finished tree read back, costs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.base import machine
from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.model import Predictions
from data.recipes.baselines import models as recipes
from data.recipes.baselines.architectures import QuantResNet
from data.training.framework import Framework
from data.training.placement import Free
from data.tree import hierarchy
from data.tree.hierarchy import Node
from trunk_jax.baselines import int8
from trunk_jax.baselines.layers import Resize
from trunk_jax.inference import route
from trunk_jax.inference.load import load
from trunk_jax.inference.model import Model
from trunk_jax.machine import devices, hosts, memory, settings
from trunk_jax.measure.costs import costs
from trunk_jax.network.augment import prepare
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import Network
from trunk_jax.training import grow


def device() -> dict[str, Any]:
    """What the run computes on."""
    first, mesh = jax.devices()[0], devices.mesh()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": 1 if mesh is None else mesh.size,
        "processes": jax.process_count(),
        "matmul_precision": settings.of_jax("jax_default_matmul_precision"),
    }


def free() -> Free:
    """The memory that is free; on a CPU the host's is the device's."""
    own = jax.default_backend() != "cpu"
    host = hosts.least(machine.available_memory())
    return Free(host, memory.available() if own else None)


def predict(model: Model, images: Images) -> Predictions:
    """`route.predict` on all devices in use."""
    images = as_images(images, model.image_shape)

    def follow(networks: dict[Node, Network], part: Images) -> Predictions:
        return route.predict(replace(model, networks=networks), part)

    return devices.predict(follow, model.networks, images, route.batch_of(model))


def as_int8(model: Model, images: Images) -> tuple[np.ndarray, int]:
    """(labels that the int8 form of a quantisation-aware baseline predicts, its bytes)."""
    images = as_images(images, model.image_shape)
    recipe, network = model.recipe, model.networks[hierarchy.ROOT]
    spec = recipes.spec_of(recipe, images.shape[1])
    assert isinstance(spec, QuantResNet)  # only such runs are asked for it
    assert recipe.baseline is not None
    small = int8.convert(to_state_dict(network), spec)
    resize, labels = Resize(recipe.baseline.size), []
    for start in range(0, len(images), recipe.eval_batch_size):
        part = jnp.asarray(images[start : start + recipe.eval_batch_size])
        x = resize(prepare(part, {}, Augmentation(), recipe.mean, recipe.std))
        labels.append(np.asarray(int8.scores(small, x).argmax(1)))
    return np.concatenate(labels), int8.size(small)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether XLA says that memory ran out."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


FRAMEWORK = Framework[Model](
    name="jax",
    device=device,
    free=free,
    grow=grow.grow,
    load=load,
    predict=predict,
    int8=as_int8,
    scores=route.scores,
    costs=costs,
    out_of_memory=out_of_memory,
    settings=settings.recorded,
)
