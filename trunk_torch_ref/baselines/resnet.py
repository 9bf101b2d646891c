"""ResNet with bottleneck blocks; keys and semantics of torchvision's resnet50."""

from torch import Tensor, nn

from data.recipes.baselines.architectures import ResNet
from trunk_torch_ref.baselines.layers import Resize
from trunk_torch_ref.nodes.node import NodeNetwork

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; the input is added."""

    def __init__(self, channels: int, width: int, stride: int, folded: bool):
        super().__init__()
        out = EXPANSION * width
        norm = nn.Identity if folded else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(channels, width, 1, bias=folded)
        self.bn1 = norm(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=folded)
        self.bn2 = norm(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=folded), norm(out)
            )
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


class ResNetModel(NodeNetwork):
    """Scores; the features are the last stage's map."""

    block = Bottleneck

    def __init__(self, spec: ResNet, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        width = spec.width
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=spec.folded)
        self.bn1 = nn.Identity() if spec.folded else nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.stages = len(spec.blocks)
        for stage, blocks in enumerate(spec.blocks):
            row = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                row.append(self.block(channels, width, stride, spec.folded))
                channels = EXPANSION * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*row))
            width *= 2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        """The last stage's map."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.resize(x)))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(x)
        return features, self.fc(self.flatten(self.avgpool(features)))
