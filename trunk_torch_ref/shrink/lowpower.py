"""The networks of the low-power background demonstration, and their smaller forms."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.run.lowpower import CHANNELS, IMAGE, OUTPUTS, SHARE
from trunk_torch_ref.shrink import prune
from trunk_torch_ref.shrink.quantized import quantize


class Background(nn.Module):
    """`features` and `classifier`, as the nodes of a tree have them."""

    def __init__(self, features: Sequence[nn.Module], classifier: Sequence[nn.Module]):
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, 3, 32, 32] into features [B, 16, 32, 32] and scores [B, 1000]."""
        features = self.features(x)
        return features, self.classifier(features)


def base(channels: Sequence[int] = (CHANNELS, CHANNELS)) -> Background:
    """Two 3x3 convolutions, of so many channels, and one linear layer over the whole map."""
    height, width, colours = IMAGE
    first, second = channels
    return Background(
        [
            nn.Conv2d(colours, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
        ],
        [nn.Flatten(), nn.Linear(second * height * width, OUTPUTS)],
    )


def compressed() -> Background:
    """A 3x3 convolution, a depthwise-separable one, global average pool, a linear layer."""
    c = CHANNELS
    return Background(
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
def removed(start: Background, share: float) -> Background:
    """A `base` network without the weakest rows of its convolutions, and without what read them."""
    one, _, two, _ = start.features
    linear = start.classifier[1]
    first, second = (prune.strongest(layer.weight, share) for layer in (one, two))
    small = base((len(first), len(second)))
    small.features[0].weight.copy_(one.weight[first])
    small.features[0].bias.copy_(one.bias[first])
    small.features[2].weight.copy_(two.weight[second][:, first])
    small.features[2].bias.copy_(two.bias[second])
    by_channel = linear.weight.unflatten(1, (len(two.weight), -1))
    small.classifier[1].weight.copy_(by_channel[:, second].flatten(1))
    small.classifier[1].bias.copy_(linear.bias)
    return small


def forms(start: Background, other: Background) -> dict[str, nn.Module]:
    """All of `data.run.lowpower.FORMS`, from a `base` and a `compressed` network, in eval mode."""
    return {
        "base": start.eval(),
        "int8": quantize(copy.deepcopy(start), convolutions=False, dynamic=True).eval(),
        "masked": prune.masked(start, SHARE).eval(),
        "removed": removed(start, SHARE).eval(),
        "compressed": other.eval(),
    }
