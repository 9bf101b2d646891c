"""Training state on disk, with Orbax: the last and the best of a stage, and where it stands."""

import hashlib
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from data.base import interrupts, writing
from data.base.errors import LibraryFailed, UserError, out_of_memory
from data.run import runfolder
from data.training.epochs import Position, position_from_json
from trunk_jax.machine import devices, hosts

SECONDS_BETWEEN = 10.0  # saving takes a quarter of a second; short epochs share a checkpoint
_OVERHEAD = 2**20  # bytes; what Orbax's many small files take besides the arrays


class Checkpoints:
    """The checkpoints of one stage (a node's phase). Each save is complete or absent.

    Orbax notices damage only in the middle of a restore, and leaves a page of warnings. So a
    save ends with a seal, a file that tells the epoch, a digest of all files and the arrays
    in them, and nothing is restored that does not agree with it.

    As a context it saves, when it is left because of a signal, the last epoch that was done.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._seal = self.folder / "seal.json"
        self._manager: ocp.CheckpointManager | None = None
        self._saved = time.monotonic()
        self._unsaved: tuple[Any, Any, Position] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(value, interrupts.STOPPED) and self._unsaved is not None:
                self._write(*self._unsaved)
        finally:
            self.close()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # 2: the one before is the sealed one until the new one is
            self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=hosts.alone(),
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def save(self, last: Any, best: Any, position: Position, final: bool) -> None:
        """Store a stage's state after an epoch; skipped when the previous save is recent.

        Of several processes, which all have the same, the first stores it.
        """
        if not hosts.first():
            return
        if not final and time.monotonic() - self._saved < SECONDS_BETWEEN:
            last = jax.tree.map(jnp.copy, last)  # its own arrays are donated to the next epoch
            self._unsaved = last, best, position
        else:
            self._write(last, best, position)

    def _write(self, last: Any, best: Any, position: Position) -> None:
        with interrupts.held():
            arguments = ocp.args.Composite(
                last=ocp.args.StandardSave(_by_name(last)),
                best=ocp.args.StandardSave(_by_name(best)),
                position=ocp.args.JsonSave(asdict(position)),
            )
            size = sum(leaf.nbytes for leaf in jax.tree.leaves((last, best)))
            writing.reserve(self.folder, size + _OVERHEAD)
            self._save_all(position.epoch, arguments)
            seal = {
                "epoch": position.epoch,
                "sha256": _digest(self.folder / str(position.epoch)),
                "arrays": _arrays(last, best),
            }
            writing.write_json(self._seal, seal)
            self._saved, self._unsaved = time.monotonic(), None

    def _save_all(self, epoch: int, arguments: ocp.args.Composite) -> None:
        """Orbax's own save. UserError if it cannot be written: nothing of it is left then."""
        with _quiet():
            self._save_with_orbax(epoch, arguments)

    def _save_with_orbax(self, epoch: int, arguments: ocp.args.Composite) -> None:
        try:
            self._open().save(epoch, args=arguments, force=True)
        except Exception as error:  # Orbax raises a different type in each of its threads
            with suppress(Exception):  # it would fail once more, and the first is told
                self.close()
            self._manager = None
            self._clear(epoch - 1)
            _forget_threads()
            if out_of_memory(error):
                raise LibraryFailed(
                    f"out of memory for saving {self.folder}; free some, and go on with --resume"
                ) from error
            reason = next(filter(None, map(_system, _causes(error))), "the disk refuses it")
            raise LibraryFailed(
                f"cannot write {self.folder}: {reason}; make room for it, and go on with --resume"
            ) from error

    def _clear(self, epoch: int) -> None:
        """Remove saves after `epoch`, and such as were cut short."""
        for folder in self.folder.glob("[0-9]*"):
            if not folder.name.isdecimal() or int(folder.name) > epoch:
                shutil.rmtree(folder, ignore_errors=True)  # a thread may write still

    def restore(self, last: Any, best: Any) -> tuple[Any, Any, Position] | None:
        """(last, best, position) with the structure of the given values; None if none was saved.

        UserError if the checkpoint is damaged or of another network.
        """
        if not self._seal.exists():
            shutil.rmtree(self.folder, ignore_errors=True)  # a first save that was cut short
            return None
        try:
            seal = runfolder.read_json(self._seal)
            self._clear(seal["epoch"])
            if _digest(self.folder / str(seal["epoch"])) != seal["sha256"]:
                raise ValueError("it is damaged")
            if seal["arrays"] != _arrays(last, best):
                raise ValueError("it is of another network")
            arguments = ocp.args.Composite(
                last=ocp.args.StandardRestore(_shapes(last)),
                best=ocp.args.StandardRestore(_shapes(best)),
                position=ocp.args.JsonRestore(),
            )
            # a signal in its threads' loop would be lost, and be taken for damage
            with interrupts.held(), _quiet():
                restored = self._open().restore(seal["epoch"], args=arguments)
            position = position_from_json(restored.position)
            return _like(last, restored.last), _like(best, restored.best), position
        except Exception as error:  # Orbax raises a different type for each way to be damaged
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            _forget_threads()
            raise UserError(
                f"the checkpoint {self.folder} cannot be read ({reason}); remove that folder to "
                "train this stage again"
            ) from error

    def close(self) -> None:
        """Release the folder."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Orbax's threads print of an error, which is raised in ours as well.

    After LibraryFailed they are not heard again: the command ends, and they may still be running.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels = [logger.level for logger in loggers]

    def silent(_: object) -> None:
        pass

    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = silent, silent
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)  # absl's takes no notice of `disabled`
    failed = False
    try:
        yield
    except LibraryFailed:
        failed = True
        raise
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        for logger, level in zip(loggers, levels, strict=True):
            if not failed:
                logger.setLevel(level)


def _forget_threads() -> None:
    """Let what a failed save or restore leaves behind, coroutines, be collected without a word.

    That happens whenever it will, as late as at the end of the process.
    """
    before = sys.unraisablehook

    def hook(about: Any) -> None:
        code = getattr(about.object, "cr_code", None)
        orphan = "orbax" in code.co_filename if code else about.object is None
        if not orphan or (code is None and "Event loop is closed" not in str(about.exc_value)):
            before(about)

    sys.unraisablehook = hook


def _system(error: BaseException) -> str | None:
    """What the system said, if the error is its own or TensorStore's about it."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else getattr(error, "strerror", None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _digest(folder: Path) -> str:
    """SHA-256, in hex, over the names and contents of all files below a folder."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder)}\n".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _arrays(last: Any, best: Any) -> dict[str, str]:
    """Type and shape of every array, e.g. `float32[3, 3, 1, 16]`."""
    names = _by_name({"last": last, "best": best})
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in names.items()}


def _by_name(tree: Any) -> dict[str, Any]:
    # with several processes Orbax takes either arrays that all of them write, or NumPy's
    array = np.asarray if hosts.several() else jnp.asarray
    leaves, _ = jax.tree_util.tree_flatten_with_path(devices.here(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): array(leaf) for path, leaf in leaves
    }


def _shapes(tree: Any) -> dict[str, Any]:
    if hosts.several():
        return _by_name(tree)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _by_name(tree).items()
    }


def _like(tree: Any, values: dict[str, Any]) -> Any:
    structure = jax.tree.structure(tree)
    return jax.tree.unflatten(structure, [jnp.asarray(values[name]) for name in _by_name(tree)])
