"""Initial weights: the distributions that the public models were trained from, drawn by NumPy."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from trunk_jax.layers.basic import Conv, Linear

Rule = Callable[[np.random.Generator, Conv | Linear], None]


def fill(module: nnx.Module, rng: np.random.Generator, *, conv: Rule, linear: Rule) -> None:
    """Draw the weights of every convolution and Linear layer in a module."""
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Conv):
            conv(rng, layer)
        elif isinstance(layer, Linear):
            linear(rng, layer)


def normal(rng: np.random.Generator, variable: nnx.Variable, std: float) -> None:
    """Overwrite an array with normal values."""
    values = rng.normal(0, std, variable.shape).astype(np.float32)
    variable.set_value(jnp.asarray(values))


def xavier(rng: np.random.Generator, variable: nnx.Variable) -> None:
    """torch.nn.init.xavier_uniform_ of a matrix or kernel [..., in, out]."""
    *window, fan_in, fan_out = variable.shape
    bound = math.sqrt(6 / ((fan_in + fan_out) * math.prod(window)))
    values = rng.uniform(-bound, bound, variable.shape).astype(np.float32)
    variable.set_value(jnp.asarray(values))


def zero(variable: nnx.Variable | None) -> None:
    """Overwrite an array with zeros; None stands for a bias that is not there."""
    if variable is not None:
        variable.set_value(jnp.zeros(variable.shape, jnp.float32))


def uniform(rng: np.random.Generator, layer: Conv | Linear) -> None:
    """PyTorch's default: within 1 / sqrt(fan-in), the bias alike."""
    bound = 1 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
    for variable in (layer.kernel, layer.bias):
        if variable is not None:
            values = rng.uniform(-bound, bound, variable.shape).astype(np.float32)
            variable.set_value(jnp.asarray(values))


def by_fan_out(rng: np.random.Generator, layer: Conv | Linear) -> None:
    """torch.nn.init.kaiming_normal_ in mode fan_out, for ReLU; zero bias."""
    *window, _, out = layer.kernel.shape
    normal(rng, layer.kernel, math.sqrt(2 / (math.prod(window) * out)))
    zero(layer.bias)


def small(std: float) -> Rule:
    """A rule: normal of this deviation; zero bias."""

    def rule(rng: np.random.Generator, layer: Conv | Linear) -> None:
        normal(rng, layer.kernel, std)
        zero(layer.bias)

    return rule
