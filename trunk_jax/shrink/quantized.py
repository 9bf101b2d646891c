"""Layers with int8 weights: a quarter of the bytes, one float scale an output channel.

A weight w of output channel o is q * s[o] with q = round(w / s[o]), -127 to 127, and
s[o] = max |w| / 127 over the channel. XLA's CPU backend has no fast code for int8, not even to
convert it, so on a CPU these layers are small rather than quick.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int8

from trunk_jax.layers.basic import Conv, Layer, Layout, Linear, Mode
from trunk_jax.layers.conv import conv
from trunk_jax.network.network import Network, merge, split


class QuantizedConv(Conv):
    """A convolution whose kernel is int8; it is computed in the type of its input."""

    LAYOUT: ClassVar[Layout] = Conv.LAYOUT | {"scale": ("scale", (0,))}

    def __init__(self, layer: Conv):
        self.kernel, self.scale = _quantized(layer.kernel[...])
        self.bias = layer.bias
        self.stride, self.padding, self.groups = layer.stride, layer.padding, layer.groups

    def apply(self, x: Float[Array, "b h w i"], mode: Mode) -> Float[Array, "b h2 w2 o"]:
        kernel = self.kernel[...].astype(x.dtype)
        y = conv(x, kernel, stride=self.stride, padding=self.padding, groups=self.groups)
        y = y * self.scale[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...]


class QuantizedLinear(Linear):
    """A linear layer whose kernel is int8.

    `dynamic`: its input is made int8 too, with one scale a row of the batch that is found
    anew in each call, and products are summed as whole numbers.
    """

    LAYOUT: ClassVar[Layout] = Linear.LAYOUT | {"scale": ("scale", (0,))}

    def __init__(self, layer: Linear, dynamic: bool):
        self.kernel, self.scale = _quantized(layer.kernel[...])
        self.bias = layer.bias
        self.dynamic = dynamic

    def apply(self, x: Float[Array, "b i"], mode: Mode) -> Float[Array, "b o"]:
        scale = self.scale[...].astype(x.dtype)
        if not self.dynamic:
            return (x @ self.kernel[...].astype(x.dtype)) * scale + self.bias[...]
        q, row = quantize_array(x, axis=1)
        whole = lax.dot(q, self.kernel[...], preferred_element_type=jnp.int32)
        return whole.astype(x.dtype) * (row * scale) + self.bias[...]


def quantize_array(x: Float[Array, "..."], axis: Any) -> tuple[Int8[Array, "..."], Array]:
    """(q, s) with x about q * s: one s for all that lies along `axis`, kept as ones in its shape.

    Rounding is to the nearest, halves to even; s is 1 where all is zero. On a GPU XLA's quotients
    of float32 are good to two units in the last place (`div.full`), so that a value that lies as
    near as that to half a step can become the other neighbour there.
    """
    largest = jnp.abs(x).max(axis, keepdims=True)
    # The quotient of the same two numbers in every framework: no multiplication by an inverse.
    scale = jnp.where(largest > 0, lax.div(largest, jnp.full_like(largest, 127)), 1)
    return jnp.rint(lax.div(x, jnp.broadcast_to(scale, x.shape))).astype(jnp.int8), scale


def _quantized(kernel: Array) -> tuple[nnx.Param, nnx.BatchStat]:
    """A kernel's int8 form and the scale of each output channel (the last axis).

    On the host, whose quotients are exact to the last bit: the same weights from every device.
    """
    weights = np.asarray(kernel)
    largest = np.abs(weights).max(axis=tuple(range(weights.ndim - 1)))
    scale = np.where(largest > 0, largest / weights.dtype.type(127), weights.dtype.type(1))
    q = np.rint(weights / scale).astype(np.int8)
    return nnx.Param(jnp.asarray(q)), nnx.BatchStat(jnp.asarray(scale))


def quantize(network: Network, *, convolutions: bool = True, dynamic: bool = False) -> Network:
    """The network with int8 linear layers and, if wished, int8 convolutions."""
    module = merge(network)
    for path, layer in list(nnx.iter_modules(module)):
        if type(layer) is Linear:
            _replace(module, path, QuantizedLinear(layer, dynamic))
        elif type(layer) is Conv and convolutions:
            _replace(module, path, QuantizedConv(layer))
    return split(module)


def _replace(module: nnx.Module, path: Sequence[object], layer: Layer) -> None:
    parent: Any = module
    for step in path[:-1]:
        parent = parent[step] if isinstance(step, int) else getattr(parent, str(step))
    if isinstance(path[-1], int):
        parent[path[-1]] = layer
    else:
        setattr(parent, str(path[-1]), layer)
