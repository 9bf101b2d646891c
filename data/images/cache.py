"""Decoded datasets on disk, as .npy files that map at once."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.base import reading
from data.base.errors import UserError
from data.base.writing import new_folder

SPLITS = ("train", "test")
NAMES = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
Arrays = dict[str, np.ndarray]  # the keys are NAMES

_META = "meta.json"
_ABANDONED = 3600.0  # seconds after which an unfinished folder has no writer any more


def cache_root() -> Path:
    """TRUNK_CACHE_DIR, else `trunk` in XDG_CACHE_HOME, else in ~/.cache."""
    if folder := os.environ.get("TRUNK_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trunk"


def fingerprint(arrays: Arrays) -> str:
    """SHA-256, in hex, over name, dtype, shape and bytes of every array."""
    digest = hashlib.sha256()
    for name in NAMES:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def fetch(name: str, key: bytes, build: Callable[[], Arrays]) -> tuple[Arrays, str]:
    """The arrays of dataset `name` and their fingerprint, from the cache or else from `build`.

    `key` is everything that the arrays depend on. They come read-only either way, so that
    nothing works by luck of a cold cache. A damaged entry is built again; a cache that
    cannot be written costs one warning on standard error and nothing else.
    """
    folder = cache_root() / "datasets" / f"{name}-{hashlib.sha256(key).hexdigest()[:24]}"
    if (found := _read(folder)) is not None:
        return found
    arrays = build()
    for array in arrays.values():
        array.setflags(write=False)
    mark = fingerprint(arrays)
    try:
        _write(folder, arrays, mark)
    except (OSError, UserError) as error:
        print(
            f"warning: {name} is not cached in {folder.parent}, so the next start decodes it "
            f"again: {error} (TRUNK_CACHE_DIR chooses another folder)",
            file=sys.stderr,
        )
    return arrays, mark


def _read(folder: Path) -> tuple[Arrays, str] | None:
    """A cached dataset, or None where it is absent, truncated or not what was written."""
    try:
        mark = reading.json_file(folder / _META)["fingerprint"]
        arrays = {
            # A plain array on the mapped file: np.memmap's own type would spread to results.
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(
                np.ndarray
            )
            for name in NAMES
        }
    except (OSError, ValueError, EOFError, KeyError, TypeError, RecursionError, UserError):
        return None
    # Reading all of it costs a tenth of a second per 100 MB, and a run's manifest states
    # this fingerprint: it must be that of the data, not of what the data once was.
    return (arrays, mark) if fingerprint(arrays) == mark else None


def _write(folder: Path, arrays: Arrays, mark: str) -> None:
    """Make `folder`, whole whenever it is there."""
    for left in folder.parent.glob(".*.tmp"):  # of processes that were killed
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    if folder.exists():  # damaged
        shutil.rmtree(folder)
    try:
        with new_folder(folder) as aside:
            for name, array in arrays.items():
                with open(aside / f"{name}.npy", "wb") as file:
                    np.save(file, array, allow_pickle=False)
            (aside / _META).write_text(json.dumps({"fingerprint": mark}))
    except UserError:
        if _read(folder) is None:  # no other process was quicker
            raise
