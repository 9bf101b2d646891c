"""A batch of images a few at a time, so that what is made of them stays in a core's cache."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


def scan(
    step: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, arrays: Any, size: int
) -> tuple[Carry, Any]:
    """`lax.scan` of `step` over `size` images at a time, the last time over what is left.

    The first axis of all arrays, those that a step returns among them, is that of images.
    """
    count = jax.tree.leaves(arrays)[0].shape[0]
    whole = count - count % size
    parts = []
    if whole:
        pieces = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), arrays)
        carry, out = lax.scan(step, carry, pieces)
        parts.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out))
    if whole < count:
        carry, out = step(carry, jax.tree.map(lambda x: x[whole:], arrays))
        parts.append(out)
    if len(parts) == 1:
        return carry, parts[0]
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
