"""TRUNK in plain PyTorch: the reference that `trunk_jax` is checked against."""
