"""Batch normalisation in train mode, its gradient written out.

The gradient that JAX derives goes back through the mean and the variance one after the
other and reads a layer's maps twice as often as this; on a CPU those reads are most of it.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from trunk_jax.layers import forms

Channels = Float[Array, " c"]


def normalise(
    x: Float[Array, "b h w c"],
    scale: Channels,
    bias: Channels,
    eps: float,
    valid: Bool[Array, " b"] | None,
) -> tuple[Float[Array, "b h w c"], Channels, Channels, Float[Array, ""]]:
    """(x normalised by its own moments, mean, biased variance, number of values in each).

    Moments are those of the valid images. No gradient flows through the moments returned.
    """
    if valid is None:
        valid = jnp.ones(x.shape[0], bool)
        n = jnp.asarray(x.shape[0] * x.shape[1] * x.shape[2], x.dtype)
    else:
        n = valid.sum().astype(x.dtype) * (x.shape[1] * x.shape[2])
    y, mean, var = _normalise(x, scale, bias, valid.astype(x.dtype), n, eps)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var), n


def _total(x: Float[Array, "b h w c"], weight: Float[Array, " b"] | None = None) -> Channels:
    """Sum of each channel: image by image, then over images.

    A single float32 sum over 200,000 values would lose three digits.
    """
    each = x.sum((1, 2))
    return (each if weight is None else each * weight[:, None]).sum(0)


def _forward(x, scale, bias, weight, n, eps):
    mean = _total(x, weight) / n
    if forms.now().one_pass:
        var = jnp.maximum(_total(jnp.square(x), weight) / n - jnp.square(mean), 0)
    else:  # two passes, the variance about the mean
        var = _total(jnp.square(x - mean), weight) / n
    inverse = jax.lax.rsqrt(var + eps)
    y = (x - mean) * (scale * inverse) + bias
    return (y, mean, var), (x, scale, weight, n, mean, inverse)


def _backward(eps, saved, gradients):
    x, scale, weight, n, mean, inverse = saved
    dy = gradients[0]
    dbias = _total(dy)
    dscale = _total(dy * (x - mean)) * inverse
    # each valid image moved the mean and the variance by its share
    moved = (dbias + (x - mean) * (inverse * dscale)) / n
    dx = (scale * inverse) * (dy - weight[:, None, None, None] * moved)
    return dx, dscale, dbias, jnp.zeros_like(weight), jnp.zeros_like(n)


_normalise = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(5,))
_normalise.defvjp(_forward, _backward)
