"""Training state on disk: the last and the best of a stage, and where it stands."""

import copy
import io
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from data import interrupts, runfolder
from data.epochs import Position, position_from_json
from data.errors import UserError
from trunk_torch_ref.fit import State
from trunk_torch_ref.nodes import Node

SECONDS_BETWEEN = 10.0  # short epochs share a checkpoint


class Checkpoints:
    """The checkpoint of one stage (a node's phase): a file that is whole or absent.

    As a context it saves, when it is left because of a signal, the last epoch that was done.
    """

    def __init__(self, folder: Path):
        self.file = folder / "checkpoint.pt"
        self._saved = time.monotonic()
        self._unsaved: dict[str, Any] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, interrupts.STOPPED) and self._unsaved is not None:
            self._write(self._unsaved)

    def save(self, last: State, best: Node, position: Position, final: bool) -> None:
        """Store a stage's state after an epoch; skipped when the previous save is recent."""
        content = {
            "last": last.state_dict(),
            "best": best.state_dict(),
            "position": asdict(position),
        }
        if not final and time.monotonic() - self._saved < SECONDS_BETWEEN:
            self._unsaved = copy.deepcopy(content)  # training goes on in these very tensors
        else:
            self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        with interrupts.held():
            buffer = io.BytesIO()
            torch.save(content, buffer)
            runfolder.write_bytes(self.file, buffer.getvalue())
            self._saved, self._unsaved = time.monotonic(), None

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
