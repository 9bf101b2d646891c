"""The proof that both frameworks compute the same TRUNK, and conversion between them."""

import runpy
from pathlib import Path

# by its place: an import would run a file of that name in the user's own folder
runpy.run_path(str(Path(__file__).parents[1] / "trunk_sisters.py"))["check"]()

from trunk_jax.machine import xla  # noqa: E402 (ours, as was just checked)

xla.quiet()  # before JAX loads, which the commands here import first
