"""2x2 max pooling whose gradient is a comparison.

XLA derives it as a scatter, which on the CPU takes longer than the convolution before it.
Without gradients the pool stays a window reduction: XLA's CPU backend makes one program of
it and the layers around it.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """torch.nn.MaxPool2d(2): non-overlapping 2x2 windows; an odd last row or column is left out.

    The gradient goes to the first maximum of a window in row order, as in PyTorch.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _even(x[:, :height, :width])


@jax.custom_vjp
def _even(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _forward(x):
    first, second, third, fourth = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    y = jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))
    # which pixel gave the value: the first that equals it
    place = jnp.where(third == y, jnp.uint8(2), jnp.uint8(3))
    place = jnp.where(first == y, jnp.uint8(0), jnp.where(second == y, jnp.uint8(1), place))
    return y, place


def _backward(place, dy):
    b, h, w, c = dy.shape
    pixel = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
    dx = jnp.where(place[:, :, None, :, None] == pixel, dy[:, :, None, :, None], 0)
    return (dx.reshape(b, 2 * h, 2 * w, c),)


_even.defvjp(_forward, _backward)
