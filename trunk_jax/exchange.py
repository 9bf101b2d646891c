"""Weights as a PyTorch state_dict in NumPy: the form in which both frameworks read and write them.

Driven by layer type: module paths equal PyTorch's, so this table of what each kind of layer
calls its arrays, and how it lays them out, serves every model.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.exchange import check_fit
from trunk_jax.layers import BatchNorm, Conv, Linear
from trunk_jax.network import Network, merge, split
from trunk_jax.quantized import QuantizedConv, QuantizedLinear

# layer type -> PyTorch's name -> (our name, axes that turn our layout into PyTorch's)
LAYOUTS: dict[type, dict[str, tuple[str, tuple[int, ...]]]] = {
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
}


def _entries(module: nnx.Module) -> list[tuple[str, nnx.Variable, tuple[int, ...]]]:
    """(state_dict key, variable, axes) of every array in a module."""
    entries, covered = [], 0
    for path, layer in nnx.iter_modules(module):
        for theirs, (ours, axes) in LAYOUTS.get(type(layer), {}).items():
            variable = getattr(layer, ours)
            if variable is not None:
                entries.append((".".join(map(str, (*path, theirs))), variable, axes))
                covered += 1
    total = len(nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))))
    if covered != total:
        raise TypeError(f"{total - covered} arrays belong to layers that LAYOUTS does not know")
    return sorted(entries, key=lambda entry: entry[0])


def to_state_dict(network: Network) -> dict[str, np.ndarray]:
    """The network's arrays under PyTorch's names, in PyTorch's layout, of unchanged type.

    `num_batches_tracked` becomes int64, as in PyTorch.
    """
    return {
        key: np.asarray(variable[...]).transpose(axes).astype(_dtype(key, variable))
        for key, variable, axes in _entries(merge(network))
    }


def _dtype(key: str, variable: nnx.Variable) -> Any:
    return np.int64 if key.endswith("num_batches_tracked") else np.dtype(variable.dtype)


def from_state_dict(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """The network with its arrays replaced by those of a state_dict.

    UserError listing every missing, extra or misshapen tensor.
    """
    module = merge(network)
    entries = _entries(module)
    expected = {
        key: tuple(np.array(variable.shape, int)[list(axes)]) for key, variable, axes in entries
    }
    check_fit(expected, weights)
    for key, variable, axes in entries:
        array = np.asarray(weights[key]).transpose(np.argsort(axes).tolist())
        integer = jnp.issubdtype(variable.dtype, jnp.integer)
        # set_value, not [...]: assignment into the old array would keep its type
        variable.set_value(jnp.asarray(array, variable.dtype if integer else None))
    return split(module)
