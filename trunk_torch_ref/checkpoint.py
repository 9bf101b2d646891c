"""Training state on disk: the last and the best of a stage, and where it stands."""

import io
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from data import runfolder
from data.epochs import Position, position_from_json
from data.errors import UserError
from trunk_torch_ref.fit import State
from trunk_torch_ref.nodes import Node

SECONDS_BETWEEN = 10.0  # short epochs share a checkpoint


class Checkpoints:
    """The checkpoint of one stage (a node's phase): a file that is whole or absent."""

    def __init__(self, folder: Path):
        self.file = folder / "checkpoint.pt"
        self._saved = time.monotonic()

    def save(self, last: State, best: Node, position: Position, final: bool) -> None:
        """Store a stage's state after an epoch; skipped when the previous save is recent."""
        if not final and time.monotonic() - self._saved < SECONDS_BETWEEN:
            return
        content = {
            "last": last.state_dict(),
            "best": best.state_dict(),
            "position": asdict(position),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        runfolder.write_bytes(self.file, buffer.getvalue())
        self._saved = time.monotonic()

    def restore(self, last: State, best: Node) -> Position | None:
        """Load what was saved into `last` and `best`; the position, or None if none was saved.

        UserError if the file is damaged or of another network.
        """
        if not self.file.exists():
            return None
        try:
            # torch.load notices a truncated file but not a changed byte; the zip's checksums do.
            with zipfile.ZipFile(self.file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"{damaged} has a wrong checksum")
            content = torch.load(self.file, map_location="cpu", weights_only=True)
            position = position_from_json(content["position"])
            last.load_state_dict(content["last"])
            best.load_state_dict(content["best"])
        except Exception as error:  # each way to be damaged raises a different type
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"the checkpoint {self.file} cannot be read ({reason}); remove that file to "
                "train this stage again"
            ) from error
        return position
