"""The networks of the low-power background demonstration, and their smaller forms."""

from collections.abc import Sequence

import numpy as np
from jax import Array
from jaxtyping import Float

from data.run.lowpower import CHANNELS, IMAGE, OUTPUTS, SHARE
from trunk_jax.layers.basic import (
    EVAL,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    Layer,
    Linear,
    Mode,
    Relu,
    Sequential,
)
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import Network, split
from trunk_jax.nodes.node import NodeNetwork
from trunk_jax.shrink import prune
from trunk_jax.shrink.quantized import quantize


class SmallNetwork(NodeNetwork):
    """`features` and `classifier`, as the nodes of a tree have them."""

    features: Sequential

    def __init__(self, features: Sequence[Layer], classifier: Sequence[Layer]):
        self.features, self.classifier = Sequential(features), Sequential(classifier)

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h w c2"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.classifier(features, mode)


def base(rng: np.random.Generator) -> SmallNetwork:
    """Two 3x3 convolutions and one linear layer over the whole map."""
    height, width, channels = IMAGE
    return SmallNetwork(
        [
            Conv(channels, CHANNELS, 3, padding=1, rng=rng),
            Relu(),
            Conv(CHANNELS, CHANNELS, 3, padding=1, rng=rng),
            Relu(),
        ],
        [Flatten(), Linear(CHANNELS * height * width, OUTPUTS, rng=rng)],
    )


def compressed(rng: np.random.Generator) -> SmallNetwork:
    """A 3x3 convolution, a depthwise-separable one, global average pool, a linear layer."""
    c = CHANNELS
    return SmallNetwork(
        [
            Conv(IMAGE[2], c, 3, padding=1, bias=False, rng=rng),
            BatchNorm(c),
            Relu(),
            Conv(c, c, 3, padding=1, groups=c, bias=False, rng=rng),
            BatchNorm(c),
            Relu(),
            Conv(c, c, 1, bias=False, rng=rng),
            BatchNorm(c),
            Relu(),
        ],
        [GlobalAvgPool(), Flatten(), Linear(c, OUTPUTS, rng=rng)],
    )


def forms(start: Network, other: Network) -> dict[str, Network]:
    """All of `data.run.lowpower.FORMS`, from a `base` and a `compressed` network."""
    weights = prune.removed(
        to_state_dict(start), prune.chains(start, IMAGE, keep_features=False), SHARE
    )
    return {
        "base": start,
        "int8": quantize(start, convolutions=False, dynamic=True),
        "masked": from_state_dict(start, prune.masked(start, SHARE)),
        "removed": from_state_dict(prune.resized(start, IMAGE, weights), weights),
        "compressed": other,
    }


def networks(rng: np.random.Generator) -> dict[str, Network]:
    """All forms, from random weights."""
    return forms(split(base(rng)), split(compressed(rng)))
