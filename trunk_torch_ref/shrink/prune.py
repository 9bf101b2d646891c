"""Structured pruning by the L2 norm of rows, and networks of the sizes that it leaves."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from data.base.errors import UserError

M = TypeVar("M", bound=nn.Module)
Layer = nn.Conv2d | nn.Linear | nn.BatchNorm2d


def masked(module: M, share: float) -> M:
    """A copy with the weakest rows of every convolution and linear layer set to zero."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            prune.ln_structured(layer, "weight", amount=share, n=2, dim=0)
            prune.remove(layer, "weight")
    return module


def strongest(weight: Tensor, share: float) -> Tensor:
    """The rows that `masked` leaves, in order."""
    rows = len(weight)
    count = rows - min(round(share * rows), rows - 1)
    return weight.detach().flatten(1).double().norm(dim=1).topk(count).indices.sort().values


def resized(module: M, in_shape: tuple[int, int, int], weights: Mapping[str, np.ndarray]) -> M:
    """The module with layers of the sizes that pruned weights have, untrained.

    UserError if those sizes do not fit together.
    """
    for name, layer in list(module.named_modules()):
        array = weights.get(f"{name}.weight")
        if not isinstance(layer, Layer) or array is None or array.ndim != layer.weight.ndim:
            continue  # a missing tensor is reported when the weights are loaded
        replacement = _of_size(layer, tuple(array.shape))
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, replacement)
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *in_shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"the pruned layers do not fit together ({reason})") from None
    return module


def _of_size(layer: Layer, shape: tuple[int, ...]) -> nn.Module:
    """A layer like this one, with a weight of this shape."""
    if isinstance(layer, nn.Conv2d):
        groups = shape[0] if layer.groups > 1 else 1
        return nn.Conv2d(
            shape[1] * groups,
            shape[0],
            _pair(layer.kernel_size),
            _pair(layer.stride),
            layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
            groups=groups,
            bias=layer.bias is not None,
        )
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0])
    return nn.BatchNorm2d(shape[0], layer.eps, layer.momentum)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    """A layer's numbers for rows and for columns, which PyTorch's types take for any many."""
    rows, columns = sides
    return rows, columns
