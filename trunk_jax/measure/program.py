"""What a program costs, read off its operations: arithmetic, and the memory of its activations.

JAX traces a function into a list of primitive operations (a jaxpr). Counting there needs no
table of layers, and counts whatever a network does.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from trunk_jax.network.traced import shaped

# One operation a value of the result; what moves, compares or retypes values costs nothing.
_ARITHMETIC = {
    "add",
    "sub",
    "mul",
    "div",
    "rem",
    "neg",
    "abs",
    "sign",
    "max",
    "min",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "cbrt",
    "square",
    "pow",
    "integer_pow",
    "tanh",
    "logistic",
    "erf",
    "floor",
    "ceil",
    "round",
    "clamp",
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"}
_WINDOWS = {"reduce_window_max", "reduce_window_min", "reduce_window_sum"}
# The result is the operand under another shape: no second copy of it.
_VIEWS = {"reshape", "squeeze", "expand_dims"}


@dataclass(frozen=True)
class Work:
    """`multiply_adds` of products and convolutions, and all `other` operations."""

    multiply_adds: int = 0
    other: int = 0

    def __add__(self, more: "Work") -> "Work":
        return Work(self.multiply_adds + more.multiply_adds, self.other + more.other)


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """The arithmetic of `function` on arguments of these shapes (arrays or ShapeDtypeStructs).

    A window is counted whole where it reaches into the padding, as the published figures are.
    """
    return _work(jax.make_jaxpr(function)(*arguments).jaxpr)


def _work(jaxpr: core.Jaxpr) -> Work:
    return sum((_of(equation) for equation in jaxpr.eqns), Work())


def _of(equation: core.JaxprEqn) -> Work:
    """The arithmetic of one operation, or of the program inside it."""
    name, out = equation.primitive.name, shaped(equation.outvars[0])
    operands = [shaped(v) for v in equation.invars]
    if name == "conv_general_dilated":
        kernel, of = operands[1], equation.params["dimension_numbers"].rhs_spec[0]
        return Work(out.size * (kernel.size // kernel.shape[of]))
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return Work(out.size * math.prod(operands[0].shape[axis] for axis in contracted))
    if name in _ARITHMETIC:
        return Work(0, out.size)
    if name in _REDUCTIONS:
        return Work(0, operands[0].size - out.size)
    if name in _WINDOWS:
        return Work(0, out.size * (math.prod(equation.params["window_dimensions"]) - 1))
    inner = list(_inside(equation))
    if name == "cond":  # forms of one operation for different platforms: the general one is last
        inner = inner[-1:]
    if name in ("scan", "while") and inner:
        raise NotImplementedError(f"{name}: a network that loops")
    return sum(map(_work, inner), Work())


def _inside(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs that an operation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def peak_bytes(function: Callable[..., Any], weights: Any, *inputs: Any) -> int:
    """The most bytes of activations alive at once in `function(weights, *inputs)`.

    Operations run one after another, none in place; an activation lives from the operation
    that makes it (inputs: from the start) to the last one that reads it, results to the end.
    Weights are not counted. A compiler that fuses operations needs less.
    """
    jaxpr = jax.make_jaxpr(function)(weights, *inputs).jaxpr
    uncounted = set(jaxpr.invars[: len(jax.tree.leaves(weights))])  # and what follows from them
    home: dict[core.Var, core.Var] = {}  # a view -> the activation that it shows
    last: dict[core.Var, int] = {}
    for place, equation in enumerate(jaxpr.eqns):
        read = {home.get(v, v) for v in equation.invars if isinstance(v, core.Var)}
        last.update(dict.fromkeys(read, place))
        if read <= uncounted:
            uncounted.update(equation.outvars)
        elif equation.primitive.name in _VIEWS:
            home[equation.outvars[0]] = home.get(equation.invars[0], equation.invars[0])
    kept = {home.get(v, v) for v in jaxpr.outvars if isinstance(v, core.Var)}

    alive = {v: _bytes(v) for v in jaxpr.invars if v not in uncounted}
    peak = sum(alive.values())
    for place, equation in enumerate(jaxpr.eqns):
        made = [v for v in equation.outvars if v not in uncounted and v not in home]
        alive |= {v: _bytes(v) for v in made}
        peak = max(peak, sum(alive.values()))
        done = [v for v in alive if last.get(v, place) <= place and v not in kept]
        for variable in done:
            del alive[variable]
    return peak


def _bytes(variable: core.Var) -> int:
    kind = shaped(variable)
    return kind.size * kind.dtype.itemsize
