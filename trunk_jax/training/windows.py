"""Passes over images that do not all lie on the device: a window of steps at a time.

A window holds the images of some steps in the order in which they are used. While its steps
run, a thread reads the next one. The compiled program is the one for images on the device, and is
given the window in their place; every step sees what it would see there, so it gives the same
bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from data.base.prefetch import prefetched
from data.images.on_disk import Images, OnDisk
from trunk_jax.machine import devices
from trunk_jax.training.source import Draws, Some, Source

BYTES = 2**28  # of a window's images; two windows are there at a time


@dataclass(frozen=True)
class Window:
    """The images of the steps `start` to `stop` of a pass.

    `source`, `index`, `draws`: as those of the whole pass, but numbered within the window; `index`
    has a row for each step of the pass, of which `start` to `stop` are of use. `length`: steps that
    it has images for, more than those in the last window, in which they come again.
    """

    source: Source
    index: Int[Some, "steps width"]
    draws: Draws
    start: int
    stop: int
    length: int


def windows(
    mesh: Mesh | None, source: Source, index: Int[np.ndarray, "steps width"], draws: Draws
) -> Iterator[Window]:
    """The windows of a pass; of images that are on the device, one of all steps.

    Args:
      mesh: the devices in use, as in `devices.put`.
      source: the images.
      index: those of each step.
      draws: random numbers for all images.

    All windows have one shape.

    """
    if not isinstance(source.images, OnDisk):
        yield Window(*devices.put(mesh, (source, index, draws)), 0, len(index), len(index))
        return
    stored, (steps, width) = source.images, index.shape
    targets = np.asarray(source.targets)
    size = min(steps, max(2, BYTES // max(1, width * stored[:1].nbytes)))
    within = np.resize(np.arange(size * width, dtype=np.int32).reshape(size, width), index.shape)
    within, above = devices.put(mesh, (within, source.above))

    def read(start: int) -> Window:
        rows = np.resize(index[start : start + size], (size, width)).ravel()
        mine = {name: values[rows] for name, values in draws.items()}
        images: Some = jax.device_put(stored[rows]) if mesh is None else stored[rows]
        images, chosen, mine = devices.put(mesh, (images, targets[rows], mine))
        window = Source(images, chosen, above)
        return Window(window, within, mine, start, min(start + size, steps), size)

    yield from prefetched(read, range(0, steps, size))


def as_array(images: Images) -> jax.Array | OnDisk:
    """Images on the device; those that are to stay on disk as they are."""
    return images if isinstance(images, OnDisk) else jax.numpy.asarray(images)


def on_device(mesh: Mesh | None, source: Source) -> Source:
    """The source in full on every device, but for images that are to stay on disk."""
    if not isinstance(source.images, OnDisk):
        return devices.put(mesh, source)
    rest = source.targets, source.above, source.cached, source.cached_rows
    return Source(source.images, *devices.put(mesh, rest))
