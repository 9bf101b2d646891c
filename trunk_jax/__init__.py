"""TRUNK, the tree of small CNNs for low-power image classification, in JAX and Flax."""

import trunk_sisters

trunk_sisters.check()

from trunk_jax.machine import xla  # noqa: E402 (ours, as was just checked)

xla.quiet()  # before JAX loads, which reads it then
