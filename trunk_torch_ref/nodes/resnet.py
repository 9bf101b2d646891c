"""Residual node of our own: dense 3x3 convolutions with live shortcuts."""

from torch import Tensor, nn
from torch.nn import functional

from data.recipes.networks import Block, ResNet
from trunk_torch_ref.nodes.node import NodeNetwork, Shape

_NARROW = 8  # input channels below which a strided projection keeps to the usual layout


class _NarrowProjection(nn.Conv2d):
    """A strided 1x1 convolution of few channels, in PyTorch's usual layout.

    In the layout channels last oneDNN's gradient of its weights writes where it must not on
    processors without AVX-512, and the process dies (seen with torch 2.13 and 2, 4, 6 and 7
    channels; with 8 and more the gradients are right).
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1)[:, :, None, None]  # whose strides say: the usual layout
        return functional.conv2d(x.contiguous(), weight, stride=self.stride)


class _BasicBlock(nn.Module):
    """ReLU of two 3x3 convolutions plus the input, projected by a 1x1 where shapes differ."""

    def __init__(self, in_channels: int, spec: Block):
        super().__init__()
        out, stride = spec.out, spec.stride
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out:
            kind = _NarrowProjection if stride != 1 and in_channels < _NARROW else nn.Conv2d
            project = kind(in_channels, out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(out))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.activation(self.residual(x) + shortcut)


class ResNetNode(NodeNetwork):
    """`features`: stem (root only) and basic blocks; `classifier`: pool, one Linear, raw scores."""

    def __init__(self, spec: ResNet, in_shape: Shape, outputs: int):
        super().__init__()
        channels = in_shape[0]
        layers: list[nn.Module] = []
        if spec.stem:
            layers += [
                nn.Conv2d(channels, spec.stem, 3, padding=1, bias=False),
                nn.BatchNorm2d(spec.stem),
                nn.ReLU(),
            ]
            channels = spec.stem
        for block in spec.blocks:
            layers.append(_BasicBlock(channels, block))
            channels = block.out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(x)
        return features, self.classifier(features)
