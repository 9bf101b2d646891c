"""ResNet with bottleneck blocks; keys and semantics of torchvision's resnet50."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import ResNet
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import PaddedMaxPool, Resize
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    Identity,
    Linear,
    Mode,
    Relu,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork

EXPANSION = 4


def norm(channels: int, folded: bool) -> BatchNorm | Identity:
    """Batch norm, or nothing where it is folded into the convolution."""
    return Identity() if folded else BatchNorm(channels)


class _Bottleneck(nnx.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; the input is added."""

    def __init__(self, channels: int, width: int, stride: int, folded: bool):
        out = EXPANSION * width
        self.conv1 = Conv(channels, width, 1, bias=folded, rng=None)
        self.bn1 = norm(width, folded)
        self.relu1 = Relu()
        self.conv2 = Conv(width, width, 3, stride=stride, padding=1, bias=folded, rng=None)
        self.bn2 = norm(width, folded)
        self.relu2 = Relu()
        self.conv3 = Conv(width, out, 1, bias=False, rng=None)
        self.bn3 = BatchNorm(out)
        project = Conv(channels, out, 1, stride=stride, bias=folded, rng=None)
        changes = stride != 1 or channels != out
        self.downsample = Sequential([project, norm(out, folded)]) if changes else None
        self.relu3 = Relu()

    def __call__(self, x: Array, mode: Mode) -> Array:
        y = self.relu1(self.bn1(self.conv1(x, mode), mode), mode)
        y = self.relu2(self.bn2(self.conv2(y, mode), mode), mode)
        y = self.bn3(self.conv3(y, mode), mode)
        return self.relu3(y + (x if self.downsample is None else self.downsample(x, mode)), mode)


class ResNetModel(NodeNetwork):
    """Scores; the features are the last stage's map."""

    def __init__(self, spec: ResNet, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        width = spec.width
        self.conv1 = Conv(channels, width, 7, stride=2, padding=3, bias=spec.folded, rng=None)
        self.bn1 = norm(width, spec.folded)
        self.relu = Relu()
        self.maxpool = PaddedMaxPool()
        channels = width
        self.stages = len(spec.blocks)
        for stage, blocks in enumerate(spec.blocks):
            row = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                row.append(_Bottleneck(channels, width, stride, spec.folded))
                channels = EXPANSION * width
            setattr(self, f"layer{stage + 1}", Sequential(row))
            width *= 2
        self.avgpool = GlobalAvgPool()
        self.flatten = Flatten()
        self.fc = Linear(channels, outputs, rng=None)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does."""
        initial.fill(self, rng, conv=initial.by_fan_out, linear=initial.uniform)

    def features(self, x: Array, mode: Mode = EVAL) -> Float[Array, "b h2 w2 c2"]:
        """The last stage's map."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.resize(x), mode), mode), mode), mode)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x, mode)
        return x

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.fc(self.flatten(self.avgpool(features, mode), mode), mode)
