"""Layers with PyTorch's semantics, as Flax NNX modules.

Images are channel-last. Attribute paths of modules equal PyTorch's; leaf names are Flax's
(`kernel`, `bias`, `scale`, `mean`, `var`), and each class has its `LAYOUT`: what they are called
in a state_dict, and how they are laid out there.

Every layer is called as `layer(x, mode)`; what differs between training and inference is in
`mode` alone, so a module is a pure function of its state, its input and its mode.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from trunk_jax.layers.conv import conv
from trunk_jax.layers.norm import normalise
from trunk_jax.layers.pool import max_pool


@dataclass(frozen=True)
class Mode:
    """How a pass is run.

    Attributes:
      train: batch statistics in batch norm (which updates its running ones), dropout on.
      valid: in a padded batch, which rows are images; None if all are. Padding rows never
        touch statistics or losses.
      key: what dropout masks are drawn from; needed when `train` and the node has dropout.
      masks: of dropout, to use instead, one per dropout layer by its `stream`, True where an
        element (or a channel) is kept.

    """

    train: bool = False
    valid: Bool[Array, " b"] | None = None
    key: PRNGKeyArray | None = None
    masks: Mapping[int, Bool[Array, "..."]] | None = None


EVAL = Mode()

_recorder: ContextVar[list | None] = ContextVar("recorder", default=None)


@contextmanager
def record() -> Iterator[list[tuple["Layer", Array, Array]]]:
    """Collect (layer, input, output) of every layer that is called inside the block.

    Under `jax.eval_shape` inputs and outputs are shapes: how multiply-adds are counted.
    Called eagerly they are values: how parity finds the first layer that differs.
    """
    tape: list[tuple[Layer, Array, Array]] = []
    token = _recorder.set(tape)
    try:
        yield tape
    finally:
        _recorder.reset(token)


def layer_shapes(
    function: Callable[..., object], *arguments: Any
) -> list[tuple["Layer", Array, Array]]:
    """(layer, input, output) of every layer in a function of arrays; nothing is computed.

    Of inputs and outputs only shape, size and type are known. `arguments`: arrays, or their shapes.
    Whatever asks for the shapes in a network reads them off here: costs, how many images fit the
    cache, lists of layers.
    """
    with record() as tape:
        jax.eval_shape(function, *arguments)
    return tape


# PyTorch's name -> (our name, axes that turn our layout into PyTorch's). An empty name is a
# parameter that PyTorch keeps under the module's own path; no axes mean as they are.
Layout = dict[str, tuple[str, tuple[int, ...] | None]]


class Layer(nnx.Module):
    """A single operation: subclasses define `apply(x, mode)`.

    `LAYOUT`: where a state_dict has the layer's arrays.
    """

    LAYOUT: ClassVar[Layout] = {}

    def __call__(self, x: Array, mode: Mode = EVAL) -> Array:
        y = self.apply(x, mode)
        tape = _recorder.get()
        if tape is not None:
            tape.append((self, x, y))
        return y

    def apply(self, x: Array, mode: Mode) -> Array:
        """The layer's output for `x`."""
        raise NotImplementedError

    def multiply_adds(self, x: Array, y: Array) -> int:
        """How many its matrix products take from `x` to `y`; element by element ones are free."""
        return 0


class Sequential(nnx.List):
    """Layers applied in order; an attribute path goes through the index, as in PyTorch."""

    def __call__(self, x: Array, mode: Mode = EVAL) -> Array:
        for layer in self:
            x = layer(x, mode)
        return x


def _uniform(rng: np.random.Generator | None, shape: tuple[int, ...], fan_in: int) -> Array:
    """PyTorch's default for convolution and linear layers, weights and biases alike.

    `kaiming_uniform_` with a = sqrt(5) is the uniform distribution within 1/sqrt(fan_in).
    Drawn by NumPy: the same on every device, and no program to compile for each shape.
    Without `rng` zeros, for a network whose weights are about to be set.
    """
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    bound = 1 / math.sqrt(fan_in)
    return jnp.asarray(rng.uniform(-bound, bound, shape).astype(np.float32))


def _wide(x: Array) -> Array:
    """float32 of half precision, whose sums would lose digits; other types as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Conv(Layer):
    """torch.nn.Conv2d with a square kernel; kernel [k, k, in / groups, out], bias [out]."""

    LAYOUT: ClassVar[Layout] = {"weight": ("kernel", (3, 2, 0, 1)), "bias": ("bias", (0,))}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None,
    ):
        fan_in = kernel_size**2 * in_channels // groups
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(_uniform(rng, shape, fan_in))
        self.bias = nnx.Param(_uniform(rng, (out_channels,), fan_in)) if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def apply(self, x: Float[Array, "b h w i"], mode: Mode) -> Float[Array, "b h2 w2 o"]:
        y = conv(x, self.kernel[...], stride=self.stride, padding=self.padding, groups=self.groups)
        return y if self.bias is None else y + self.bias[...]

    def multiply_adds(self, x: Array, y: Array) -> int:
        return y.size * math.prod(self.kernel.shape[:-1])


class Linear(Layer):
    """torch.nn.Linear; kernel [in, out], bias [out]."""

    LAYOUT: ClassVar[Layout] = {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))}

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator | None):
        self.kernel = nnx.Param(_uniform(rng, (in_features, out_features), in_features))
        self.bias = nnx.Param(_uniform(rng, (out_features,), in_features))

    def apply(self, x: Float[Array, "... i"], mode: Mode) -> Float[Array, "... o"]:
        return x @ self.kernel[...] + self.bias[...]

    def multiply_adds(self, x: Array, y: Array) -> int:
        return y.size * self.kernel.shape[0]


class BatchNorm(Layer):
    """torch.nn.BatchNorm2d.

    In training it normalises by the batch's biased variance and stores the unbiased one;
    `momentum` is the weight of the new value (PyTorch's sense). `count` is PyTorch's
    num_batches_tracked.
    """

    LAYOUT: ClassVar[Layout] = {
        "weight": ("scale", (0,)),
        "bias": ("bias", (0,)),
        "running_mean": ("mean", (0,)),
        "running_var": ("var", (0,)),
        "num_batches_tracked": ("count", ()),
    }

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1):
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.eps, self.momentum = eps, momentum

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b h w c"]:
        x, dtype = _wide(x), x.dtype
        if mode.train:
            scale, bias = _wide(self.scale[...]), _wide(self.bias[...])
            y, mean, var, n = normalise(x, scale, bias, self.eps, mode.valid)
            m = self.momentum
            self.mean[...] = (1 - m) * self.mean[...] + m * mean
            self.var[...] = (1 - m) * self.var[...] + m * var * (n / (n - 1))
            self.count[...] = self.count[...] + 1
            return y.astype(dtype)
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return ((x - self.mean[...]) * gain + self.bias[...]).astype(dtype)


class Relu(Layer):
    """torch.nn.ReLU."""

    def apply(self, x: Array, mode: Mode) -> Array:
        return jax.nn.relu(x)


class Relu6(Layer):
    """torch.nn.ReLU6: within 0 and 6; the gradient at either bound is 0."""

    def apply(self, x: Array, mode: Mode) -> Array:
        return jax.nn.relu6(x)


class MaxPool(Layer):
    """torch.nn.MaxPool2d(2): non-overlapping 2x2 windows; an odd last row or column is left out.

    The gradient goes to the first maximum of a window in row order, as in PyTorch.
    """

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b h2 w2 c"]:
        return max_pool(x)


class GlobalAvgPool(Layer):
    """Mean over the whole map, kept as 1x1."""

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b 1 1 c"]:
        return x.mean((1, 2), keepdims=True)


class Identity(Layer):
    """Nothing; stands where the published network has a pool of window 1."""

    def apply(self, x: Array, mode: Mode) -> Array:
        return x


class Dropout(Layer):
    """torch.nn.Dropout, or with `channels` torch.nn.Dropout2d, which drops whole channels.

    `stream` tells the dropout layers of one network apart.
    """

    def __init__(self, rate: float, *, channels: bool = False, stream: int = 0):
        self.rate, self.channels, self.stream = rate, channels, stream

    def mask_shape(self, x: Array) -> tuple[int, ...]:
        """What is drawn at once for `x`."""
        return (x.shape[0], 1, 1, x.shape[3]) if self.channels else x.shape

    def apply(self, x: Float[Array, "b ..."], mode: Mode) -> Float[Array, "b ..."]:
        if not mode.train:
            return x
        if mode.masks is not None:
            keep = mode.masks[self.stream]
        else:
            assert mode.key is not None  # in training a network with dropout is given one
            key = jax.random.fold_in(mode.key, self.stream)
            keep = jax.random.bernoulli(key, 1 - self.rate, self.mask_shape(x))
        return jnp.where(keep, x / (1 - self.rate), 0)


class Flatten(Layer):
    """[b, h, w, c] to [b, c * h * w] in PyTorch's order: channel, row, column."""

    def apply(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b f"]:
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class LogSoftmax(Layer):
    """torch.nn.LogSoftmax over channels."""

    def apply(self, x: Float[Array, "... c"], mode: Mode) -> Float[Array, "... c"]:
        return jax.nn.log_softmax(_wide(x), axis=-1)
