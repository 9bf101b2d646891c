"""Residual node of our own: dense 3x3 convolutions with live shortcuts."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.networks import Block, ResNet
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    Linear,
    Mode,
    Relu,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork, Shape


def _projection(in_channels: int, spec: Block, rng: np.random.Generator) -> Sequential | None:
    """What the input goes through where the output has another shape."""
    if spec.stride == 1 and in_channels == spec.out:
        return None
    conv = Conv(in_channels, spec.out, 1, stride=spec.stride, bias=False, rng=rng)
    return Sequential([conv, BatchNorm(spec.out)])


class _BasicBlock(nnx.Module):
    """ReLU of two 3x3 convolutions plus the input, projected by a 1x1 where shapes differ."""

    def __init__(self, in_channels: int, spec: Block, rng: np.random.Generator):
        out, stride = spec.out, spec.stride
        self.residual = Sequential(
            [
                Conv(in_channels, out, 3, stride=stride, padding=1, bias=False, rng=rng),
                BatchNorm(out),
                Relu(),
                Conv(out, out, 3, padding=1, bias=False, rng=rng),
                BatchNorm(out),
            ]
        )
        self.shortcut = _projection(in_channels, spec, rng)
        self.activation = Relu()

    def __call__(self, x: Array, mode: Mode) -> Array:
        shortcut = x if self.shortcut is None else self.shortcut(x, mode)
        return self.activation(self.residual(x, mode) + shortcut, mode)


class ResNetNode(NodeNetwork):
    """`features`: stem (root only) and basic blocks; `classifier`: pool, one Linear, raw scores."""

    features: Sequential

    def __init__(
        self,
        spec: ResNet,
        in_shape: Shape,
        outputs: int,
        *,
        rng: np.random.Generator,
    ):
        channels = in_shape[2]
        layers: list[nnx.Module] = []
        if spec.stem:
            layers += [
                Conv(channels, spec.stem, 3, padding=1, bias=False, rng=rng),
                BatchNorm(spec.stem),
                Relu(),
            ]
            channels = spec.stem
        for block in spec.blocks:
            layers.append(_BasicBlock(channels, block, rng))
            channels = block.out
        self.features = Sequential(layers)
        self.classifier = Sequential(
            [GlobalAvgPool(), Flatten(), Linear(channels, outputs, rng=rng)]
        )

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.classifier(features, mode)
