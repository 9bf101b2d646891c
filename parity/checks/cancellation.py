"""How far attention's gradients cancel, so what their rounding is to be measured against.

Softmax's gradient is the difference p (dp - sum p dp), and a query's gradient sums it over keys
that have much in common, which it then takes out again. Rounding is made on what is summed, not
on what is left: on trained-like weights ten times as much and more.
"""

import math

import numpy as np
import torch
from torch import Tensor

from trunk_torch_ref.baselines.layers import ScaledDotProduct, SelfAttention


def of_attention(layer: SelfAttention | ScaledDotProduct, x: np.ndarray, dy: np.ndarray) -> float:
    """What the gradients of queries, keys and values are left over from, by their largest value.

    The former is the root of the summed squares of all terms, so what a random walk of their
    rounding errors scales with; computed in float64. At least 1.

    Args:
      layer: with its heads, and projections if it has any.
      x: its input, [b, n, d], or queries, keys and values packed, [b, n, 3 d].
      dy: the gradient of its output, [b, n, d].

    """
    packed, toward = torch.tensor(x).double(), torch.tensor(dy).double()
    heads = layer.num_heads if isinstance(layer, SelfAttention) else layer.heads
    if isinstance(layer, SelfAttention):
        into, bias, out = (
            tensor.detach().cpu().double()
            for tensor in (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight)
        )
        packed, toward = packed @ into.T + bias, toward @ out
    q, k, v = packed.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    toward = toward.unflatten(2, (heads, -1)).transpose(1, 2)
    root = math.sqrt(q.shape[-1])
    share = torch.softmax(q @ k.mT / root, -1)
    dshare = toward @ v.mT
    mean = (share * dshare).sum(-1, keepdim=True)
    left, apart = share * (dshare - mean), share * (dshare.abs() + mean.abs())
    result = (left @ k / root, left.mT @ q / root, share.mT @ toward)
    squares = apart.square()
    terms = (squares @ k.square(), squares.mT @ q.square())
    summed = max(math.sqrt(_largest(t)) / root for t in terms)
    return max(1.0, summed / max(map(_largest, result)))


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
