"""VGG-style node (docs/trunk.md, section 2)."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.networks import Vgg
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    Identity,
    Linear,
    MaxPool,
    Mode,
    Relu,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork, Shape


class VggNode(NodeNetwork):
    """`features`: 3x3 convolutions, batch norm, ReLU; `classifier`: one Linear, raw scores."""

    features: Sequential

    def __init__(self, spec: Vgg, in_shape: Shape, outputs: int, *, rng: np.random.Generator):
        height, width, channels = in_shape
        layers: list[nnx.Module] = []
        for position, word in enumerate(spec.layers):
            if word == "M":
                layers.append(MaxPool())
                height, width = height // 2, width // 2
            elif word in ("D", "D2"):
                layers.append(Dropout(0.5, channels=word == "D2", stream=position))
            else:
                out, _, stride = word[1:].partition("/")
                step = int(stride or 1)
                layers += [
                    Conv(channels, int(out), 3, stride=step, padding=1, rng=rng),
                    BatchNorm(int(out)),
                    Relu(),
                ]
                channels = int(out)
                height, width = (height - 1) // step + 1, (width - 1) // step + 1
        layers.append(Identity())  # the published average pool of window 1
        self.features = Sequential(layers)
        self.flatten = Flatten()
        self.classifier = Sequential([Linear(channels * height * width, outputs, rng=rng)])

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.classifier(self.flatten(features, mode), mode)
