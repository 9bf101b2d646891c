"""Progress of a training run on standard error: a live bar on a terminal, lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Reporter:
    """Call it with what `fit` reports; use it as a context so that the terminal is restored."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
                console=self._console,
                transient=True,
            )
        self._task: Any = None
        self._stage = ""
        self._began = 0.0
        self._first = 0.0

    def __enter__(self) -> "Reporter":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, soft_wrap=True, markup=False)

    def __call__(
        self,
        *,
        stage: str,
        epoch: int = 0,
        epochs: int = 0,
        share: float = 0.0,
        row: dict[str, Any] | None = None,
        note: str | None = None,
    ) -> None:
        """`share`: the part of the epoch that is done; `row`: its numbers once it is whole.

        `note`: instead of those, a line about the stage.
        """
        if note is not None:
            self.note(f"{stage}: {note}")
            return
        done = epoch - 1 + share
        if stage != self._stage:
            self._stage, self._began, self._first = stage, time.monotonic(), done
            if self._live:
                if self._task is not None:
                    self._live.remove_task(self._task)
                self._task = self._live.add_task(stage, total=epochs, left="")
        left = ""
        if done > self._first:
            rate = (time.monotonic() - self._began) / (done - self._first)
            left = f"{_duration(rate * (epochs - done))} left"
        if self._live:
            text = f"{stage}  epoch {epoch}/{epochs}"
            self._live.update(self._task, completed=done, description=text, left=left)
        if row is not None:
            self.note(
                f"{stage:<14} epoch {epoch:>3}/{epochs}  loss {row['train_loss']:.4f}  "
                f"train {100 * row['train_accuracy']:6.2f} %  "
                f"validation {100 * row['validation_accuracy']:6.2f} %  "
                f"{row['seconds']:7.1f} s  {left}"
            )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
