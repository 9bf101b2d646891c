"""ConvNeXt; keys and semantics of torchvision's convnext_base."""

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import ConvNext
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import (
    ChannelScale,
    Gelu,
    LayerNorm,
    PatchConv,
    Resize,
    StochasticDepth,
)
from trunk_jax.layers.basic import (
    EVAL,
    Conv,
    Flatten,
    GlobalAvgPool,
    Identity,
    Linear,
    Mode,
    Sequential,
)
from trunk_jax.nodes.node import NodeNetwork


class _Block(nnx.Module):
    """7x7 depthwise, layer norm, two Linear layers a pixel, scaled and added to the input."""

    def __init__(self, width: int, rate: float, stream: int):
        self.block = Sequential(
            [
                Conv(width, width, 7, padding=3, groups=width, rng=None),
                Identity(),  # PyTorch turns channels last here,
                LayerNorm(width),
                Linear(width, 4 * width, rng=None),
                Gelu(),
                Linear(4 * width, width, rng=None),
                Identity(),  # and first again here
            ]
        )
        self.layer_scale = ChannelScale(width)
        self.stochastic_depth = StochasticDepth(rate, stream=stream)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return x + self.stochastic_depth(self.layer_scale(self.block(x, mode), mode), mode)


class ConvNextModel(NodeNetwork):
    """Scores; the features are the last stage's map."""

    def __init__(self, spec: ConvNext, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        width = spec.widths[0]
        stem = PatchConv(channels, width, 4, rng=None)
        layers: list[nnx.Module] = [
            Sequential([stem, LayerNorm(width)]) if spec.stem_norm else stem
        ]
        total, number = sum(spec.depths), 0
        for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            row = []
            for _ in range(depth):
                row.append(_Block(width, spec.drop * number / max(1, total - 1), number))
                number += 1
            layers.append(Sequential(row))
            if stage + 1 < len(spec.widths):
                down = PatchConv(width, spec.widths[stage + 1], 2, rng=None)
                layers.append(Sequential([LayerNorm(width), down]))
        self.features = Sequential(layers)
        self.avgpool = GlobalAvgPool()
        self.classifier = Sequential(
            [LayerNorm(width), Flatten(), Linear(width, outputs, rng=None)]
        )

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does; layer scales start at 1e-6."""
        initial.fill(self, rng, conv=initial.small(0.02), linear=initial.small(0.02))

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
        features = self.features(self.resize(x), mode)
        return features, self.classifier(self.avgpool(features, mode), mode)
