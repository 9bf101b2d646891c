"""Layers with int8 weights: a quarter of the bytes, one float scale an output channel.

A weight w of output channel o is q * s[o] with q = round(w / s[o]), -127 to 127, and
s[o] = max |w| / 127 over the channel.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

M = TypeVar("M", bound=nn.Module)


class QuantizedConv2d(nn.Module):
    """A convolution whose kernel is int8; it is computed in the type of its input."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        weight, scale = quantize_array(layer.weight.detach(), dim=(1, 2, 3))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())
        self.bias = layer.bias
        self.stride, self.padding, self.groups = layer.stride, layer.padding, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C2, H2, W2]."""
        weight = self.weight.to(x.dtype)
        y = functional.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)
        y = y * self.scale[:, None, None]
        return y if self.bias is None else y + self.bias[:, None, None]


class QuantizedLinear(nn.Module):
    """A linear layer whose kernel is int8.

    `dynamic`: its input is made int8 too, with one scale a row of the batch that is found
    anew in each call, and products are summed as whole numbers.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, dynamic: bool):
        super().__init__()
        weight, scale = quantize_array(layer.weight.detach(), dim=1)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())
        self.bias = layer.bias
        self.dynamic = dynamic

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] to [B, out]."""
        if not self.dynamic:
            return (x @ self.weight.to(x.dtype).T) * self.scale + self.bias
        q, row = quantize_array(x, dim=1)
        whole = torch._int_mm(q, self.weight.T)  # PyTorch's only product of int8 to int32
        return whole.to(x.dtype) * (row * self.scale) + self.bias


def quantize_array(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(q, s) with x about q * s: one s for all that lies along `dim`, which it keeps as 1.

    Rounding is to the nearest, halves to even; s is 1 where all is zero.
    """
    largest = x.abs().amax(dim, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return torch.round(x / scale).to(torch.int8), scale


def quantize(module: M, *, convolutions: bool = True, dynamic: bool = False) -> M:
    """The module, its linear layers replaced by int8 ones, and if wished its convolutions."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear):
            setattr(module, name, QuantizedLinear(layer, dynamic))
        elif isinstance(layer, nn.Conv2d) and convolutions:
            setattr(module, name, QuantizedConv2d(layer))
        else:
            quantize(layer, convolutions=convolutions, dynamic=dynamic)
    return module
