"""Compiled programs, and what tuning found, kept on disk between processes."""

import os

import jax

from data.images import cache


def use(platform: str | None = None) -> None:
    """Keep programs in the user's cache folder, on an accelerator.

    There a first epoch is mostly compiling: XLA times several kernels for each convolution. JAX
    keeps both the programs and the kernels that were chosen, under keys that hold versions, flags
    and the device. Programs that took less than a second are not kept. Where the user has named a
    folder (JAX_COMPILATION_CACHE_DIR) that one is used. On a CPU nothing is kept: programs for one
    processor can fail on another that looks alike.

    `platform`: `cpu`, `gpu` or `tpu`; by default that of JAX's devices.
    """
    if (platform or jax.default_backend()) == "cpu" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = cache.optional_root()  # without one, programs are compiled at each start
    if root is not None:
        jax.config.update("jax_compilation_cache_dir", str(root / "programs"))
