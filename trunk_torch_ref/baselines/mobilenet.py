"""MobileNetV2; keys and semantics of torchvision's mobilenet_v2."""

from torch import Tensor, nn

from data.recipes.baselines.architectures import MobileNetV2
from trunk_torch_ref.baselines.layers import Resize
from trunk_torch_ref.nodes.node import NodeNetwork


def _block(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    """Widen (unless the factor is 1), filter depthwise, narrow without a ReLU6."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int):
        super().__init__()
        wide = expansion * channels
        layers: list[nn.Module] = [_block(channels, wide, 1)] if expansion != 1 else []
        layers += [
            _block(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2Model(NodeNetwork):
    """Scores; the features are the map before the average pool."""

    def __init__(self, spec: MobileNetV2, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        layers: list[nn.Module] = [_block(channels, spec.stem, 3, 2)]
        channels = spec.stem
        for expansion, out, blocks, stride in spec.rows:
            for block in range(blocks):
                step = 1 if block else stride
                layers.append(_InvertedResidual(channels, out, expansion, step))
                channels = out
        self.features = nn.Sequential(*layers, _block(channels, spec.last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(spec.last, outputs))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(self.resize(x))
        return features, self.classifier(self.flatten(self.avgpool(features)))
