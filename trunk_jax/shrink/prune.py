"""Structured pruning by the L2 norm of a convolution's rows: as masks, or physically smaller.

A row is an output channel. It can be taken out where nothing but the layers on its way to the
next convolution or linear layer reads it. Which layers those are is seen from the traced program:
what reads which tensor. A tensor that a shortcut reads as well, or that the children are given,
keeps its channels.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.extend import core

from data.base.errors import UserError
from trunk_jax.layers.basic import (
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Identity,
    Layer,
    Linear,
    MaxPool,
    Relu,
    Relu6,
    record,
)
from trunk_jax.network.exchange import layout, to_state_dict
from trunk_jax.network.network import Network, dtype_of, merge, split
from trunk_jax.network.traced import shaped
from trunk_jax.nodes import Shape

_CHANNELWISE = (BatchNorm, Relu, Relu6, MaxPool, Dropout, Identity, GlobalAvgPool)
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Chain:
    """A convolution whose rows can be removed.

    `producer`, `carriers`, `consumer`: names of the convolution, of the layers with an entry a
    channel between, and of the layer that reads it; `block`: entries of the consumer's second
    axis that belong to one channel (above 1 after Flatten).
    """

    producer: str
    carriers: tuple[str, ...]
    consumer: str
    block: int


def chains(network: Network, in_shape: Shape, keep_features: bool) -> list[Chain]:
    """All convolutions of a network whose rows can be removed.

    `keep_features`: whether somebody else reads the features, as a node's children do.
    """
    module = merge(network)
    names = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(module)}
    layers: list[Layer] = []

    def run(x: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        with record() as tape:
            features, _ = module(x)
        layers.extend(layer for layer, _, _ in tape)
        return features, [(x, y) for _, x, y in tape]

    image = jax.ShapeDtypeStruct((1, *in_shape), dtype_of(network))
    program = jax.make_jaxpr(run)(image).jaxpr
    features, *tensors = program.outvars
    called = zip(layers, tensors[::2], tensors[1::2], strict=True)
    steps = [step for step in called if step[1] is not step[2]]  # some do nothing in eval mode
    # How many operations read each tensor, of layers and others. No layer reads its input twice.
    uses = Counter(v for eqn in program.eqns for v in eqn.invars if isinstance(v, core.Var))
    uses[features] += keep_features
    found = (
        _follow(layer, made, steps, uses, names)
        for layer, _, made in steps
        if isinstance(layer, Conv) and layer.groups == 1
    )
    return [chain for chain in found if chain]


def _follow(
    producer: Conv,
    tensor: core.Var,
    steps: Sequence[tuple[Layer, core.Var, core.Var]],
    uses: Mapping[core.Var, int],
    names: Mapping[int, str],
) -> Chain | None:
    """From a convolution to the layer that reads it, as long as nothing else does."""
    carriers: list[str] = []
    block = 1
    while True:
        readers = [(layer, y) for layer, x, y in steps if x is tensor]
        if len(readers) != 1 or uses[tensor] != 1:
            return None
        layer, result = readers[0]
        shape = shaped(tensor).shape
        depthwise = isinstance(layer, Conv) and layer.groups == shape[-1]
        if isinstance(layer, Conv | Linear) and not depthwise:
            return Chain(names[id(producer)], tuple(carriers), names[id(layer)], block)
        if isinstance(layer, Flatten):
            block = math.prod(shape[1:3])
        elif not isinstance(layer, _CHANNELWISE) and not depthwise:
            return None
        if depthwise or isinstance(layer, BatchNorm):
            carriers.append(names[id(layer)])
        tensor = result


def weakest(weight: np.ndarray, share: float) -> np.ndarray:
    """The rows with the smallest L2 norms, sorted: `share` of them, rounded, never all."""
    rows = len(weight)
    count = min(round(share * rows), rows - 1)
    norms = np.sqrt(np.square(weight.reshape(rows, -1).astype(np.float64)).sum(1))
    return np.sort(np.argsort(norms, kind="stable")[:count])


def masked(network: Network, share: float) -> Weights:
    """The weights with the weakest rows of every convolution and linear layer set to zero.

    Biases stay, as in the published demonstration; nothing gets smaller.
    """
    weights = to_state_dict(network)
    for name, weight in weights.items():
        if weight.ndim > 1:
            weights[name] = weight.copy()
            weights[name][weakest(weight, share)] = 0
    return weights


def removed(weights: Mapping[str, np.ndarray], plan: list[Chain], share: float) -> Weights:
    """The weights without the weakest rows of every chain, and without what read them."""
    result = dict(weights)
    for chain in plan:
        weight = weights[f"{chain.producer}.weight"]
        keep = np.setdiff1d(np.arange(len(weight)), weakest(weight, share))
        for layer in (chain.producer, *chain.carriers):
            for name, array in result.items():
                if name.startswith(f"{layer}.") and array.ndim:
                    result[name] = array[keep]
        name = f"{chain.consumer}.weight"
        columns = (keep[:, None] * chain.block + np.arange(chain.block)).reshape(-1)
        result[name] = result[name][:, columns]
    return result


def resized(network: Network, in_shape: Shape, weights: Mapping[str, np.ndarray]) -> Network:
    """The network with arrays of the shapes that pruned weights have; their values are zeros.

    UserError if those shapes do not fit together.
    """
    module = merge(network)
    for path, layer in nnx.iter_modules(module):
        for theirs, (ours, axes) in layout(layer).items():
            array = weights.get(".".join(map(str, (*path, theirs))))
            variable = getattr(layer, ours)
            if array is None or variable is None:
                continue  # a missing tensor is reported when the weights are loaded
            axes = tuple(range(variable.ndim)) if axes is None else axes
            if array.ndim == len(axes):
                shape = np.array(array.shape, int)[np.argsort(axes)] if array.ndim else ()
                variable.set_value(jnp.zeros(tuple(int(n) for n in shape), variable.dtype))
        if isinstance(layer, Conv) and layer.groups > 1:
            layer.groups = layer.kernel.shape[-1]
    image = jax.ShapeDtypeStruct((1, *in_shape), dtype_of(network))
    try:
        jax.eval_shape(module, image)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"the pruned layers do not fit together ({reason})") from None
    return split(module)
