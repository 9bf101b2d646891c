"""ResNet for quantisation-aware training, with the arithmetic of torch.ao's backend fbgemm.

Weights are rounded to int8 per output channel (symmetric), activations to 7 bits per tensor,
in ranges that are moving averages of what was seen; gradients pass the rounding unchanged
where nothing was clipped. A convolution is scaled by its batch norm before its weights are
rounded, and scaled back before the norm is applied.

The layers are our own; whether a library's arithmetic could be made to match has not been tried.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from data.recipes.baselines.architectures import QuantResNet
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import PaddedMaxPool, Resize
from trunk_jax.baselines.resnet import EXPANSION
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    Layer,
    Layout,
    Linear,
    Mode,
    Sequential,
)
from trunk_jax.layers.conv import conv

AVERAGING = 0.01  # the weight of what is seen now
SMALLEST = 6.1e-5  # of a scale
EPS = float(np.finfo(np.float32).eps)


class Observer(nnx.Module):
    """The range of what was seen; infinite, and turned around, before anything was."""

    LAYOUT: ClassVar[Layout] = {name: (name, None) for name in ("min_val", "max_val", "eps")}

    def __init__(self, channels: int | None):
        shape = () if channels is None else (channels,)
        self.min_val = nnx.BatchStat(jnp.full(shape, jnp.inf, jnp.float32))
        self.max_val = nnx.BatchStat(jnp.full(shape, -jnp.inf, jnp.float32))
        self.eps = nnx.BatchStat(jnp.full((1,), EPS, jnp.float32))


class FakeQuant(Layer):
    """FusedMovingAvgObsFakeQuantize: observe in training, round to the grid always.

    With `channels` per channel of the last axis and symmetric, int8; without per tensor,
    unsigned and of 7 bits.
    """

    LAYOUT: ClassVar[Layout] = {
        name: (name, (0,))
        for name in ("scale", "zero_point", "fake_quant_enabled", "observer_enabled")
    }

    def __init__(self, channels: int | None = None):
        count = channels or 1
        self.activation_post_process = Observer(channels)
        self.scale = nnx.BatchStat(jnp.ones(count, jnp.float32))
        self.zero_point = nnx.BatchStat(jnp.zeros(count, jnp.int32))
        self.fake_quant_enabled = nnx.BatchStat(jnp.ones(1, jnp.int32))
        self.observer_enabled = nnx.BatchStat(jnp.ones(1, jnp.int32))
        self.low, self.high = (0, 127) if channels is None else (-128, 127)
        self.symmetric = channels is not None

    def apply(self, x: Array, mode: Mode) -> Array:
        if mode.train:
            self._observe(jax.lax.stop_gradient(x), mode)
        return fake_quantise(x, self.scale[...], self.zero_point[...], self.low, self.high)

    def _observe(self, x: Array, mode: Mode) -> None:
        axes = tuple(range(x.ndim - 1 if self.symmetric else x.ndim))
        real: bool | Array = True
        if mode.valid is not None and not self.symmetric:  # rows that are padding do not count
            real = mode.valid.reshape(-1, *[1] * (x.ndim - 1))
        seen = self.activation_post_process
        low = jnp.min(x, axes, where=real, initial=jnp.inf)
        high = jnp.max(x, axes, where=real, initial=-jnp.inf)
        for variable, now in ((seen.min_val, low), (seen.max_val, high)):
            before = variable[...]
            moved = before + AVERAGING * (now - before)
            variable[...] = jnp.where(jnp.isinf(before), now, moved).astype(before.dtype)
        scale, zero_point = grid(
            seen.min_val[...], seen.max_val[...], self.low, self.high, self.symmetric
        )
        self.scale[...] = scale.reshape(self.scale.shape)
        self.zero_point[...] = zero_point.reshape(self.zero_point.shape)


def grid(
    low: Float[Array, "..."], high: Float[Array, "..."], least: int, most: int, symmetric: bool
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Scale and zero point for a range, by the rules of PyTorch's fused kernel.

    The range is made to contain 0; 0 is a point of the grid.
    """
    steps = most - least
    both = (low < 0) & (high > 0) & symmetric
    below, above = steps // 2 + 1, steps // 2
    half = jnp.maximum(jnp.abs(low / below), jnp.abs(high / above))
    low = jnp.minimum(jnp.where(both, -half * below, low), 0)
    high = jnp.maximum(jnp.where(both, half * above, high), 0)
    scale = (high - low) / steps
    scale = jnp.where((scale == 0) | jnp.isinf(1 / scale), 0.1, scale)
    stretch = SMALLEST / scale
    small = scale < SMALLEST
    low, high = (jnp.where(small, bound * stretch, bound) for bound in (low, high))
    scale = jnp.where(small, SMALLEST, scale)
    from_low, from_high = least - low / scale, most - high / scale
    nearer = abs(least) - jnp.abs(low / scale) < abs(most) - jnp.abs(high / scale)
    zero = jnp.where(nearer, from_low, from_high)
    zero = jnp.where(both, (least + most) / 2, zero)
    return scale, jnp.clip(jnp.round(zero), least, most).astype(jnp.int32)


def fake_quantise(x: Array, scale: Array, zero_point: Array, least: int, most: int) -> Array:
    """`x` rounded to the grid; the gradient is 1 where it lies inside the range, else 0."""
    index = jnp.round(jax.lax.stop_gradient(x) * (1 / scale)) + zero_point
    rounded = (jnp.clip(index, least, most) - zero_point) * scale
    inside = jnp.where((index >= least) & (index <= most), x, 0)
    return rounded.astype(x.dtype) + (inside - jax.lax.stop_gradient(inside))


class QuantConv(Layer):
    """A convolution with batch norm and, if asked for, ReLU, as torch.ao fuses them."""

    LAYOUT: ClassVar[Layout] = {"weight": Conv.LAYOUT["weight"]}

    def __init__(
        self, channels: int, out: int, size: int, *, stride: int = 1, padding: int = 0, relu: bool
    ):
        self.kernel = nnx.Param(jnp.zeros((size, size, channels, out), jnp.float32))
        self.bn = BatchNorm(out)
        self.weight_fake_quant = FakeQuant(out)
        self.activation_post_process = FakeQuant()
        self.stride, self.padding, self.relu = stride, padding, relu

    def apply(self, x: Float[Array, "b h w i"], mode: Mode) -> Float[Array, "b h2 w2 o"]:
        factor = self.bn.scale[...] / jnp.sqrt(self.bn.var[...] + self.bn.eps)
        kernel = self.weight_fake_quant(self.kernel[...] * factor, mode)
        y = conv(x, kernel, stride=self.stride, padding=self.padding) / factor
        y = self.bn(y, mode)
        return self.activation_post_process(jax.nn.relu(y) if self.relu else y, mode)

    def multiply_adds(self, x: Array, y: Array) -> int:
        return y.size * int(np.prod(self.kernel.shape[:-1]))


class QuantLinear(Linear):
    """A Linear layer whose weights and outputs are rounded."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, rng=None)
        self.weight_fake_quant = FakeQuant(outputs)
        self.activation_post_process = FakeQuant()

    def apply(self, x: Float[Array, "b i"], mode: Mode) -> Float[Array, "b o"]:
        y = x @ self.weight_fake_quant(self.kernel[...], mode) + self.bias[...]
        return self.activation_post_process(y, mode)


class Rounded(nnx.Module):
    """A place whose values are observed and rounded: the images, and a block's sum."""

    def __init__(self) -> None:
        self.activation_post_process = FakeQuant()

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.activation_post_process(x, mode)


class QuantBottleneck(nnx.Module):
    """As ResNet's block, each step rounded."""

    def __init__(self, channels: int, width: int, stride: int):
        out = EXPANSION * width
        self.conv1 = QuantConv(channels, width, 1, relu=True)
        self.conv2 = QuantConv(width, width, 3, stride=stride, padding=1, relu=True)
        self.conv3 = QuantConv(width, out, 1, relu=False)
        changes = stride != 1 or channels != out
        project = QuantConv(channels, out, 1, stride=stride, relu=False) if changes else None
        self.downsample = Sequential([project]) if changes else None
        self.skip_add_relu = Rounded()

    def __call__(self, x: Array, mode: Mode) -> Array:
        y = self.conv3(self.conv2(self.conv1(x, mode), mode), mode)
        other = x if self.downsample is None else self.downsample(x, mode)
        return self.skip_add_relu(jax.nn.relu(y + other), mode)


class QuantResNetModel(nnx.Module):
    """Scores; the features are the last stage's map. Ranges are observed in train mode only."""

    def __init__(self, spec: QuantResNet, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        width = spec.width
        self.quant = Rounded()
        self.conv1 = QuantConv(channels, width, 7, stride=2, padding=3, relu=True)
        self.maxpool = PaddedMaxPool()
        channels = width
        self.stages = len(spec.blocks)
        for stage, blocks in enumerate(spec.blocks):
            row = []
            for block in range(blocks):
                row.append(QuantBottleneck(channels, width, 2 if stage and not block else 1))
                channels = EXPANSION * width
            setattr(self, f"layer{stage + 1}", Sequential(row))
            width *= 2
        self.avgpool = GlobalAvgPool()
        self.flatten = Flatten()
        self.fc = QuantLinear(channels, outputs)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does for the float network."""
        for _, layer in nnx.iter_modules(self):
            if isinstance(layer, QuantConv):
                *window, _, out = layer.kernel.shape
                initial.normal(rng, layer.kernel, float(np.sqrt(2 / (np.prod(window) * out))))
        initial.uniform(rng, self.fc)

    def features(self, x: Array, mode: Mode = EVAL) -> Float[Array, "b h2 w2 c2"]:
        """The last stage's map."""
        x = self.maxpool(self.conv1(self.quant(self.resize(x), mode), mode), mode)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x, mode)
        return x

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.fc(self.flatten(self.avgpool(features, mode), mode), mode)
