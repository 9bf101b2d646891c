"""Images that stay where they are stored: what is asked for is read, and nothing else."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Some images of a stored array, which need not fit into memory.

    It takes the place of an array of images: it has its `shape` and `dtype`, and indexing with a
    slice or an array of numbers gives an array. `numpy.asarray` reads all of it.

    Attributes:
      stored: images uint8 [m, h, w, c], as a rule of a mapped file.
      rows: which of them these are, in this order.

    Example:
      >>> some = OnDisk(np.zeros((9, 8, 8, 1), np.uint8), np.array([7, 2, 5]))
      >>> some.shape, some[[0, 2]].shape
      ((3, 8, 8, 1), (2, 8, 8, 1))

    """

    stored: UInt8[np.ndarray, "m h w c"]
    rows: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), *self.stored.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    @property
    def ndim(self) -> int:
        return self.stored.ndim

    @property
    def nbytes(self) -> int:
        return len(self) * self.stored[:1].nbytes

    def __getitem__(self, which: Any) -> np.ndarray:
        rows = self.rows[which]
        if rows.ndim == 0:
            return np.array(self.stored[rows])
        # in the order of the file, so that neighbours are read together
        order = np.argsort(rows, axis=None, kind="stable")
        found = np.empty((rows.size, *self.stored.shape[1:]), np.uint8)
        found[order] = self.stored[rows.ravel()[order]]
        return found.reshape(*rows.shape, *self.stored.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def part(self, start: int, stop: int) -> "OnDisk":
        """The images `start` to `stop`, not read."""
        return OnDisk(self.stored, self.rows[start:stop])


Images = UInt8[np.ndarray, "n h w c"] | OnDisk


def part(images: Images, start: int, stop: int) -> Images:
    """The images `start` to `stop`; of those that are on disk, without reading them."""
    return images.part(start, stop) if isinstance(images, OnDisk) else images[start:stop]
