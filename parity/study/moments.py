"""What an optimiser remembers, carried from PyTorch to JAX and back.

Moments are kept by PyTorch's name for them (`exp_avg`, `exp_avg_sq`, `momentum_buffer`), each a
table by parameter in PyTorch's layout. `step` is how many steps were taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity.study.step import Arrays, weights
from trunk_jax.network import exchange
from trunk_jax.network.network import Network

ADAM = ("exp_avg", "exp_avg_sq")
SGD = ("momentum_buffer",)


@dataclass(frozen=True)
class Moments:
    """`tensors`: by name of the moment and of the parameter. `step`: those taken, or None (SGD)."""

    tensors: Mapping[str, Arrays]
    step: int | None


def of_torch(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> Moments:
    """PyTorch's; zeros before the first step and for parameters that never had a gradient."""
    adam = isinstance(optimizer, torch.optim.Adam)
    found: dict[str, Arrays] = {name: {} for name in (ADAM if adam else SGD)}
    steps = 0
    for key, parameter in network.named_parameters():
        state = optimizer.state.get(parameter, {})
        steps = max(steps, int(state.get("step", 0)))
        for name, table in found.items():
            value = state.get(name)
            value = torch.zeros_like(parameter) if value is None else value
            table[key] = value.detach().numpy().copy()
    return Moments(found, steps if adam else None)


def to_optax(state: optax.OptState, moments: Moments, network: Network) -> optax.OptState:
    """JAX's optimiser state with these moments in the place of its own.

    `network`: of the parameters' shapes and type.
    """
    filler = exchange.to_state_dict(network)

    def tree(name: str) -> Any:
        return exchange.from_state_dict(network, filler | moments.tensors[name]).params

    def one(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            count = jnp.asarray(moments.step, node.count.dtype)
            return optax.ScaleByAdamState(count, tree("exp_avg"), tree("exp_avg_sq"))
        if isinstance(node, optax.TraceState):
            return optax.TraceState(tree("momentum_buffer"))
        if isinstance(node, optax.EmaState):  # a planted fault's
            return optax.EmaState(node.count, tree("momentum_buffer"))
        return node

    return jax.tree.map(one, state, is_leaf=_remembers)


def of_optax(state: optax.OptState, network: Network) -> Moments:
    """JAX's."""

    def table(params: Any) -> Arrays:
        return weights(exchange.to_state_dict(replace(network, params=params)))

    for node in jax.tree.leaves(state, is_leaf=_remembers):
        if isinstance(node, optax.ScaleByAdamState):
            found = dict(zip(ADAM, (table(node.mu), table(node.nu)), strict=True))
            return Moments(found, int(node.count))
        if isinstance(node, optax.TraceState | optax.EmaState):
            kept = node.trace if isinstance(node, optax.TraceState) else node.ema
            return Moments({SGD[0]: table(kept)}, None)
    raise TypeError("an optimiser that remembers nothing that is known here")


def _remembers(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState | optax.TraceState | optax.EmaState)


def double(moments: Moments) -> Moments:
    """In float64."""
    wide = {
        name: {key: np.asarray(value, np.float64) for key, value in table.items()}
        for name, table in moments.tensors.items()
    }
    return Moments(wide, moments.step)
