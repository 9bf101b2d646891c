"""Progress of long work on standard error: a live bar on a terminal, lines elsewhere.

`Reporter` is for trainings, `counting` for all that goes through so many bytes or images,
`working` for what is one call, `watching` for what waits for other processes.
"""

import math
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

_FIRST_S = 2.0  # seconds after which work is long enough for a first line
_STEP_S = 2.0  # seconds after which a single step is long enough for its line
_NEXT_S = 10.0  # seconds between two lines
_BAR_S = 0.1  # seconds between two states of a bar
_clock = time.monotonic
_shown: list[Callable[[str], None]] = []  # what is live on the terminal: takes a step's words
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """What is counted: so many make one of `name`, shown with so many decimals."""

    name: str
    size: int = 1
    decimals: int = 0


BYTES = Unit("MB", 10**6, 1)
IMAGES = Unit("images")


@contextmanager
def counting(
    what: str, total: int | None, unit: Unit = IMAGES, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show how far work is that goes through `total` (None: not known) of a unit.

    `done` of them were there before. Yields a function to be called with how many more are done.

        with counting("decoding svhn", len(records)) as advance:
            for record in records:
                decode(record)
                advance(1)
    """
    console = Console(file=sys.stderr, highlight=False)
    due = _clock() if console.is_terminal else _clock() + _FIRST_S
    began, first = math.inf, done  # of the rate: once the first are there, with workers started
    live = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    task = live.add_task(what, total=total, completed=done, state="")
    outer = _shown[-1] if _shown else None

    def advance(more: int) -> None:
        nonlocal done, due, began, first
        done += more
        now = _clock()
        if began == math.inf:
            began, first = now, done
        if now < due:
            return
        due = now + (_BAR_S if console.is_terminal else _NEXT_S)
        state = _state(done, total, unit, (done - first) / max(now - began, 1e-9))
        if outer is not None:
            outer(f"{what}: {state}")
        elif console.is_terminal:
            live.update(task, completed=done, state=state)
        else:
            console.print(f"{what}: {state}", soft_wrap=True, markup=False)

    with live if console.is_terminal and outer is None else nullcontext():
        yield advance
    if outer is not None:
        outer("")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done where it takes more than a moment.

    On a terminal it is shown while it lasts, within what is live there already; elsewhere it is a
    line, once it has taken 2 seconds. A worker process says nothing: its parent does.

    with working("classifying 10,000 images"):
        ...
    """
    if multiprocessing.parent_process() is not None:
        yield
        return
    console = Console(file=sys.stderr, highlight=False)
    if console.is_terminal:
        with _on_terminal(console, what):
            yield
        return
    line = partial(console.print, f"{what} ...", soft_wrap=True, markup=False)
    timer = threading.Timer(_STEP_S, line)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a line that has begun comes before what follows


@contextmanager
def _on_terminal(console: Console, what: str) -> Iterator[None]:
    if _shown:  # two live displays would write over each other
        _shown[-1](what)
        try:
            yield
        finally:
            _shown[-1]("")
        return
    with console.status(Text(what)) as status, _showing(lambda w: status.update(Text(w or what))):
        yield


@contextmanager
def _showing(say: Callable[[str], None]) -> Iterator[None]:
    """Let what is live on the terminal show the words of each `working` within."""
    _shown.append(say)
    try:
        yield
    finally:
        _shown.remove(say)


@contextmanager
def watching(state: Callable[[], str]) -> Iterator[None]:
    """Off a terminal print what `state()` says every 10 seconds; on one, nothing.

    It is for work that waits for other processes, and cannot say itself that time has passed.

        with watching(lambda: f"{len(results)} of {len(work)} tasks"):
            ...
    """
    console = Console(file=sys.stderr, highlight=False)
    if console.is_terminal:
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_NEXT_S):
            console.print(state(), soft_wrap=True, markup=False)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def counted(what: str, items: Iterable[T], total: int | None) -> Iterator[T]:
    """The items, one by one, with `counting`."""
    with counting(what, total) as advance:
        for item in items:
            yield item
            advance(1)


def _state(done: int, total: int | None, unit: Unit, rate: float) -> str:
    """How many of how many; and how quickly and how long still, where there is a rate."""
    number = f",.{unit.decimals}f"
    whole = "" if total is None else f" of {total / unit.size:{number}}"
    state = f"{done / unit.size:{number}}{whole} {unit.name}"
    if rate > 0:
        state += f", {rate / unit.size:{number}} {unit.name}/s"
        if total is not None:
            state += f", {duration((total - done) / rate)} left"
    return state


class Reporter:
    """Call it with what `fit` reports; use it as a context so that the terminal is restored.

    Off a terminal an epoch is a line, and one that is long a line every 10 seconds besides.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
                TextColumn("{task.fields[step]}", markup=False),
                console=self._console,
                transient=True,
            )
        self._task: Any = None
        self._stage = ""
        self._began = 0.0
        self._first = 0.0
        self._said = _clock()  # when there was a line

    def __enter__(self) -> "Reporter":
        if self._live:
            self._live.start()
            _shown.append(self._step)
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            _shown.remove(self._step)
            self._live.stop()

    def note(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, soft_wrap=True, markup=False)
        self._said = _clock()

    def _step(self, what: str) -> None:
        """Show what is done besides the steps of an epoch; nothing if empty."""
        assert self._live is not None  # only then it is in `_shown`
        if self._task is None:  # before the first stage
            self._task = self._live.add_task("", total=None, left="", step=what)
        self._live.update(self._task, step=what, refresh=True)

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
            self._stage, self._began, self._first = stage, _clock(), done
            if self._live:
                if self._task is not None:
                    self._live.remove_task(self._task)
                self._task = self._live.add_task(stage, total=epochs, left="", step="")
        left = ""
        if done > self._first:
            rate = (_clock() - self._began) / (done - self._first)
            left = f"{duration(rate * (epochs - done))} left"
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
        elif self._live is None and _clock() >= self._said + _NEXT_S:
            self.note(
                f"{stage:<14} epoch {epoch:>3}/{epochs}  {share:4.0%} of it{left and f'  {left}'}"
            )


def duration(seconds: float) -> str:
    """Seconds as a clock shows them.

    Example: `duration(75.2), duration(3675)` is `("1:15", "1:01:15")`.
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
