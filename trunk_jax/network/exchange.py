"""Weights as a PyTorch state_dict in NumPy: the form in which both frameworks read and write them.

Driven by layer type: module paths equal PyTorch's, so this table of what each kind of layer
calls its arrays, and how it lays them out, serves every model.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.base.weights import check_fit
from trunk_jax.baselines.layers import (
    ChannelScale,
    LayerNorm,
    LayerScale,
    MaskToken,
    MultiHeadAttention,
    PatchConv,
    Token,
)
from trunk_jax.baselines.qat import FakeQuant, Observer, QuantConv, QuantLinear
from trunk_jax.layers.basic import BatchNorm, Conv, Linear
from trunk_jax.network.network import Network, merge, split
from trunk_jax.shrink.quantized import QuantizedConv, QuantizedLinear

# layer type -> PyTorch's name -> (our name, axes that turn our layout into PyTorch's); an empty
# name is a parameter that PyTorch keeps under the module's own path, no axes mean as they are
LAYOUTS: dict[type, dict[str, tuple[str, tuple[int, ...] | None]]] = {
    Conv: {"weight": ("kernel", (3, 2, 0, 1)), "bias": ("bias", (0,))},
    Linear: {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
    QuantizedConv: {
        "weight": ("kernel", (3, 2, 0, 1)),
        "scale": ("scale", (0,)),
        "bias": ("bias", (0,)),
    },
    QuantizedLinear: {
        "weight": ("kernel", (1, 0)),
        "scale": ("scale", (0,)),
        "bias": ("bias", (0,)),
    },
    BatchNorm: {
        "weight": ("scale", (0,)),
        "bias": ("bias", (0,)),
        "running_mean": ("mean", (0,)),
        "running_var": ("var", (0,)),
        "num_batches_tracked": ("count", ()),
    },
    LayerNorm: {"weight": ("scale", (0,)), "bias": ("bias", (0,))},
    MultiHeadAttention: {"in_proj_weight": ("kernel", (1, 0)), "in_proj_bias": ("bias", (0,))},
    LayerScale: {"gamma": ("gamma", (0,))},
    ChannelScale: {"": ("value", (2, 0, 1))},
    Token: {"": ("value", (0, 1, 2))},
    MaskToken: {"": ("value", (0, 1))},
}
LAYOUTS[PatchConv] = LAYOUTS[Conv]
LAYOUTS[QuantConv] = {"weight": LAYOUTS[Conv]["weight"]}
LAYOUTS[QuantLinear] = LAYOUTS[Linear]
LAYOUTS[FakeQuant] = {
    name: (name, (0,)) for name in ("scale", "zero_point", "fake_quant_enabled", "observer_enabled")
}
LAYOUTS[Observer] = {name: (name, None) for name in ("min_val", "max_val", "eps")}
# PyTorch's type where it is not ours
_INT64 = ("num_batches_tracked", "fake_quant_enabled", "observer_enabled")


def _entries(module: nnx.Module) -> list[tuple[str, nnx.Variable, tuple[int, ...]]]:
    """(state_dict key, variable, axes) of every array in a module."""
    entries, covered = [], 0
    for path, layer in nnx.iter_modules(module):
        for theirs, (ours, axes) in LAYOUTS.get(type(layer), {}).items():
            variable = getattr(layer, ours)
            if variable is not None:
                axes = tuple(range(variable.ndim)) if axes is None else axes
                words = [str(part) for part in (*path, theirs) if part != ""]
                entries.append((".".join(words), variable, axes))
                covered += 1
    total = len(nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))))
    if covered != total:
        raise TypeError(f"{total - covered} arrays belong to layers that LAYOUTS does not know")
    return sorted(entries, key=lambda entry: entry[0])


def to_state_dict(network: Network) -> dict[str, np.ndarray]:
    """The network's arrays under PyTorch's names, in PyTorch's layout, of unchanged type.

    Counters and switches become int64, as in PyTorch.
    """
    return {
        key: np.asarray(variable[...]).transpose(axes).astype(_dtype(key, variable))
        for key, variable, axes in _entries(merge(network))
    }


def _dtype(key: str, variable: nnx.Variable) -> Any:
    return np.int64 if key.endswith(_INT64) else np.dtype(variable.dtype)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the network's state_dict; the network may be shapes only."""
    return {
        key: tuple(variable.shape[axis] for axis in axes)
        for key, variable, axes in _entries(merge(network))
    }


def from_state_dict(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """The network with its arrays replaced by those of a state_dict.

    UserError listing every missing, extra or misshapen tensor.
    """
    module = merge(network)
    types = {key: np.dtype(variable.dtype) for key, variable, _ in _entries(module)}
    check_fit(shapes(network), weights, types)
    for key, variable, axes in _entries(module):
        array = np.asarray(weights[key]).transpose(np.argsort(axes).tolist())
        integer = jnp.issubdtype(variable.dtype, jnp.integer)
        # set_value, not [...]: assignment into the old array would keep its type
        variable.set_value(jnp.asarray(array, variable.dtype if integer else None))
    return split(module)
