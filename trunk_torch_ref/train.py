"""`python -m trunk_torch_ref.train`: grow and train a tree, and evaluate it once on test."""

import sys

from data.base.errors import run_command
from data.run.options import train_options
from data.training.train import train
from trunk_torch_ref.machine import settings


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags say. UserError for anything a user can put right."""
    options = train_options("torch", arguments)
    settings.apply()
    from trunk_torch_ref.framework import FRAMEWORK  # PyTorch takes seconds to load

    train(FRAMEWORK, options)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
