"""`python -m trunk_torch_ref.train`: grow and train a tree, and evaluate it once on test."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from data.base import interrupts
from data.base.errors import run_command
from data.run import seeds
from data.run.options import TrainOptions
from data.training.train import train
from trunk_torch_ref.machine import settings

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags say. UserError for anything a user can put right."""
    runs = seeds.runs("torch", arguments)
    interrupts.resumable("python -m trunk_torch_ref.train", arguments, "--resume")
    seeds.train_all(runs, lambda one: carry_out(one, then=lambda folder: None))


def carry_out(
    options: TrainOptions,
    *,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    show: bool = True,
    then: Callable[[Path], T],
) -> T:
    """Train as `options` say; what `then` makes of the run folder.

    For `on_epoch` and `show` see `data.training.train.train`.
    """
    settings.apply()
    from trunk_torch_ref.framework import FRAMEWORK  # PyTorch takes seconds to load

    train(FRAMEWORK, options, on_epoch, show)
    return then(options.out)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
