"""`python -m trunk_torch_ref.evaluate RUN`: a finished run's accuracy, from its weights."""

import sys

from data.base.errors import run_command
from data.run.options import evaluate_options
from data.training.evaluate import evaluate
from trunk_torch_ref.machine import settings


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the flags say. UserError for anything a user can put right."""
    options = evaluate_options("torch", arguments)
    settings.apply()
    from trunk_torch_ref.framework import FRAMEWORK  # PyTorch takes seconds to load

    evaluate(FRAMEWORK, options)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
