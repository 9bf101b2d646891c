"""MobileNet-style node (docs/trunk.md, section 2)."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.networks import MobileNet, Residual
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    LogSoftmax,
    Mode,
    Relu6,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork, Shape


class _Pointwise(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, padding: int, rng: np.random.Generator):
        self.conv_1x1_block = Sequential(
            [
                Conv(in_channels, out_channels, 1, padding=padding, bias=False, rng=rng),
                BatchNorm(out_channels),
                Relu6(),
            ]
        )

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.conv_1x1_block(x, mode)


class _Depthwise(nnx.Module):
    def __init__(self, channels: int, stride: int, rng: np.random.Generator):
        self.depthwise_convolution_block = Sequential(
            [
                Conv(
                    channels,
                    channels,
                    3,
                    stride=stride,
                    padding=1,
                    groups=channels,
                    bias=False,
                    rng=rng,
                ),
                BatchNorm(channels),
                Relu6(),
            ]
        )

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.depthwise_convolution_block(x, mode)


class InvertedResidual(nnx.Module):
    """Widen, filter depthwise, narrow; the input is added where shapes match."""

    def __init__(self, in_channels: int, spec: Residual, padding: int, rng: np.random.Generator):
        wide = spec.expansion * in_channels
        self.inverted_residual = Sequential(
            [
                _Pointwise(in_channels, wide, padding, rng),
                _Depthwise(wide, spec.stride, rng),
                _Pointwise(wide, spec.out, padding, rng),
            ]
        )

    def __call__(self, x: Array, mode: Mode) -> Array:
        y = self.inverted_residual(x, mode)
        return x + y if x.shape == y.shape else y


class MobileNetNode(NodeNetwork):
    """`features`: stem (root only) and inverted residuals; `classifier`: 1x1, pool, log-softmax.

    With `pointwise_padding` 1, as published, every 1x1 convolution grows the map by 2 and no
    shortcut is ever taken.
    """

    features: Sequential

    def __init__(
        self,
        spec: MobileNet,
        in_shape: Shape,
        outputs: int,
        *,
        pointwise_padding: int,
        rng: np.random.Generator,
    ):
        channels = in_shape[2]
        layers: list[nnx.Module] = []
        if spec.stem:
            layers += [
                Conv(channels, spec.stem, 3, stride=2, padding=1, rng=rng),
                BatchNorm(spec.stem),
                Relu6(),
            ]
            channels = spec.stem
        for residual in spec.residuals:
            layers.append(InvertedResidual(channels, residual, pointwise_padding, rng))
            channels = residual.out
        self.features = Sequential(layers)
        self.classifier = Sequential(
            [Conv(channels, outputs, 1, rng=rng), GlobalAvgPool(), LogSoftmax(), Flatten()]
        )

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.classifier(features, mode)
