"""`python -m trunk_jax.evaluate RUN`: a finished run's accuracy, from its weights."""

import sys
from dataclasses import replace

from data.errors import run_command
from data.evaluation import evaluate
from data.options import evaluate_options


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the flags say. UserError for anything a user can put right."""
    options = evaluate_options("jax", arguments)
    from trunk_jax import devices, hosts  # after the flags are checked: JAX takes seconds to load
    from trunk_jax.run import FRAMEWORK

    with devices.using(devices.choose(options.devices, options.distributed)):
        hosts.agree("the flags", lambda: repr((options.split, options.devices)))
        with hosts.share(options.run) as run:
            report = options.json if hosts.first() else None
            evaluate(FRAMEWORK, replace(options, run=run, json=report))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
