"""VGG; keys and semantics of torchvision's vgg16, and with batch norm of its vgg16_bn."""

from torch import Tensor, nn

from data.recipes.baselines.architectures import Vgg
from trunk_torch_ref.baselines.layers import AdaptiveAvgPool, Resize
from trunk_torch_ref.nodes.node import NodeNetwork


class VggModel(NodeNetwork):
    """Scores; the features are the map before the Linear layers' own pool."""

    def __init__(self, spec: Vgg, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        layers: list[nn.Module] = []
        for stage, widths in enumerate(spec.stages):
            for width in widths:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if spec.batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            if stage < spec.pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = AdaptiveAvgPool(spec.pool)
        self.flatten = nn.Flatten()
        inputs, layers = channels * spec.pool**2, []
        for hidden in spec.hidden:
            layers += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.5)]
            inputs = hidden
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, outputs))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(self.resize(x))
        return features, self.classifier(self.flatten(self.avgpool(features)))
