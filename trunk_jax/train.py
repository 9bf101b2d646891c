"""`python -m trunk_jax.train`: grow and train a tree, and evaluate it once on test."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.base import interrupts
from data.base.errors import run_command
from data.run import seeds
from data.run.options import TrainOptions
from data.training.train import train
from trunk_jax.machine import xla

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags say. UserError for anything a user can put right."""
    runs = seeds.runs("jax", arguments)
    interrupts.resumable("python -m trunk_jax.train", arguments, "--resume")
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
    xla.set_flags(xla.flags(deterministic=options.deterministic, autotune=options.autotune))
    from trunk_jax.machine import backend  # after the flags are checked: JAX takes seconds to load

    backend.start(distributed=options.distributed)
    from trunk_jax.framework import FRAMEWORK
    from trunk_jax.machine import compile_cache, devices, hosts
    from trunk_jax.training.grow import grow

    framework = FRAMEWORK
    if options.siblings != "auto":
        framework = replace(FRAMEWORK, grow=partial(grow, siblings=options.siblings))

    def fingerprint() -> str:
        return options.load().fingerprint

    with devices.using(devices.choose(options.devices, options.distributed)):
        compile_cache.use()
        hosts.agree("the flags", lambda: repr((options.flags, options.devices)))
        hosts.agree("the dataset", fingerprint)
        with hosts.share(options.out) as out:
            report = options.json if hosts.first() else None
            train(framework, replace(options, out=out, json=report), on_epoch, show)
            return then(out)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
