"""Several devices: each computes its part of every batch, and holds all of everything else.

Parameters, statistics and images are whole on every device; a step's batch is split by images.
The compiler partitions the one program that a single device would run, so a mean over a batch
(a loss, batch norm's moments) is a mean over all of it, wherever its images lie, and dropout
masks are those of the whole batch. With one device nothing here changes a program.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data.base.errors import UserError
from data.images.on_disk import Images, part
from data.inference.model import Predictions
from trunk_jax.machine import hosts

T = TypeVar("T")
N = TypeVar("N", bound=Mapping[Any, Any])
AXIS = "images"

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def mesh() -> Mesh | None:
    """The devices in use, along whose one axis batches are split; None for a single one."""
    return _mesh.get()


def choose(count: str, distributed: bool) -> list[jax.Device]:
    """The devices of all processes that `--devices` and `--distributed` ask for.

    `count`: how many of each process's own, or `all`. UserError if there are not so many.
    """
    if distributed:
        hosts.join()
    wanted = jax.local_device_count() if count == "all" else int(count)
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, by_process.values()))
    if wanted > fewest:
        raise UserError(f"--devices {wanted} is more than the {fewest} that are here; use all")
    return [device for own in by_process.values() for device in own[:wanted]]


@contextmanager
def using(devices: list[jax.Device]) -> Iterator[None]:
    """Train on these devices inside the block."""
    several = len(devices) > 1
    token = _mesh.set(Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,)) if several else None)
    try:
        yield
    finally:
        _mesh.reset(token)


def split(mesh: Mesh | None, x: Array) -> Array:
    """Inside a program: an array whose first axis, the images of a batch, is split.

    Their number need not be a multiple of the number of devices, for the result; but then the
    compiler leaves parts of the work whole on each (it cannot fold an uneven axis into others).
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(AXIS)))


def whole(mesh: Mesh | None, values: T) -> T:
    """Inside a program: arrays that every device is to hold in full."""
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, PartitionSpec()))


def put(mesh: Mesh | None, values: T) -> T:
    """Outside of programs: every array of a pytree, in full on every device."""
    if mesh is None:
        return values
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(x: Any) -> Array:
        if isinstance(x, Array) and len(x.sharding.device_set) > 1:
            return x
        # not by one device_put: that asks all processes about every array
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(np.shape(x), everywhere, copies)

    return jax.tree.map(one, values)


def here(values: T) -> T:
    """Arrays that are whole on every device, as one device of this process has them."""

    def one(x: Any) -> Any:
        several = isinstance(x, Array) and len(x.sharding.device_set) > 1
        return x.addressable_data(0) if several else x

    return jax.tree.map(one, values)


def predict(
    one: Callable[[N, Images], Predictions], networks: N, images: Images, batch: int
) -> Predictions:
    """`one(networks, images)`, which goes by batches, with the batches dealt to the devices.

    Each device follows its own images by itself, so nothing waits for anything, and each
    batch is the one that a single device would make of it.
    """
    several = mesh()
    if several is None:
        return one(networks, images)
    every = several.devices.ravel().tolist()
    batches = -(-len(images) // batch)
    # two batches or more for each: a single one that is not full would have a shape of its own
    used = every[: max(1, min(len(every), batches // 2))]
    places = [min(batches * k // len(used) * batch, len(images)) for k in range(len(used) + 1)]
    bounds = dict(zip(used, itertools.pairwise(places), strict=True))

    def follow(device: jax.Device) -> Predictions:
        start, stop = bounds[device]
        with jax.default_device(device):
            return one(jax.device_put(networks, device), part(images, start, stop))

    mine = [device for device in used if device.process_index == jax.process_index()]
    with ThreadPoolExecutor(max(1, len(mine))) as threads:
        parts = list(threads.map(follow, mine))
    rows = [0] * jax.process_count()
    for device, (start, stop) in bounds.items():
        rows[device.process_index] += stop - start
    labels = [np.zeros(0, np.int32), *(part.labels for part in parts)]
    confidence = [np.zeros(0), *(part.confidence for part in parts)]
    met = [np.zeros((0, len(networks)), bool), *(part.met for part in parts)]
    gathered = (hosts.gather(np.concatenate(each), rows) for each in (labels, confidence, met))
    return Predictions(*gathered)
