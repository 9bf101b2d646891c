"""What the commands need of this framework: its device, a finished tree read back, costs."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.base import machine
from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.run.results import Costs
from data.training.framework import Framework
from data.training.placement import Free
from data.tree import hierarchy
from data.tree.hierarchy import Node
from trunk_torch_ref.baselines import qat
from trunk_torch_ref.inference import route
from trunk_torch_ref.inference.load import channel_first, load
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.machine.devices import float32_products, where
from trunk_torch_ref.measure.costs import cost
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.network.network import input_shape
from trunk_torch_ref.nodes import Shape
from trunk_torch_ref.training import grow


def device() -> dict[str, Any]:
    """What the run computes on."""
    platform = where().type
    return {
        "platform": platform,
        "kind": torch.cuda.get_device_name() if platform == "cuda" else "cpu",
        "count": torch.cuda.device_count() if platform == "cuda" else 1,
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def free() -> Free:
    """The memory that is free: the host's, and a GPU's own."""
    own = where().type == "cuda"
    return Free(machine.available_memory(), torch.cuda.mem_get_info()[0] if own else None)


def settings() -> dict[str, Any]:
    """What decides a run, inside of `exact`."""
    return {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": torch.backends.cuda.matmul.fp32_precision,
    }


@contextmanager
def exact() -> Iterator[None]:
    """Only algorithms that repeat bit for bit, and full float32 (no TF32), inside the block.

    On a GPU `machine.settings.apply` must have been called before.
    """
    backends = float32_products()
    before = [backend.fp32_precision for backend in backends]
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(True)
    # Otherwise each new tensor is filled with NaN first, 7 % of a training; nothing reads them so.
    memory: Any = torch.utils.deterministic  # whose type does not know of the switch
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = filled
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
def as_int8(model: Model, images: Images) -> tuple[np.ndarray, int]:
    """(labels that the int8 form of a quantisation-aware baseline predicts, its bytes on disk)."""
    images, recipe = as_images(images, model.image_shape), model.recipe
    network = model.networks[hierarchy.ROOT]
    assert isinstance(network, qat.QuantResNetModel)  # only such runs are asked for it
    small = qat.convert(network)
    labels = []
    for start in range(0, len(images), recipe.eval_batch_size):
        part = grow.as_images(images[start : start + recipe.eval_batch_size])
        x = prepare(part, {}, Augmentation(), recipe.mean, recipe.std)
        labels.append(small(x)[1].argmax(1).numpy())
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    return np.concatenate(labels), len(file.getvalue())


def costs(model: Model) -> Costs:
    """Parameters and multiply-adds of each node, by name."""
    result: Costs = {}
    shapes: dict[Node, Shape] = {}
    for node, network in model.networks.items():
        shape = input_shape(model.networks, node, channel_first(model.image_shape), shapes)
        result[model.tree.names[node]] = cost(network, shape)
    return result


def grow_here(
    recipe: Recipe,
    splits: Splits,
    classes: int,
    folder: Path,
    report: Callable[..., None],
    init: Model | None = None,
) -> Model:
    """`grow.grow` on `where()`."""
    return grow.grow(recipe, splits, classes, folder, report, device=where(), init=init)


# The last are oneDNN's, of a convolution that has worked before.
_NO_MEMORY = ("out of memory", "allocate memory", "could not create a primitive")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says that memory ran out: a GPU and a CPU each in words of its own."""
    return any(words in str(error) for words in _NO_MEMORY)


FRAMEWORK = Framework[Model](
    name="torch",
    device=device,
    free=free,
    grow=grow_here,
    load=load,
    predict=route.predict,
    int8=as_int8,
    scores=route.scores,
    costs=costs,
    out_of_memory=out_of_memory,
    settings=settings,
    exact=exact,
)
