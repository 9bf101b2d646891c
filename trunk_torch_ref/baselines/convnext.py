"""ConvNeXt; keys and semantics of torchvision's convnext_base."""

import torch
from torch import Tensor, nn

from data.recipes.baselines.architectures import ConvNext
from trunk_torch_ref.baselines.layers import LayerNorm2d, Permute, Resize, StochasticDepth
from trunk_torch_ref.nodes.node import NodeNetwork

EPS = 1e-6


class _Block(nn.Module):
    """7x7 depthwise, layer norm, two Linear layers a pixel, scaled and added to the input."""

    def __init__(self, width: int, rate: float):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.stochastic_depth = StochasticDepth(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class ConvNextModel(NodeNetwork):
    """Scores; the features are the last stage's map."""

    def __init__(self, spec: ConvNext, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        width = spec.widths[0]
        stem = nn.Conv2d(channels, width, 4, stride=4)
        norm = [LayerNorm2d(width, eps=EPS)] if spec.stem_norm else []
        layers: list[nn.Module] = [nn.Sequential(stem, *norm) if norm else stem]
        total, number = sum(spec.depths), 0
        for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            row = []
            for _ in range(depth):
                row.append(_Block(width, spec.drop * number / max(1, total - 1)))
                number += 1
            layers.append(nn.Sequential(*row))
            if stage + 1 < len(spec.widths):
                down = nn.Conv2d(width, spec.widths[stage + 1], 2, stride=2)
                layers.append(nn.Sequential(LayerNorm2d(width, eps=EPS), down))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(width, eps=EPS), nn.Flatten(), nn.Linear(width, outputs)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(self.resize(x))
        return features, self.classifier(self.avgpool(features))
