"""Training state on disk: the last and the best of a stage, and where it stands."""

import copy
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from data.base import interrupts, reading, writing
from data.base.errors import UserError
from data.training.epochs import Position, position_from_json
from trunk_torch_ref.training.state import TrainingState

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

    def save(self, last: TrainingState, best: nn.Module, position: Position, final: bool) -> None:
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
            writing.write_bytes(self.file, buffer.getvalue())
            self._saved, self._unsaved = time.monotonic(), None

    def restore(self, last: TrainingState, best: nn.Module) -> Position | None:
        """Load what was saved into `last` and `best`; the position, or None if none was saved.

        UserError if the file is damaged or of another network.
        """
        if not self.file.exists():
            return None
        try:
            reading.need_plain_archive(self.file)
            content = torch.load(self.file, map_location="cpu", weights_only=True)
            position = position_from_json(content["position"])
            _need_like(content["best"], best.state_dict(), "best")
            _need_like(content["last"], last.state_dict(), "last", skip=("state",))
            _need_moments(content["last"]["optimizer"], last)
            last.load_state_dict(content["last"])
            best.load_state_dict(content["best"])
        except Exception as error:  # each way to be damaged raises a different type
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"the checkpoint {self.file} cannot be read ({reason}); remove that file to "
                "train this stage again"
            ) from error
        return position


def _need_like(value: Any, wanted: Any, at: str, skip: tuple[str, ...] = ()) -> None:
    """ValueError where a value has other keys, types or shapes than the one wanted."""
    if isinstance(wanted, Mapping):
        if not isinstance(value, Mapping) or value.keys() != wanted.keys():
            raise ValueError(f"{at} has other entries than this run's")
        for key in wanted.keys() - set(skip):  # a new optimiser has no state yet
            _need_like(value[key], wanted[key], f"{at}.{key}", skip)
    elif isinstance(wanted, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(wanted):
            raise ValueError(f"{at} has another length than this run's")
        for place, (one, other) in enumerate(zip(value, wanted, strict=True)):
            _need_like(one, other, f"{at}.{place}")
    elif isinstance(wanted, Tensor):
        same = isinstance(value, Tensor) and value.shape == wanted.shape
        if not same or value.dtype != wanted.dtype or value.layout != wanted.layout:
            raise ValueError(f"{at} is another tensor than this run's")
        if not torch.isfinite(value).all():
            raise ValueError(f"{at} holds NaN or infinite values")
    else:
        numbers = {type(value), type(wanted)} == {int, float}  # a rate of 1 that became 0.1
        if type(value) is not type(wanted) and not numbers:
            raise ValueError(f"{at} is {value!r:.80}, not like {wanted!r:.80}")


def _need_moments(optimizer: Mapping[str, Any], last: TrainingState) -> None:
    """ValueError where the optimiser's state is not of tensors of its parameters' shapes."""
    parameters = [p for group in last.optimizer.param_groups for p in group["params"]]
    state = optimizer["state"]
    if not isinstance(state, Mapping) or not set(state) <= set(range(len(parameters))):
        raise ValueError("the optimiser's state is of other parameters")
    for place, moments in state.items():
        for name, value in moments.items():
            step = name == "step" and isinstance(value, Tensor) and value.numel() == 1
            none = name == "momentum_buffer" and value is None
            if not step and not none:
                _need_like(value, parameters[place].detach(), f"{name} of parameter {place}")
