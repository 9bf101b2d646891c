"""The proof that both frameworks compute the same TRUNK, and conversion between them."""

import trunk_sisters

trunk_sisters.check()

from trunk_jax.machine import xla  # noqa: E402 (ours, as was just checked)

xla.quiet()  # before JAX loads, which the commands here import first
