"""VGG-style node (docs/trunk.md, section 2)."""

from torch import Tensor, nn

from data.recipes.networks import Vgg
from trunk_torch_ref.nodes.node import NodeNetwork, Shape


class VggNode(NodeNetwork):
    """`features`: 3x3 convolutions, batch norm, ReLU; `classifier`: one Linear, raw scores."""

    def __init__(self, spec: Vgg, in_shape: Shape, outputs: int):
        super().__init__()
        channels, height, width = in_shape
        layers: list[nn.Module] = []
        for word in spec.layers:
            if word == "M":
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            elif word in ("D", "D2"):
                layers.append(nn.Dropout(0.5) if word == "D" else nn.Dropout2d(0.5))
            else:
                out, _, stride = word[1:].partition("/")
                step = int(stride or 1)
                layers += [
                    nn.Conv2d(channels, int(out), 3, stride=step, padding=1),
                    nn.BatchNorm2d(int(out)),
                    nn.ReLU(),
                ]
                channels = int(out)
                height, width = (height - 1) // step + 1, (width - 1) // step + 1
        layers.append(nn.AvgPool2d(1))  # as published: it changes nothing
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Linear(channels * height * width, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(x)
        return features, self.classifier(self.flatten(features))
