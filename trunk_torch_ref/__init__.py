"""TRUNK in plain PyTorch: the reference that `trunk_jax` is checked against."""

import trunk_sisters

trunk_sisters.check()
