"""Differences to plant in JAX: those of the parity checks, and some that are no mistakes.

Each is a plausible difference between two frameworks. `python -m parity.study --fault NAME` plants
one, and the study should find it, or show that it makes no difference.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from data.base.errors import UserError
from parity.checks import faults
from trunk_jax.machine import memory

# Of the parity checks' faults, those that a training can have; the others are of conversion, of
# routing, or of the order of layers, and need no study to be seen.
OF_CHECKS = (
    "batch-norm eps 1e-3",
    "batch-norm eps outside the root",
    "batch-norm momentum read the other way",
    "biased running variance",
    "missing ReLU6 cap",
    '"SAME" padding at stride 2',
    "shortcut left out",
    "convolution in bfloat16",
    "dropout left on in eval mode",
    "dropout not scaled",
    "decoupled weight decay",
    "Adam's eps inside the root",
    "Adam's bias correction in float32",
    "momentum dampened",
    "cosine stopped at T_max",
    "learning-rate step an epoch early",
)


def slug(name: str) -> str:
    """A name as it is typed: `biased-running-variance`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def names() -> list[str]:
    """All that can be planted, as they are typed."""
    return [slug(name) for name in OF_CHECKS]


def find(name: str) -> Callable[[], Any]:
    """What plants it. UserError, with the choices, if there is none of that name."""
    table = {slug(fault.name): fault.plant for fault in faults.faults()}
    if name not in names():
        raise UserError(f"no fault {name!r}; the faults: {', '.join(names())}")
    return table[name]


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Inside, JAX has the fault; compiled programs from before and after are forgotten."""
    if name is None:
        yield
        return
    _forget()
    with find(name)():
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    memory.forget()
    jax.clear_caches()


__all__ = ["find", "names", "planted", "slug"]
