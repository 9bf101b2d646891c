"""The last word on a float32 step that looks like a difference: the same step in float64.

Two float32 results that are far apart say that one of them may be wrong, not that it is: see
`parity.study.rounding`. So the step is taken from the same state in float64 (`shadow`), and

1. if the two frameworks' float64 steps are apart beyond the rule for float64, they *differ*;
2. else that step is the truth, and a framework whose float32 step is further from it than rounding
   takes it, on the sides that rounding leaves open, has a *lossy* float32;
3. else the difference is rounding's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from parity.checks.tolerance import UNIT
from parity.study import rounding, verdict
from parity.study.rounding import Sample, Truth
from parity.study.shadow import Shadow, Shadows
from parity.study.step import Arrays, Step, weights
from parity.study.torch_runner import TorchRunner
from parity.study.trace import compare
from parity.study.verdict import Finding
from trunk_torch_ref.training import objective

# Rounding of an update, in units of a tensor's largest step: moments are sums and products of a
# few values, and JAX's were led along PyTorch's in float32. And half a unit of the largest weight.
UPDATE = 64.0


@dataclass(frozen=True)
class Judgement:
    """`finding`: what is beyond rounding, or None.

    `apart`: the frameworks' float64 steps, in the tensor in question. `errors`: by framework, how
    far its float32 tensor is from the float64 truth on the sides that it took; `allowed`: how far
    rounding may take it. `sides`: by framework, how many units were on another side than the
    truth; `undecided`: how many could be. `open`: a framework is beyond, but there are more
    undecided units than are tried: nothing follows.
    """

    finding: Finding | None
    apart: float
    errors: dict[str, float]
    allowed: dict[str, float]
    sides: dict[str, int]
    undecided: int
    open: bool = False


def judge(
    suspected: Finding,
    steps: Mapping[str, Step],
    shadows: Shadows,
    of: Shadow,
    bands: Mapping[str, Mapping[str, float]],
    truth: Truth,
    order: Sequence[str],
) -> Judgement:
    """What a suspected float32 difference is.

    `steps`: by framework, its float32 step from the state that `of` starts from. `bands`: how far
    apart flipped bits take the float64 step. `truth`: rounding's reach about it.
    """
    kind, tensor, number = suspected.kind, suspected.tensor, suspected.step
    apart, _ = compare(of.jax, of.torch)
    differ = verdict.first_beyond(number, "float64", apart, bands, order, verdict.floor_of_a_step)
    if differ is not None:
        return Judgement(differ, apart[kind][tensor], {}, {}, {}, truth.undecided)
    errors: dict[str, dict[str, dict[str, float]]] = {}
    allowed: dict[str, dict[str, dict[str, float]]] = {}
    sides: dict[str, int] = {}
    for name, step in steps.items():
        allowed[name] = truth.allowances(plain=name == "torch")
        units, there = truth.fitted(step.gradients, allowed[name]["gradient"])
        sides[name] = len(units)
        errors[name] = rounding.apart(Sample(step.gradients, step.state, step.loss), there)
        errors[name]["weight"], allowed[name]["weight"] = _update(step, shadows, of.before)
    lossy = first_lossy(number, errors, allowed, order)
    untried = lossy is not None and lossy.kind == "gradient" and truth.undecided > rounding.MOST
    return Judgement(
        None if untried else lossy,
        apart[kind][tensor],
        {name: table[kind][tensor] for name, table in errors.items()},
        {name: table[kind][tensor] for name, table in allowed.items()},
        sides,
        truth.undecided,
        untried,
    )


def first_lossy(
    number: int,
    errors: Mapping[str, Mapping[str, Mapping[str, float]]],
    allowed: Mapping[str, Mapping[str, Mapping[str, float]]],
    order: Sequence[str],
) -> Finding | None:
    """The first tensor of a step in which a framework's error is more than is allowed, or None.

    `errors`, `allowed`: by framework, kind and tensor. Of two frameworks that are beyond it in a
    tensor, the one that is further beyond is named.
    """
    places = {key: place for place, key in enumerate(order)}
    for kind in verdict.ORDER:
        keys = sorted(next(iter(errors.values()))[kind], key=lambda key: places.get(key, 0))
        for key in reversed(keys) if kind == "gradient" else keys:
            shares = {
                name: _share(table[kind][key], allowed[name][kind][key])
                for name, table in errors.items()
            }
            worst = max(shares, key=lambda name: shares[name])
            if shares[worst] > 1:
                value, most = errors[worst][kind][key], allowed[worst][kind][key]
                return Finding(number, kind, key, verdict.layer_of(key), value, most, worst)
    return None


def _share(error: float, allowed: float) -> float:
    return error / allowed if np.isfinite(error) else np.inf


def _update(
    step: Step, shadows: Shadows, before: Arrays
) -> tuple[dict[str, float], dict[str, float]]:
    """(error of each new weight, what is allowed), as shares of a tensor's largest step.

    The truth is the float64 optimiser's for the gradients that the step itself has.
    """
    right = shadows.updated(before, step.gradients)
    errors, most = {}, {}
    for key, value in weights(right).items():
        moved = float(np.abs(value - before[key]).max(initial=0.0)) or 1.0
        size = float(np.abs(value).max(initial=0.0))
        errors[key] = float(np.abs(step.state[key] - value).max(initial=0.0)) / moved
        most[key] = UNIT * (UPDATE + size / moved)
    return errors, most


def truth_of(runner: TorchRunner, of: Shadow, error: float) -> Truth:
    """Rounding's reach about the float64 step; `error`: see `Truth`."""
    loss = partial(
        objective.loss,
        targets=torch.tensor(of.targets),
        kind=runner.recipe.loss,
        smoothing=runner.phase.label_smoothing,
    )
    return Truth(runner.module(of.before), of.x, of.masks, loss, error)
