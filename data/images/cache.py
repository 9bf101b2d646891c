"""Decoded datasets on disk, as .npy files that map at once."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.base import reading, writing
from data.base.errors import UserError
from data.base.writing import new_folder

SPLITS = ("train", "test")
NAMES = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
Arrays = dict[str, np.ndarray]  # the keys are NAMES

_META = "meta.json"
_LONGEST = 32  # characters of a dataset's name in that of its folder
_ABANDONED = 3600.0  # seconds after which an unfinished folder has no writer any more


def cache_root() -> Path:
    """TRUNK_CACHE_DIR, else `trunk` in XDG_CACHE_HOME, else in ~/.cache.

    UserError if that is below a home folder, and there is none (a container's user without HOME
    and without an entry in /etc/passwd).
    """
    given = os.environ.get("TRUNK_CACHE_DIR")
    folder = given or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(folder).expanduser() / ("" if given else "trunk")
    except RuntimeError:
        raise UserError(
            f"{folder}: no such home folder; set TRUNK_CACHE_DIR to a folder for what is kept"
        ) from None


def optional_root() -> Path | None:
    """`cache_root`, or None where there is none, with one warning on standard error."""
    try:
        return cache_root()
    except UserError as error:
        _warn(f"nothing is kept for the next start ({error})")
        return None


@functools.cache
def _warn(text: str) -> None:
    """Once in a process."""
    print(f"warning: {text}", file=sys.stderr)


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
    arrays, mark, _ = fetch_described(name, key, lambda: (build(), None))
    return arrays, mark


def fetch_described(
    name: str,
    key: bytes,
    build: Callable[[], tuple[Arrays, Any]],
    others: Callable[[Any], Iterable[bytes]] = lambda about: (),
) -> tuple[Arrays, str, Any]:
    """As `fetch`, with what `build` found out about the arrays: plain JSON, kept with them.

    `others`: from what was found out, more keys under which the same arrays may be asked for.
    """
    root = optional_root()
    folder = root and root / "datasets" / _entry(name, key)
    if folder is not None:
        found = _read(folder)
        if found is None and (same := _same(folder)) is not None:
            found = _read(same)
        if found is not None:
            return found
    arrays, about = build()
    for array in arrays.values():
        array.setflags(write=False)
    mark = fingerprint(arrays)
    if folder is None:
        return arrays, mark, about
    try:
        _write(folder, arrays, mark, about)
        for other in others(about):
            writing.write_json(_link(folder.parent / _entry(name, other)), {"same": folder.name})
    except (OSError, UserError) as error:
        print(
            f"warning: {name} is not cached in {folder.parent}, so the next start decodes it "
            f"again: {error} (TRUNK_CACHE_DIR chooses another folder)",
            file=sys.stderr,
        )
        return arrays, mark, about
    with contextlib.suppress(OSError, ValueError):  # somebody has just deleted it
        arrays = _mapped(folder)  # what was built need not stay in memory
    return arrays, mark, about


def _entry(name: str, key: bytes) -> str:
    """The name of a dataset's folder, short enough for any disk and for `writing.leftovers`."""
    return f"{name[:_LONGEST]}-{hashlib.sha256(key).hexdigest()[:24]}"


def _link(folder: Path) -> Path:
    """The file that says which entry has the arrays of one that is not there itself."""
    return folder.with_name(f"{folder.name}.json")


def _same(folder: Path) -> Path | None:
    """The entry that has the arrays of this one, if it is known."""
    try:
        value = reading.json_file(_link(folder))
        reading.need(value, {"same": str})
    except ValueError:
        return None
    return folder.with_name(Path(value["same"]).name)


def _mapped(folder: Path) -> Arrays:
    """The arrays of an entry. OSError or ValueError where they cannot be read."""
    return {
        # A plain array on the mapped file: np.memmap's own type would spread to results.
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        for name in NAMES
    }


def _read(folder: Path) -> tuple[Arrays, str, Any] | None:
    """A cached dataset, or None where it is absent, truncated or not what was written."""
    try:
        meta = reading.json_file(folder / _META)
        mark, about = meta["fingerprint"], meta.get("about")
        arrays = _mapped(folder)
    except (
        *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError),
        *(RecursionError, UserError),
    ):
        return None
    # Reading all of it costs a tenth of a second per 100 MB, and a run's manifest states
    # this fingerprint: it must be that of the data, not of what the data once was.
    return (arrays, mark, about) if fingerprint(arrays) == mark else None


def _write(folder: Path, arrays: Arrays, mark: str, about: Any) -> None:
    """Make `folder`, whole whenever it is there."""
    # those of machines that share the folder tell nothing of their processes, hence the age
    for left in writing.leftovers(folder.parent, r".+-[0-9a-f]{24}(\.json)?"):
        with contextlib.suppress(OSError):  # another process does the same
            if time.time() - left.stat().st_mtime > _ABANDONED:
                writing.remove(left)
    if folder.exists():  # damaged
        shutil.rmtree(folder)
    meta = {"fingerprint": mark} | ({} if about is None else {"about": about})
    try:
        with new_folder(folder) as aside:
            for name, array in arrays.items():
                with open(aside / f"{name}.npy", "wb") as file:
                    np.save(file, array, allow_pickle=False)
            (aside / _META).write_text(json.dumps(meta))
    except UserError:
        if _read(folder) is None:  # no other process was quicker
            raise
