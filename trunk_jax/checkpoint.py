"""Training state on disk, with Orbax: the last and the best of a stage, and where it stands."""

import hashlib
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from data import runfolder
from data.epochs import Position, position_from_json
from data.errors import UserError
from trunk_jax import devices, hosts

SECONDS_BETWEEN = 10.0  # saving takes a quarter of a second; short epochs share a checkpoint


class Checkpoints:
    """The checkpoints of one stage (a node's phase). Each save is complete or absent.

    Orbax notices damage only in the middle of a restore, and leaves a page of warnings. So a
    save ends with a seal, a file that tells the epoch, a digest of all files and the arrays
    in them, and nothing is restored that does not agree with it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._seal = self.folder / "seal.json"
        self._manager: ocp.CheckpointManager | None = None
        self._saved = time.monotonic()

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
            return
        arguments = ocp.args.Composite(
            last=ocp.args.StandardSave(_by_name(last)),
            best=ocp.args.StandardSave(_by_name(best)),
            position=ocp.args.JsonSave(asdict(position)),
        )
        self._open().save(position.epoch, args=arguments, force=True)
        seal = {
            "epoch": position.epoch,
            "sha256": _digest(self.folder / str(position.epoch)),
            "arrays": _arrays(last, best),
        }
        runfolder.write_json(self._seal, seal)
        self._saved = time.monotonic()

    def restore(self, last: Any, best: Any) -> tuple[Any, Any, Position] | None:
        """(last, best, position) with the structure of the given values; None if none was saved.

        UserError if the checkpoint is damaged or of another network.
        """
        if not self._seal.exists():
            shutil.rmtree(self.folder, ignore_errors=True)  # a first save that was cut short
            return None
        try:
            seal = runfolder.read_json(self._seal)
            for folder in self.folder.glob("[0-9]*"):
                if int(folder.name) > seal["epoch"]:
                    shutil.rmtree(folder)  # a save that was cut short
            if _digest(self.folder / str(seal["epoch"])) != seal["sha256"]:
                raise ValueError("it is damaged")
            if seal["arrays"] != _arrays(last, best):
                raise ValueError("it is of another network")
            restored = self._open().restore(
                seal["epoch"],
                args=ocp.args.Composite(
                    last=ocp.args.StandardRestore(_shapes(last)),
                    best=ocp.args.StandardRestore(_shapes(best)),
                    position=ocp.args.JsonRestore(),
                ),
            )
            position = position_from_json(restored.position)
            return _like(last, restored.last), _like(best, restored.best), position
        except Exception as error:  # Orbax raises a different type for each way to be damaged
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"the checkpoint {self.folder} cannot be read ({reason}); remove that folder to "
                "train this stage again"
            ) from error

    def close(self) -> None:
        """Release the folder."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None


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
