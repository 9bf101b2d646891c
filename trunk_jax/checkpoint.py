"""Training state on disk, with Orbax: the last and the best of a stage, and where it stands."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from data.epochs import Position, position_from_json
from data.errors import UserError

SECONDS_BETWEEN = 10.0  # saving takes a quarter of a second; short epochs share a checkpoint


class Checkpoints:
    """The checkpoints of one stage (a node's phase). Each save is complete or absent."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._manager: ocp.CheckpointManager | None = None
        self._saved = time.monotonic()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def save(self, last: Any, best: Any, position: Position, final: bool) -> None:
        """Store a stage's state after an epoch; skipped when the previous save is recent."""
        if not final and time.monotonic() - self._saved < SECONDS_BETWEEN:
            return
        arguments = ocp.args.Composite(
            last=ocp.args.StandardSave(_by_name(last)),
            best=ocp.args.StandardSave(_by_name(best)),
            position=ocp.args.JsonSave(asdict(position)),
        )
        self._open().save(position.epoch, args=arguments, force=True)
        self._saved = time.monotonic()

    def restore(self, last: Any, best: Any) -> tuple[Any, Any, Position] | None:
        """(last, best, position) with the structure of the given values; None if none was saved.

        UserError if the checkpoint is damaged or of another network.
        """
        if not self.folder.is_dir():
            return None
        try:
            manager = self._open()
            step = manager.latest_step()
            if step is None:
                return None
            restored = manager.restore(
                step,
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


def _by_name(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf)
        for path, leaf in leaves
    }


def _shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _by_name(tree).items()
    }


def _like(tree: Any, values: dict[str, Any]) -> Any:
    structure = jax.tree.structure(tree)
    return jax.tree.unflatten(structure, [values[name] for name in _by_name(tree)])
