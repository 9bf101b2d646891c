"""How far rounding may take one step of a training, and whether it went further: the rule.

A step is judged in the order in which it is computed: (of some steps) the batch's scores in eval
mode, then the node's input, batch statistics, scores,
loss, gradients, the optimiser's moments, the new weights. An error is the length of a difference
as a share of the tensor's length (`parity.study.distances`).

float32: each framework against the truth, which is PyTorch's float64 step from the same state.
float64: the two frameworks against each other, with twice what one may be off by.

What is allowed is the rounding model's (`parity.checks.tolerance`): every sum of k terms has a
random error of u sqrt(k) of its size, and a result may be off by 4 times what such errors in all
layers, forward and backward, make of it. That is asked in two turns, the cheap one first:

1. *floor*: what the last sum alone may be off by, 4 u sqrt(k); scores, what the sums of all layers
   may be off by if none amplifies the errors of those before it; a loss, 4 u of it and of the
   scores that it is a difference of. What is within it needs no second
   look.
2. *model*: random errors are put into every layer of the float64 step, and what they make of each
   tensor is measured; and where an activation lies within rounding of a ReLU's or a max pool's edge
   the gradient may be that of the other side (`parity.study.rounding`).

New moments and weights are held against what PyTorch's float64 optimiser makes of the step's own
gradients, so that an error of a gradient counts once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from data.recipes.recipe import Phase
from parity.checks.tolerance import CONSTANT, UNIT
from parity.pairs.passes import leaves
from parity.study import distances, rounding
from parity.study.judge import UPDATE
from parity.study.moments import ADAM, SGD, Moments
from parity.study.repeat import Repeated, Repeater, Taken
from parity.study.rounding import Sample, Truth
from parity.study.step import COUNTERS, STATISTICS, weights
from parity.study.verdict import layer_of
from trunk_torch_ref.training import objective

EDITION = 2  # of this rule: steps that were judged by another are not mixed
UNITS = {"float32": UNIT, "float64": 2.0**-53}
KINDS = (
    "evaluation",
    "rate",
    "input",
    "count",
    "mean",
    "variance",
    "scores",
    "loss",
    "gradient",
    "moment",
    "weight",
)
EXACT = (
    "evaluation",
    "rate",
    "input",
    "count",
)  # which are held to one bound, for nothing is amplified
WORDS = {
    "evaluation": "scores in eval mode",
    "rate": "learning rate",
    "count": "number of steps counted",
    "input": "input of the network",
    "mean": "running mean",
    "variance": "running variance",
    "scores": "scores",
    "loss": "loss",
    "gradient": "gradient",
    "moment": "moment of the optimiser after the step",
    "weight": "weight after the update",
}
ALL = "*"
# Pixels are augmented and normalised in some operations, each of half a unit in the last place.
PIXELS = 4.0
# A moment is two products, their sum and, before it, the decayed gradient: four roundings.
MOMENT = 4.0
RATE = 1e-12  # a schedule is a few operations in float64, PyTorch's cosine one an epoch

Table = dict[str, dict[str, float]]  # by kind and tensor


@dataclass(frozen=True)
class Excess:
    """The first tensor of a step that is beyond what rounding allows.

    `framework`: of which float32 is at fault; empty where float64 tells the two apart.
    """

    kind: str
    tensor: str
    layer: str
    error: float
    allowed: float
    framework: str


@dataclass
class Verdict:
    """A step in one type. `errors`, `allowed`: by framework, kind and tensor.

    `by`: "floor" or "model". `doubt`: the kind that the floor was too low for. `sides`: by
    framework, how many units were on the other side of an edge; of `undecided` ones. `open`: what
    is beyond may be a side that was not tried, for more units are undecided than are tried: nothing
    follows.
    """

    errors: dict[str, Table]
    allowed: dict[str, Table]
    by: str = "floor"
    doubt: str = ""
    excess: Excess | None = None
    sides: dict[str, int] = field(default_factory=dict)
    undecided: int = 0
    open: bool = False


@dataclass(frozen=True)
class Terms:
    """How many terms are summed: by layer and result; by parameter, where PyTorch sums plainly.

    `scores`: on the way through all layers, whose errors add up like one random walk. `growth`: the
    same if all of one layer's errors add to those of the next, as `parity.check` has it.
    """

    of: Mapping[str, Mapping[str, float]]
    plain: Mapping[str, float]
    scores: float
    growth: float


class Context:
    """What the steps of a stage have in common: the repeater that takes them, and its recipe."""

    def __init__(self, repeater: Repeater):
        runner = repeater.torch["float64"]
        self.repeater, self.phase, self.kind = repeater, runner.phase, repeater.recipe.loss
        self.order = list(runner.network.state_dict())
        self.above = repeater.above()
        self._terms: dict[tuple[int, ...], Terms] = {}
        self._growth: float | None = None

    def terms(self, x: np.ndarray) -> Terms:
        """For batches of the shape of `x`, [b, c, h, w]."""
        if x.shape not in self._terms:
            module = self.repeater.module()
            layers = leaves(module)
            found = rounding.terms_of(module, layers, torch.tensor(x))
            counts = [row.get("output", 1.0) for row in found.values()]
            plain = rounding.plain_sums(layers, found)
            growth = sum(count**0.5 for count in counts)
            self._terms[x.shape] = Terms(found, plain, sum(counts), growth)
        return self._terms[x.shape]

    def growth(self) -> float:
        """Of errors on the way through the ancestors: the sum of the roots of their terms."""
        if self._growth is None:
            self._growth = 0.0
            image = self.repeater.parts.train.images[:1].transpose(0, 3, 1, 2)
            x = torch.tensor(image / 255.0)
            for module in self.above:
                found = rounding.terms_of(module, leaves(module), x)
                self._growth += sum(row.get("output", 1.0) ** 0.5 for row in found.values())
                with torch.no_grad():
                    x = module(x)[0]
        return self._growth

    def loss(self, targets: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
        """The loss of a batch's scores."""
        return partial(
            objective.loss,
            targets=torch.tensor(targets),
            kind=self.kind,
            smoothing=self.phase.label_smoothing,
        )


def judge(of: Repeated, dtype: str, context: Context) -> Verdict:
    """A step in one type: all errors, what is allowed, and the first that is beyond it."""
    truth = of.taken["float64"]["torch"]
    floors = _floors(context, truth, UNITS[dtype])
    found = Verdict({}, {})
    for name, one in _judged(of, dtype).items():
        found.errors[name] = _errors(one, truth)
        found.allowed[name] = {kind: dict(row) for kind, row in floors.items()}
        if "torch" in (name, _other(dtype)):
            plain = context.terms(truth.x).plain
            found.allowed[name]["gradient"] = {
                key: max(value, UNITS[dtype] * plain.get(key, 0.0))
                for key, value in floors["gradient"].items()
            }
        _twice(found.allowed[name], dtype)
        _optimised(found, name, one, of, context, dtype)
    found.excess = first(found, context.order, dtype)
    if found.excess is not None and found.excess.kind not in EXACT:
        _by_model(found, of, dtype, context)
    return found


def _judged(of: Repeated, dtype: str) -> dict[str, Taken]:
    """The steps that are held against the truth."""
    taken = of.taken[dtype]
    return dict(taken) if dtype == "float32" else {"jax": taken["jax"]}


def _other(dtype: str) -> str:
    """In float64 PyTorch's own errors are part of the difference."""
    return "torch" if dtype == "float64" else ""


def _twice(allowed: Table, dtype: str) -> None:
    if dtype == "float64":  # two frameworks, each may be off
        for row in allowed.values():
            row.update({key: 2 * value for key, value in row.items()})


def _errors(one: Taken, truth: Taken) -> Table:
    """Of all but what the optimiser makes."""
    mine, right = (
        Sample(t.step.gradients, t.step.state, t.step.loss, t.scores) for t in (one, truth)
    )
    found = {kind: dict(row) for kind, row in rounding.apart(mine, right).items()}
    counted = {
        key: float(one.step.state[key] != value)
        for key, value in truth.step.state.items()
        if key.endswith(COUNTERS)
    }
    before = {}
    if one.evaluated is not None and truth.evaluated is not None:
        before = distances.each({ALL: one.evaluated}, {ALL: truth.evaluated})
    return {
        "evaluation": before,
        "rate": {ALL: distances.gap(one.rate, truth.rate)},
        "input": distances.each({ALL: one.x}, {ALL: truth.x}),
        "count": {**counted, ALL: float(one.moments.step != truth.moments.step)},
        **found,
    }


def _floors(context: Context, truth: Taken, unit: float) -> Table:
    """What the last sum of each tensor alone may be off by."""
    terms, state, one = context.terms(truth.x), truth.step.state, CONSTANT * unit

    def last(key: str, what: str) -> float:
        name, _, tensor = key.rpartition(".")
        return one * terms.of[name].get(f"{what} {tensor}", 1.0) ** 0.5

    return {
        "evaluation": {ALL: one * terms.growth},
        "rate": {ALL: RATE},
        "input": {ALL: one * (PIXELS + context.growth())},
        "count": {ALL: 0.0} | {key: 0.0 for key in state if key.endswith(COUNTERS)},
        "mean": {key: last(key, "after") for key in state if key.endswith(STATISTICS[0])},
        "variance": {key: last(key, "after") for key in state if key.endswith(STATISTICS[1])},
        "scores": {ALL: one * terms.scores**0.5},
        "loss": {ALL: one * (1 + _lost(truth))},
        "gradient": {key: last(key, "gradient of") for key in truth.step.gradients},
    }


def _lost(truth: Taken) -> float:
    """Digits that a small loss loses: it is the difference of scores of such a size."""
    largest = float(np.abs(truth.scores).max(1).mean())
    return largest / max(abs(truth.step.loss), 1e-300)


def _optimised(
    found: Verdict, name: str, one: Taken, of: Repeated, context: Context, dtype: str
) -> None:
    """Errors of new moments and weights, as shares of a tensor's largest step or moment."""
    unit, before = UNITS[dtype], of.before
    times = 2.0 if dtype == "float64" else 1.0  # float64's own truth is rounded too
    right, kept = context.repeater.updated(one.step.gradients)
    lost = _correction(context.phase, kept) if dtype == "float64" else 0.0
    errors, most = {}, {}
    for key, value in weights(right).items():
        moved = float(np.abs(value - before.state[key]).max(initial=0.0)) or 1.0
        size = float(np.abs(value).max(initial=0.0))
        errors[key] = _largest(one.step.state[key] - value) / moved
        most[key] = unit * (UPDATE + lost + times * size / moved)
    found.errors[name]["weight"], found.allowed[name]["weight"] = errors, most
    errors, most = {}, {}
    for what, table in kept.tensors.items():
        share, power = _new(context.phase)[what]
        for key, value in table.items():
            old = before.moments.tensors[what][key]
            decayed = _largest(one.step.gradients[key]) + (
                context.phase.weight_decay * _largest(before.state[key])
            )
            scale = _largest(value) + _largest(old) + share * decayed**power
            error = _largest(one.moments.tensors[what][key] - value)
            errors[f"{key} {what}"] = error / scale if scale else error
            most[f"{key} {what}"] = times * MOMENT * unit
    found.errors[name]["moment"], found.allowed[name]["moment"] = errors, most


def _new(phase: Phase) -> dict[str, tuple[float, int]]:
    """By moment: the share of a new gradient in it, and the gradient's power."""
    first, second = phase.betas
    return dict(zip(ADAM, ((1 - first, 1), (1 - second, 2)), strict=True)) | {SGD[0]: (1.0, 1)}


def _correction(phase: Phase, after: Moments) -> float:
    """Units that 1 - b^t loses in float64, where PyTorch takes it by subtraction."""
    if after.step is None:
        return 0.0
    return sum(1 / (1 - beta**after.step) for beta in phase.betas)


def _largest(x: np.ndarray) -> float:
    value = float(np.abs(x).max(initial=0.0))
    return value if np.isfinite(value) else float("inf")


def _by_model(found: Verdict, of: Repeated, dtype: str, context: Context) -> None:
    """The second turn, by the whole rounding model of the step."""
    assert found.excess is not None  # or there would be no second turn
    found.by, found.doubt = "model", found.excess.kind
    right, steps = of.taken["float64"]["torch"], _judged(of, dtype)
    off = max(errors["input"][ALL] for errors in found.errors.values())
    truth = Truth(
        context.repeater.module(),
        right.x,
        of.masks,
        context.loss(of.targets),
        # errors go in at float32's size
        error=max(UNIT, off * UNIT / UNITS[dtype]),
        unit=UNITS[dtype],
    )
    found.undecided = truth.undecided
    for name, one in steps.items():
        allowed = {
            kind: dict(row)
            for kind, row in truth.allowances("torch" in (name, _other(dtype))).items()
        }
        _twice(allowed, dtype)
        units, there = truth.fitted(one.step.gradients, allowed["gradient"])
        found.sides[name] = len(units)
        mine = Sample(one.step.gradients, one.step.state, one.step.loss, one.scores)
        found.errors[name] |= rounding.apart(mine, there)
        for kind, row in allowed.items():
            floor = found.allowed[name][kind]
            found.allowed[name][kind] = {key: max(most, floor[key]) for key, most in row.items()}
        _by_sensitivity(found, name, one, of, context, dtype)
    found.excess = first(found, context.order, dtype)
    if found.excess is not None and found.excess.kind == "gradient":
        found.open = truth.undecided > rounding.MOST
        found.excess = None if found.open else found.excess


def _by_sensitivity(
    found: Verdict, name: str, one: Taken, of: Repeated, context: Context, dtype: str
) -> None:
    """More for new weights, where the optimiser makes much of a rounding of its gradients.

    Adam divides a gradient by its own size, so where weight decay cancels it all but for its last
    digits, these are what counts. The decayed gradient is moved by one unit of its two terms.
    """
    scale = 2.0**10 if dtype == "float64" else 1.0  # so that float64 still holds the change
    unit, allowed = UNITS[dtype] * scale, found.allowed[name]["weight"]
    gradients = {key: value.astype(np.float64) for key, value in one.step.gradients.items()}
    right = context.repeater.updated(gradients)[0]
    for sign in (1.0, -1.0):
        moved = {
            key: g
            + sign * unit * (np.abs(g) + context.phase.weight_decay * np.abs(of.before.state[key]))
            for key, g in gradients.items()
        }
        other = context.repeater.updated(moved)[0]
        for key in allowed:
            step = _largest(right[key] - of.before.state[key]) or 1.0
            more = CONSTANT * _largest(other[key] - right[key]) / step / scale
            allowed[key] = max(allowed[key], more + found.allowed[name]["weight"][key])


def first(found: Verdict, order: Sequence[str], dtype: str) -> Excess | None:
    """The first tensor in which an error is more than is allowed.

    Gradients are computed from the last layer to the first, all else from the first to the last.
    Of two frameworks that are beyond it, the one that is further beyond is named.
    """
    places = {key: place for place, key in enumerate(order)}
    for kind in KINDS:
        tables = {name: errors[kind] for name, errors in found.errors.items()}
        some = next(iter(tables.values()))
        keys = sorted(some, key=lambda key: places.get(key.split()[0], -1))
        for key in reversed(keys) if kind == "gradient" else keys:
            shares = {
                name: share(table[key], found.allowed[name][kind][key])
                for name, table in tables.items()
            }
            worst = max(shares, key=lambda name: shares[name])
            if shares[worst] > 1:
                named = worst if dtype == "float32" else ""
                error, most = tables[worst][key], found.allowed[worst][kind][key]
                return Excess(kind, key, layer_of(key.split()[0]), error, most, named)
    return None


def share(error: float, allowed: float) -> float:
    """An error as a share of what is allowed; infinite if it is no number."""
    if not np.isfinite(error):
        return float("inf")
    if not allowed:
        return float("inf") if error else 0.0
    return error / allowed
