"""MobileNetV2; keys and semantics of torchvision's mobilenet_v2."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import MobileNetV2
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import Resize
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    Mode,
    Relu6,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork


def _block(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Sequential:
    padding = (kernel - 1) // 2
    conv = Conv(
        channels, out, kernel, stride=stride, padding=padding, groups=groups, bias=False, rng=None
    )
    return Sequential([conv, BatchNorm(out), Relu6()])


class _InvertedResidual(nnx.Module):
    """Widen (unless the factor is 1), filter depthwise, narrow without a ReLU6."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int):
        wide = expansion * channels
        layers: list[nnx.Module] = [_block(channels, wide, 1)] if expansion != 1 else []
        layers += [
            _block(wide, wide, 3, stride, wide),
            Conv(wide, out, 1, bias=False, rng=None),
            BatchNorm(out),
        ]
        self.conv = Sequential(layers)
        self.shortcut = stride == 1 and channels == out

    def __call__(self, x: Array, mode: Mode) -> Array:
        y = self.conv(x, mode)
        return x + y if self.shortcut else y


class MobileNetV2Model(NodeNetwork):
    """Scores; the features are the map before the average pool."""

    def __init__(self, spec: MobileNetV2, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        layers: list[nnx.Module] = [_block(channels, spec.stem, 3, 2)]
        channels = spec.stem
        for expansion, out, blocks, stride in spec.rows:
            for block in range(blocks):
                step = 1 if block else stride
                layers.append(_InvertedResidual(channels, out, expansion, step))
                channels = out
        self.features = Sequential([*layers, _block(channels, spec.last, 1)])
        self.avgpool = GlobalAvgPool()
        self.flatten = Flatten()
        self.classifier = Sequential([Dropout(0.2), Linear(spec.last, outputs, rng=None)])

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does."""
        initial.fill(self, rng, conv=initial.by_fan_out, linear=initial.small(0.01))

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(self.resize(x), mode)
        pooled = self.flatten(self.avgpool(features, mode), mode)
        return features, self.classifier(pooled, mode)
