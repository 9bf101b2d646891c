"""The layers that only the baselines have, with PyTorch's semantics.

Tokens are [b, n, d]; images are channel-last. Normalisation and GELU work on the last axis of
either.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from trunk_jax.layers.basic import Conv, Dropout, Layer, Layout, Linear, Mode


class LayerNorm(Layer):
    """torch.nn.LayerNorm over the last axis."""

    LAYOUT: ClassVar[Layout] = {"weight": ("scale", (0,)), "bias": ("bias", (0,))}

    def __init__(self, features: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.eps = eps

    def apply(self, x: Float[Array, "... d"], mode: Mode) -> Float[Array, "... d"]:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]


class Gelu(Layer):
    """torch.nn.GELU: with the error function, not the tanh approximation."""

    def apply(self, x: Array, mode: Mode) -> Array:
        return jax.nn.gelu(x, approximate=False)


class PatchConv(Conv):
    """A convolution whose stride is its kernel: patches do not overlap, so one matrix product.

    XLA's gradient of the general form would multiply by the zeros between the patches.
    A rest that fills no patch is left out, as in PyTorch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, rng: np.random.Generator | None
    ):
        super().__init__(in_channels, out_channels, size, stride=size, rng=rng)

    def apply(self, x: Float[Array, "b h w i"], mode: Mode) -> Float[Array, "b h2 w2 o"]:
        p, (b, h, w, c) = self.stride, x.shape
        rows, columns = h // p, w // p
        x = x[:, : rows * p, : columns * p].reshape(b, rows, p, columns, p, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b * rows * columns, p * p * c)
        assert self.bias is not None
        y = x @ self.kernel[...].reshape(p * p * c, -1) + self.bias[...]
        return y.reshape(b, rows, columns, -1)


class PaddedMaxPool(Layer):
    """torch.nn.MaxPool2d(kernel_size=3, stride=2, padding=1)."""

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b h2 w2 c"]:
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


class AdaptiveAvgPool(Layer):
    """torch.nn.AdaptiveAvgPool2d(size): the mean over cells that may overlap or repeat."""

    def __init__(self, size: int):
        self.size = size

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b s s c"]:
        if x.shape[1:3] == (self.size, self.size):
            return x
        rows, columns = (jnp.asarray(_cells(n, self.size), x.dtype) for n in x.shape[1:3])
        return jnp.einsum("bhwc,sh,tw->bstc", x, rows, columns)


def _cells(length: int, cells: int) -> np.ndarray:
    """Weights [cells, length] of a one-dimensional adaptive average."""
    weights = np.zeros((cells, length))
    for cell in range(cells):
        start, stop = cell * length // cells, -(-(cell + 1) * length // cells)
        weights[cell, start:stop] = 1 / (stop - start)
    return weights


class StochasticDepth(Dropout):
    """torchvision's StochasticDepth in mode `row`: an image's whole branch is dropped."""

    def mask_shape(self, x: Array) -> tuple[int, ...]:
        return (x.shape[0],) + (1,) * (x.ndim - 1)


class Token(Layer):
    """A learned [1, n, d]: class token, registers or position embeddings, by the name it has.

    Not called; `value` is read.
    """

    LAYOUT: ClassVar[Layout] = {"": ("value", (0, 1, 2))}

    def __init__(self, count: int, width: int):
        self.value = nnx.Param(jnp.zeros((1, count, width), jnp.float32))


class MaskToken(Layer):
    """The [1, d] that DINOv2's training puts in a masked patch's place; nothing here reads it."""

    LAYOUT: ClassVar[Layout] = {"": ("value", (0, 1))}

    def __init__(self, width: int):
        self.value = nnx.Param(jnp.zeros((1, width), jnp.float32))


class ChannelScale(Layer):
    """torchvision's layer scale: a learned factor a channel, [d, 1, 1] in PyTorch."""

    LAYOUT: ClassVar[Layout] = {"": ("value", (2, 0, 1))}

    def __init__(self, channels: int, start: float = 1e-6):
        self.value = nnx.Param(jnp.full((1, 1, channels), start, jnp.float32))

    def apply(self, x: Float[Array, "b h w d"], mode: Mode) -> Float[Array, "b h w d"]:
        return x * self.value[...]


class LayerScale(Layer):
    """DINOv2's layer scale: a learned factor a feature."""

    LAYOUT: ClassVar[Layout] = {"gamma": ("gamma", (0,))}

    def __init__(self, features: int, start: float = 1.0):
        self.gamma = nnx.Param(jnp.full(features, start, jnp.float32))

    def apply(self, x: Float[Array, "b n d"], mode: Mode) -> Float[Array, "b n d"]:
        return x * self.gamma[...]


class ScaledDotProduct(Layer):
    """Attention of tokens to each other; queries, keys and values packed in this order."""

    def __init__(self, heads: int):
        self.heads = heads

    def apply(self, x: Float[Array, "b n d3"], mode: Mode) -> Float[Array, "b n d"]:
        return attend(x, self.heads)

    def multiply_adds(self, x: Array, y: Array) -> int:
        return 2 * y.size * y.shape[1]  # scores and weighted values


def attend(packed: Float[Array, "b n d3"], heads: int) -> Float[Array, "b n d"]:
    """softmax(q k^T / sqrt(d / heads)) v for each head."""
    b, n, width = packed.shape
    q, k, v = packed.reshape(b, n, 3, heads, width // 3 // heads).transpose(2, 0, 3, 1, 4)
    scores = (q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2)
    mixed = jax.nn.softmax(scores, axis=-1) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(b, n, width // 3)


class MultiHeadAttention(Layer):
    """torch.nn.MultiheadAttention of tokens to each other, batch first, without dropout.

    `kernel` [d, 3 d] and `bias` [3 d] are PyTorch's packed in_proj; `out_proj` is a Linear.
    """

    LAYOUT: ClassVar[Layout] = {
        "in_proj_weight": ("kernel", (1, 0)),
        "in_proj_bias": ("bias", (0,)),
    }

    def __init__(self, width: int, heads: int, *, rng: np.random.Generator | None):
        packed = Linear(width, 3 * width, rng=rng)
        self.kernel, self.bias = nnx.Param(packed.kernel[...]), nnx.Param(packed.bias[...])
        self.out_proj = Linear(width, width, rng=rng)
        self.heads = heads

    def apply(self, x: Float[Array, "b n d"], mode: Mode) -> Float[Array, "b n d"]:
        return self.out_proj(attend(x @ self.kernel[...] + self.bias[...], self.heads), mode)

    def multiply_adds(self, x: Array, y: Array) -> int:
        tokens, attention = x.size // x.shape[-1], 2 * y.size * y.shape[1]
        return tokens * math.prod(self.kernel.shape) + attention  # out_proj counts itself


class Resize(Layer):
    """Bilinear resizing to size x size, half-pixel centres, no antialiasing.

    torch.nn.functional.interpolate(mode="bilinear", align_corners=False). No size: nothing.
    """

    def __init__(self, size: int = 0):
        self.size = size

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b s s c"]:
        if not self.size or x.shape[1:3] == (self.size, self.size):
            return x
        rows, columns = (jnp.asarray(_between(n, self.size), x.dtype) for n in x.shape[1:3])
        return jnp.einsum("bhwc,sh,tw->bstc", x, rows, columns)


def _between(length: int, size: int) -> np.ndarray:
    """Weights [size, length] of linear interpolation; the ends are continued flat."""
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), length - 1)
    high = np.minimum(low + 1, length - 1)
    weights = np.zeros((size, length))
    np.add.at(weights, (np.arange(size), low), 1 - (at - low))
    np.add.at(weights, (np.arange(size), high), at - low)
    return weights


def bicubic(length: int, size: int) -> np.ndarray:
    """Weights [size, length] of antialiased bicubic interpolation, as PyTorch's and Pillow's.

    Keys' kernel with a = -1/2, stretched by the factor when the size shrinks; taps outside
    are left out and the others made to sum to 1.
    """
    factor = length / size
    stretch = max(factor, 1.0)
    weights = np.zeros((size, length))
    for out in range(size):
        centre = factor * (out + 0.5)
        start = max(int(centre - 2 * stretch + 0.5), 0)
        stop = min(int(centre + 2 * stretch + 0.5), length)
        taps = _keys((np.arange(start, stop) - centre + 0.5) / stretch)
        weights[out, start:stop] = taps / taps.sum()
    return weights


def _keys(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
