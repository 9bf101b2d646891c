"""Where the images of a training are: in memory, or on disk, from where batches are read ahead.

Both ways give the same bits (docs/your-data.md); in memory an epoch waits for nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.images.on_disk import OnDisk
from data.images.splits import Splits

SHARE = 0.5  # of the memory that is free: what images may take of it
COPIES = 3  # the split's own, the framework's, and one on the way to it
CHOICES = ("auto", "memory", "disk")


@dataclass(frozen=True)
class Free:
    """Bytes that are free: in the host's memory, and on a device that has its own; None: unknown,
    or it has none.
    """

    host: int | None
    device: int | None = None


@dataclass(frozen=True)
class Placement:
    """Whether images stay on disk, and what is said of it."""

    on_disk: bool
    line: str


def place(choice: str, images: int, free: Free, stored: str) -> Placement:
    """Where images go.

    Args:
      choice: of `--images-in`; `auto`: memory if half of what is free, on the device and in three
        copies on the host, has room for them.
      images: bytes of the training and validation images.
      free: the memory.
      stored: where they are now, for the line that says so.

    Example:
      >>> place("auto", 10**9, Free(host=9 * 10**9), "the cache").line
      'images: 1.0 GB in memory'

    """
    asked = ""
    if choice == "auto":
        asked = _too_much(images, free)
        choice = "disk" if asked else "memory"
    size = f"images: {_bytes(images)}"
    if choice == "memory":
        return Placement(False, f"{size} in memory")
    return Placement(True, f"{size} are read from {stored} as they are used{asked}")


def bytes_of(splits: Splits) -> int:
    """Bytes of the images that are trained and validated on."""
    parts = (splits.train.images, splits.validation.images)
    return sum(part.nbytes for part in parts)


def stored_in(images: np.ndarray | OnDisk) -> str:
    """What an array lies in: the cache, where it is mapped from there."""
    base: Any = images
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return "the cache"
        base = base.base
    return "the host's memory"


def _too_much(images: int, free: Free) -> str:
    """Why they are too much for memory; empty if they are not."""
    if free.device is not None and images > SHARE * free.device:
        return f"; they would take much of the device's {_bytes(free.device)} free"
    if free.host is not None and COPIES * images > SHARE * free.host:
        return (
            f"; in memory they would take {_bytes(COPIES * images)} of the {_bytes(free.host)} free"
        )
    return ""


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
