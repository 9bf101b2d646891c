"""`python -m trunk_jax.train`: grow and train a tree, and evaluate it once on test."""

import sys
from dataclasses import replace
from functools import partial

from data.errors import run_command
from data.options import train_options
from data.training import train


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags say. UserError for anything a user can put right."""
    options = train_options("jax", arguments)
    from trunk_jax.run import FRAMEWORK  # after the flags are checked: JAX takes seconds to load

    train(replace(FRAMEWORK, grow=partial(FRAMEWORK.grow, siblings=options.siblings)), options)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
