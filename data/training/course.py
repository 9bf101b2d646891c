"""The course of a stage: which epochs are left, and what follows the passes of each.

Each framework trains and validates in its own way; position, ties, the row of `metrics.jsonl` and
the report are the same for both.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from data.training.epochs import Position, metrics_row


@dataclass(frozen=True)
class Epoch:
    """An epoch under way.

    Attributes:
      number: counted from 1.
      last: whether no other follows.
      began: `time.perf_counter()` at its start, in seconds.
      report: told how far it is (`share`), and its numbers (`row`) at the end.

    """

    number: int
    last: bool
    began: float
    report: Callable[..., None]


def epochs_left(position: Position, epochs: int, report: Callable[..., None]) -> Iterator[Epoch]:
    """The epochs after `position`, each begun when it is asked for.

    Example: `[e.number for e in epochs_left(Position(), 2, print)]` is `[1, 2]`.
    """
    for number in range(position.epoch + 1, epochs + 1):
        tell = partial(report, epoch=number, epochs=epochs)
        yield Epoch(number, number == epochs, time.perf_counter(), tell)


def finish(
    epoch: Epoch,
    position: Position,
    ties: str,
    rate: float,
    trained: tuple[float, int, int],
    validated: tuple[float, float],
) -> Position:
    """The position after an epoch, whose numbers are reported.

    `rate`: the learning rate of its first step. `trained`: loss summed over images, right answers,
    images. `validated`: accuracy and mean loss. UserError if the training has diverged.
    """
    position = position.after(validated[0], ties)
    seconds = time.perf_counter() - epoch.began
    epoch.report(share=1.0, row=metrics_row(epoch.number, rate, trained, validated, seconds))
    return position
