"""`python -m trunk_jax.evaluate RUN`: a finished run's accuracy, from its weights."""

import sys
from dataclasses import replace

from data.base.errors import run_command
from data.run.options import evaluate_options
from data.training.evaluate import evaluate


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the flags say. UserError for anything a user can put right."""
    options = evaluate_options("jax", arguments)
    from trunk_jax.machine import backend  # after the flags are checked: JAX takes seconds to load

    backend.start(distributed=options.distributed)
    from trunk_jax.framework import FRAMEWORK
    from trunk_jax.machine import compile_cache, devices, hosts

    with devices.using(devices.choose(options.devices, options.distributed)):
        compile_cache.use()
        hosts.agree("the flags", lambda: repr((options.split, options.devices)))
        with hosts.share(options.run) as run:
            report = options.json if hosts.first() else None
            evaluate(FRAMEWORK, replace(options, run=run, json=report))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
