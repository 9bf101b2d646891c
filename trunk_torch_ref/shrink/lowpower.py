"""The networks of the low-power background demonstration, and their smaller forms."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.run.lowpower import CHANNELS, IMAGE, OUTPUTS, SHARE
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.shrink import prune
from trunk_torch_ref.shrink.quantized import quantize


class SmallNetwork(NodeNetwork):
    """`features` and `classifier`, as the nodes of a tree have them."""

    def __init__(self, features: Sequence[nn.Module], classifier: Sequence[nn.Module]):
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, 3, 32, 32] into features [B, 16, 32, 32] and scores [B, 1000]."""
        features = self.features(x)
        return features, self.classifier(features)


def base(channels: Sequence[int] = (CHANNELS, CHANNELS)) -> SmallNetwork:
    """Two 3x3 convolutions, of so many channels, and one linear layer over the whole map."""
    height, width, colours = IMAGE
    first, second = channels
    return SmallNetwork(
        [
            nn.Conv2d(colours, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
        ],
        [nn.Flatten(), nn.Linear(second * height * width, OUTPUTS)],
    )


def compressed() -> SmallNetwork:
    """A 3x3 convolution, a depthwise-separable one, global average pool, a linear layer."""
    c = CHANNELS
    return SmallNetwork(
        [
            nn.Conv2d(IMAGE[2], c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
        ],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, OUTPUTS)],
    )


@torch.no_grad()
def removed(start: SmallNetwork, share: float) -> SmallNetwork:
    """A `base` network without the weakest rows of its convolutions, and without what read them."""
    weights = start.state_dict()
    kernels = weights["features.0.weight"], weights["features.2.weight"]
    first, second = (prune.strongest(kernel, share) for kernel in kernels)
    by_channel = weights["classifier.1.weight"].unflatten(1, (len(kernels[1]), -1))
    small = base((len(first), len(second)))
    left = {
        "features.0.weight": kernels[0][first],
        "features.0.bias": weights["features.0.bias"][first],
        "features.2.weight": kernels[1][second][:, first],
        "features.2.bias": weights["features.2.bias"][second],
        "classifier.1.weight": by_channel[:, second].flatten(1),
        "classifier.1.bias": weights["classifier.1.bias"],
    }
    small.load_state_dict(left)
    return small


def forms(start: SmallNetwork, other: SmallNetwork) -> dict[str, SmallNetwork]:
    """All of `data.run.lowpower.FORMS`, from a `base` and a `compressed` network, in eval mode."""
    return {
        "base": start.eval(),
        "int8": quantize(copy.deepcopy(start), convolutions=False, dynamic=True).eval(),
        "masked": prune.masked(start, SHARE).eval(),
        "removed": removed(start, SHARE).eval(),
        "compressed": other.eval(),
    }
