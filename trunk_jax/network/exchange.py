"""Weights as a PyTorch state_dict in NumPy: the form in which both frameworks read and write them.

Driven by layer type: module paths equal PyTorch's, and each layer class has a `LAYOUT`, which says
what PyTorch calls its arrays and how it lays them out. No model needs a table of its own.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.base.weights import check_fit, with_counters
from trunk_jax.layers.basic import Layout
from trunk_jax.network.network import Network, merge, split

# PyTorch's type where it is not ours
_INT64 = ("num_batches_tracked", "fake_quant_enabled", "observer_enabled")


def layout(layer: nnx.Module) -> Layout:
    """Where a state_dict has the arrays that the layer itself holds; nothing for a container."""
    return getattr(type(layer), "LAYOUT", {})


def _entries(module: nnx.Module) -> list[tuple[str, nnx.Variable, tuple[int, ...]]]:
    """(state_dict key, variable, axes) of every array in a module."""
    entries, covered = [], 0
    for path, layer in nnx.iter_modules(module):
        for theirs, (ours, axes) in layout(layer).items():
            variable = getattr(layer, ours)
            if variable is not None:
                axes = tuple(range(variable.ndim)) if axes is None else axes
                words = [str(part) for part in (*path, theirs) if part != ""]
                entries.append((".".join(words), variable, axes))
                covered += 1
    total = len(nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))))
    if covered != total:
        raise TypeError(f"{total - covered} arrays belong to layers without a LAYOUT for them")
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

    Batch counters that it leaves out start at zero. UserError listing every missing, extra or
    misshapen tensor.
    """
    module = merge(network)
    weights = with_counters(shapes(network), weights)
    types = {key: np.dtype(variable.dtype) for key, variable, _ in _entries(module)}
    check_fit(shapes(network), weights, types)
    for key, variable, axes in _entries(module):
        array = np.asarray(weights[key]).transpose(np.argsort(axes).tolist())
        integer = jnp.issubdtype(variable.dtype, jnp.integer)
        # set_value, not [...]: assignment into the old array would keep its type
        variable.set_value(jnp.asarray(array, variable.dtype if integer else None))
    return split(module)
