"""Speed: ours and PyTorch's side by side, one process each, in turns, on one machine."""

from trunk_jax.machine import xla

xla.quiet()  # before JAX loads, which the commands here import first
