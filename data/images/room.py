"""Room for many images: in memory, or in a file where that would take too much of it."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from data.base import machine
from data.base.errors import UserError
from data.images import cache

SHARE = 0.25  # of the memory that is free: what images may take of it while they are decoded
_STEP = 2**26  # bytes that are moved together


def images(count: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n h w c"]:
    """An array for `count` images, its values not set.

    Where they would take more than a quarter of the memory that is free it is mapped from a file
    beside the cache. The file has no name, so that nothing is left of it when the program ends,
    however that happens. UserError if there is no room for it on the disk.
    """
    size = count * int(np.prod(shape))
    free, root = machine.available_memory(), cache.optional_root()
    if free is None or size <= SHARE * free or root is None:
        return np.empty((count, *shape), np.uint8)
    return _mapped(root, size).reshape(count, *shape)


def _mapped(root: Path, size: int) -> np.ndarray:
    """So many bytes in a file without a name."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            if hasattr(os, "posix_fallocate"):  # or a full disk would end the program later
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "w+", shape=(size,)).view(np.ndarray)
    except OSError as error:
        left = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
        raise UserError(
            f"decoding needs {size / 1e9:.1f} GB on the disk of {root}, which has "
            f"{left / 1e9:.1f} GB free ({error.strerror or error}); free some, or set "
            "TRUNK_CACHE_DIR to a folder elsewhere"
        ) from None


def gathered(
    stored: UInt8[np.ndarray, "m h w c"], rows: Int[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n h w c"]:
    """`stored[rows]`, which need not fit into memory; not copied if the rows are a range."""
    rows = np.asarray(rows)
    if len(rows) and (np.diff(rows) == 1).all():
        return stored[rows[0] : rows[-1] + 1]
    result = images(len(rows), stored.shape[1:])
    step = max(1, _STEP // max(1, stored[:1].nbytes))
    for start in range(0, len(rows), step):
        result[start : start + step] = stored[rows[start : start + step]]
    return result


def joined(*parts: UInt8[np.ndarray, "_ h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """The parts one after the other, as `numpy.concatenate` has them."""
    if len(parts) == 1:
        return parts[0]
    result, start = images(sum(map(len, parts)), parts[0].shape[1:]), 0
    for part in parts:
        result[start : start + len(part)] = part
        start += len(part)
    return result
