"""Vision transformer; keys and semantics of torchvision's vit_b_16."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from data.recipes.baselines.architectures import Vit
from trunk_torch_ref.baselines.layers import Resize, SelfAttention
from trunk_torch_ref.nodes.node import NodeNetwork

EPS = 1e-6


class _Block(nn.Module):
    """Attention, then two Linear layers, each after a layer norm and added to its input."""

    def __init__(self, spec: Vit):
        super().__init__()
        self.ln_1 = nn.LayerNorm(spec.width, eps=EPS)
        self.self_attention = SelfAttention(spec.width, spec.heads)
        self.ln_2 = nn.LayerNorm(spec.width, eps=EPS)
        widen, narrow = nn.Linear(spec.width, spec.hidden), nn.Linear(spec.hidden, spec.width)
        self.mlp = nn.Sequential(
            widen,
            nn.GELU(),
            nn.Identity(),  # torchvision's dropout, of rate 0
            narrow,
            nn.Identity(),
        )
        for layer in (widen, narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Encoder(nn.Module):
    def __init__(self, spec: Vit):
        super().__init__()
        count = (spec.image // spec.patch) ** 2 + 1
        self.pos_embedding = nn.Parameter(torch.empty(1, count, spec.width).normal_(std=0.02))
        blocks = ((f"encoder_layer_{number}", _Block(spec)) for number in range(spec.depth))
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(spec.width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class VitModel(NodeNetwork):
    """Scores; the features are all tokens after the last layer norm, the class token first."""

    def __init__(self, spec: Vit, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.conv_proj = nn.Conv2d(channels, spec.width, spec.patch, stride=spec.patch)
        self.encoder = _Encoder(spec)
        head = nn.Linear(spec.width, outputs)
        self.heads = nn.Sequential(OrderedDict(head=head))
        nn.init.normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * spec.patch**2)))
        for bias in (self.conv_proj.bias, head.bias):
            assert bias is not None
            nn.init.zeros_(bias)
        nn.init.zeros_(head.weight)

    def features(self, x: Tensor) -> Tensor:
        """All tokens after the last layer norm, [B, N, D]."""
        tokens = self.conv_proj(self.resize(x)).flatten(2).transpose(1, 2)
        first = self.class_token.expand(x.shape[0], -1, -1)
        return self.encoder(torch.cat([first, tokens], dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, N, D] and raw scores [B, outputs]."""
        features = self.features(x)
        return features, self.heads(features[:, 0])
