"""VGG; keys and semantics of torchvision's vgg16, and with batch norm of its vgg16_bn."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import Vgg
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import AdaptiveAvgPool, Resize
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    Mode,
    Relu,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork


class VggModel(NodeNetwork):
    """Scores; the features are the map before the Linear layers' own pool."""

    def __init__(self, spec: Vgg, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        layers: list[nnx.Module] = []
        for stage, widths in enumerate(spec.stages):
            for width in widths:
                layers.append(Conv(channels, width, 3, padding=1, rng=None))
                if spec.batch_norm:
                    layers.append(BatchNorm(width))
                layers.append(Relu())
                channels = width
            if stage < spec.pools:
                layers.append(MaxPool())
        self.features = Sequential(layers)
        self.avgpool = AdaptiveAvgPool(spec.pool)
        self.flatten = Flatten()
        inputs, layers = channels * spec.pool**2, []
        for stream, hidden in enumerate(spec.hidden):
            layers += [Linear(inputs, hidden, rng=None), Relu(), Dropout(0.5, stream=stream)]
            inputs = hidden
        self.classifier = Sequential([*layers, Linear(inputs, outputs, rng=None)])

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does."""
        initial.fill(self, rng, conv=initial.by_fan_out, linear=initial.small(0.01))

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(self.resize(x), mode)
        pooled = self.flatten(self.avgpool(features, mode), mode)
        return features, self.classifier(pooled, mode)
