"""MobileNet-style node (docs/trunk.md, section 2)."""

from torch import Tensor, nn

from data.recipes.networks import MobileNet, Residual
from trunk_torch_ref.nodes.node import NodeNetwork, Shape


class _Pointwise(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, padding: int):
        super().__init__()
        self.conv_1x1_block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, padding=padding, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1x1_block(x)


class _Depthwise(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.depthwise_convolution_block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise_convolution_block(x)


class _InvertedResidual(nn.Module):
    """Widen, filter depthwise, narrow; the input is added where shapes match."""

    def __init__(self, in_channels: int, spec: Residual, padding: int):
        super().__init__()
        wide = spec.expansion * in_channels
        self.inverted_residual = nn.Sequential(
            _Pointwise(in_channels, wide, padding),
            _Depthwise(wide, spec.stride),
            _Pointwise(wide, spec.out, padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.inverted_residual(x)
        return x + y if x.shape == y.shape else y


class MobileNetNode(NodeNetwork):
    """`features`: stem (root only) and inverted residuals; `classifier`: 1x1, pool, log-softmax.

    With `pointwise_padding` 1, as published, every 1x1 convolution grows the map by 2 and no
    shortcut is ever taken.
    """

    def __init__(
        self,
        spec: MobileNet,
        in_shape: Shape,
        outputs: int,
        *,
        pointwise_padding: int,
    ):
        super().__init__()
        channels = in_shape[0]
        layers: list[nn.Module] = []
        if spec.stem:
            layers += [
                nn.Conv2d(channels, spec.stem, 3, stride=2, padding=1),
                nn.BatchNorm2d(spec.stem),
                nn.ReLU6(),
            ]
            channels = spec.stem
        for residual in spec.residuals:
            layers.append(_InvertedResidual(channels, residual, pointwise_padding))
            channels = residual.out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, outputs, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.LogSoftmax(dim=1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and log-probabilities [B, outputs]."""
        features = self.features(x)
        return features, self.classifier(features)
