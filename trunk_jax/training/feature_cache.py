"""A node's inputs, computed once and kept while the node is trained.

A node's ancestors are frozen. Where no random augmentation comes before them they give the
same features for an image in every epoch, so those are computed once, if they fit into
`SHARE` of the memory that is free, and on a CPU into `MOST`. Otherwise the ancestors run
inside each training step.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from data.images.augmentation import Augmentation
from data.images.on_disk import OnDisk
from trunk_jax.machine import devices, memory
from trunk_jax.training.fit import Program, inputs, within
from trunk_jax.training.source import Source
from trunk_jax.training.windows import windows

SHARE = 0.25
MOST = 2**32  # bytes: with it a training of SVHN stays below 8 GiB, however much is free
BATCH = 128


def cached_source(
    program: Program,
    source: Source,
    policy: Augmentation,
    passes: int,
    report: Callable[..., None],
) -> Source:
    """The source with its node's inputs computed, where that is right, worth it and possible.

    Args:
      program: of the training.
      source: the images and the node's ancestors.
      policy: the augmentation that the passes use.
      passes: how often each input will be asked for.
      report: told in a `note` when memory is too short.

    """
    if not source.above or policy or passes < 2:
        return source
    mine = np.flatnonzero(np.asarray(source.targets) >= 0)
    one = jax.eval_shape(
        lambda images, index: inputs(program, replace(source, images=images), policy, index, {}),
        jax.ShapeDtypeStruct(source.images.shape, np.uint8),  # they may be on disk
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    count = -(-len(mine) // BATCH) * BATCH
    needed, room = count * one.size * one.dtype.itemsize, memory.available()
    limits = (
        [] if room is None else [(SHARE * room, f"{SHARE:.0%} of the {room / 1e9:.1f} GB free")]
    )
    if jax.default_backend() == "cpu":
        limits.append((MOST, f"the {MOST / 1e9:.1f} GB that a CPU may use for it"))
    if limits and needed > min(limits)[0]:
        report(
            note=f"inputs not kept: {needed / 1e9:.1f} GB is more than {min(limits)[1]}; the "
            "ancestors run in every step"
        )
        return source
    index = np.zeros(count, np.int32)
    index[: len(mine)] = mine
    kept = _compute(program, source, index.reshape(-1, BATCH), one)
    rows = np.zeros(len(source.targets), np.int32)
    rows[mine] = np.arange(len(mine), dtype=np.int32)
    images = source.images
    if isinstance(images, OnDisk):  # none of which is needed any more
        images = jnp.zeros((0, *images.shape[1:]), jnp.uint8)
    return replace(source, images=images, above=(), cached=kept, cached_rows=jnp.asarray(rows))


def _compute(
    program: Program, source: Source, index: Int[np.ndarray, "steps b"], one: jax.ShapeDtypeStruct
) -> Float[Array, "n h w c"]:
    kept = jnp.zeros((index.size, *one.shape[1:]), one.dtype)
    kept = devices.put(program.mesh, kept)
    for window in windows(program.mesh, source, index, {}):
        for start, stop in within(window, len(index)):
            kept = _fill(program, kept, window.source, window.index, start, stop)
            jax.block_until_ready(kept)
    return kept


@partial(jax.jit, static_argnames=("program",), donate_argnames=("kept",))
def _fill(
    program: Program,
    kept: Float[Array, "n h w c"],
    source: Source,
    index: Int[Array, "steps b"],
    start: Array,
    stop: Array,
) -> Float[Array, "n h w c"]:
    def body(step, kept):
        x = inputs(program, source, Augmentation(), index[step], {})
        kept = lax.dynamic_update_slice_in_dim(kept, x, step * index.shape[1], 0)
        return devices.whole(program.mesh, kept)

    return lax.fori_loop(start, stop, body, kept)
