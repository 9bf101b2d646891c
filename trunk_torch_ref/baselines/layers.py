"""The few layers of the baselines that PyTorch itself does not have."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """The dimensions in another order."""

    def __init__(self, *order: int):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class StochasticDepth(nn.Module):
    """In training an image's whole branch is dropped with probability `p`."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        one = x.new_ones(x.shape[0], *[1] * (x.ndim - 1))
        return x * functional.dropout(one, self.p)


class LayerScale(nn.Module):
    """A learned factor a feature."""

    def __init__(self, features: int, start: float = 1.0):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((features,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ScaledDotProduct(nn.Module):
    """Attention of tokens to each other; queries, keys and values packed: [B, N, 3 D]."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = x.reshape(b, n, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).reshape(b, n, width // 3)


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's own attention, of tokens [B, N, D] to each other."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, batch_first=True)

    # PyTorch's takes queries, keys and values; here the three are one, as a layer has one input.
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class AdaptiveAvgPool(nn.AdaptiveAvgPool2d):
    """The mean over cells; a map that has its size already is given back.

    PyTorch's own is the same there, but its gradient on CUDA is not deterministic.
    """

    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size
        return x if x.shape[-2:] == (size, size) else super().forward(x)


class Resize(nn.Module):
    """Bilinear resizing to size x size; size 0 leaves images as they are."""

    def __init__(self, size: int = 0):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.size or x.shape[2:] == (self.size, self.size):
            return x
        return functional.interpolate(x, (self.size, self.size), mode="bilinear")
