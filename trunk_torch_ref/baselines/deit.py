"""DeiT with timm's keys and semantics, DINOv2 with its hub's; they share their blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.recipes.baselines.architectures import Deit, Dinov2, Vit
from trunk_torch_ref.baselines.layers import LayerScale, Resize, ScaledDotProduct
from trunk_torch_ref.nodes.node import NodeNetwork

EPS = 1e-6


class _Attention(nn.Module):
    def __init__(self, spec: Vit):
        super().__init__()
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.attend = ScaledDotProduct(spec.heads)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(self.qkv(x)))


class _Mlp(nn.Module):
    def __init__(self, spec: Vit):
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    """Attention, then two Linear layers, each after a layer norm and added to its input."""

    def __init__(self, spec: Vit):
        super().__init__()
        scaled = isinstance(spec, Dinov2)
        self.norm1 = nn.LayerNorm(spec.width, eps=EPS)
        self.attn = _Attention(spec)
        self.ls1 = LayerScale(spec.width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.width, eps=EPS)
        self.mlp = _Mlp(spec)
        self.ls2 = LayerScale(spec.width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, spec: Vit, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, spec.width, spec.patch, stride=spec.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DeitModel(NodeNetwork):
    """Scores; the features are all tokens after the last layer norm, the class token first."""

    def __init__(self, spec: Deit | Dinov2, channels: int, outputs: int, *, size: int = 0):
        super().__init__()
        self.resize = Resize(size)
        self.side = spec.image // spec.patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.width).normal_(std=1e-6))
        count = self.side**2 + 1
        self.pos_embed = nn.Parameter(torch.empty(1, count, spec.width).normal_(std=0.02))
        self.patch_embed = _Patches(spec, channels)
        self.blocks = nn.Sequential(*(_Block(spec) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, eps=EPS)
        self.head: nn.Module = nn.Linear(spec.width, outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embeddings [1, N, D] of the class token and of rows x columns patches."""
        return self.pos_embed

    def tokens(self, x: Tensor) -> Tensor:
        """Class token and patches, with their positions, [B, N, D]."""
        patches = self.patch_embed(self.resize(x))
        first = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self.positions(*patches.shape[2:])

    def features(self, x: Tensor) -> Tensor:
        """All tokens after the last layer norm, [B, N, D]."""
        return self.norm(self.blocks(self.tokens(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, N, D] and raw scores [B, outputs]."""
        features = self.features(x)
        return features, self.head(features[:, 0])


class Dinov2Model(DeitModel):
    """With registers between class token and patches, and positions interpolated to the input.

    The hub's model has no head: its normalised class token is what one is given. Ours is
    called `head`; without one (as in the release) that token is the scores. `mask_token` takes
    part in the hub's own training only.
    """

    def __init__(self, spec: Dinov2, channels: int, outputs: int, *, size: int = 0):
        super().__init__(spec, channels, outputs, size=size)
        registers = torch.empty(1, spec.registers, spec.width).normal_(std=1e-6)
        self.register_tokens = nn.Parameter(registers)
        self.mask_token = nn.Parameter(torch.zeros(1, spec.width))
        if not spec.head:
            self.head = nn.Identity()

    def positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.side:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        # interpolation as a matrix: the gradient of interpolate itself repeats on no GPU
        each = torch.eye(self.side**2, dtype=rest.dtype, device=rest.device)
        each = each.unflatten(1, (self.side, self.side))[None]
        moved = functional.interpolate(each, (rows, columns), mode="bicubic", antialias=True)
        return torch.cat([first, moved[0].flatten(1).T @ rest], dim=1)

    def tokens(self, x: Tensor) -> Tensor:
        tokens = super().tokens(x)
        registers = self.register_tokens.expand(x.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
