"""Where two models first differ, and why: every cause is tried before it is named."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils import _pytree

from parity.comparing import torch_side, values
from parity.comparing.causes import Around, Candidate, candidates
from parity.comparing.jax_side import Run as JaxRun
from parity.comparing.torch_side import Call, Change, again
from parity.comparing.values import SAME

MOST = 40  # causes that one comparison looks for


@dataclass(frozen=True)
class Finding:
    """A difference.

    Attributes:
      stage: `weights`, `evaluation`, `training`, `statistics`, `gradients`, `optimiser`.
      path: PyTorch's layer or weight.
      operation: PyTorch's function.
      line: where PyTorch's model calls it.
      jax_path: JAX's layer, as far as known.
      jax_line: where the JAX model computes it.
      difference: as a share of the largest value.
      cause: in a word or two, "" if none was found.
      words: the cause in a sentence.
      after: what is left of the difference when the cause is taken away; None without a cause.
      places: how many places the cause was at.

    """

    stage: str
    path: str
    operation: str
    line: str
    jax_path: str
    jax_line: str
    difference: float
    cause: str = ""
    words: str = ""
    after: float | None = None
    places: int = 1


@dataclass
class Trial:
    """What makes PyTorch's model compute as JAX's: changes of calls and values of buffers."""

    changes: dict[int, Change] = field(default_factory=dict)
    buffers: dict[str, np.ndarray] = field(default_factory=dict)

    def with_(self, candidate: Candidate) -> "Trial":
        """With a candidate's changes too; of two at one call, the second changes the first's."""
        changes = dict(self.changes)
        for index, change in candidate.changes.items():
            changes[index] = _chained(changes.get(index), change)
        return Trial(changes, {**self.buffers, **candidate.buffers})


def _chained(first: Change | None, second: Change) -> Change:
    if first is None:
        return second
    return lambda call: second(_through(call, first))


def _through(call: Call, change: Change) -> Call:
    """The call, its function replaced by a change of it."""

    def function(*args: Any, **kwargs: Any) -> Any:
        names = list(call.given)
        given = {**call.given, **dict(zip(names, args, strict=False)), **kwargs}
        args = args or tuple(given[key] for key in names[: len(call.args)])
        more = {key: value for key, value in kwargs.items() if key not in names[: len(args)]}
        return change(replace(call, given=given, args=args, kwargs=more or call.kwargs))

    return replace(call, function=function)


@dataclass(frozen=True)
class Standing:
    """How a PyTorch run compares with JAX's."""

    run: torch_side.Run
    matched: list[int]
    origins: list[int]
    difference: float

    @property
    def agree(self) -> bool:
        """Whether the outputs do."""
        return not self.origins and self.difference <= SAME

    @property
    def first(self) -> int:
        """The first call that differs."""
        if not self.origins:
            return len(self.run.calls) if self.agree else -1
        return min(self.run.values[number].made_by for number in self.origins)


class Search:
    """Compares runs of a PyTorch model with one run of a JAX model.

    Args:
      run: gives PyTorch's run with a trial's changes.
      ours: JAX's.
      epsilon: an epsilon of the JAX layer at a path.

    """

    def __init__(
        self,
        run: Callable[[Trial], torch_side.Run],
        ours: JaxRun,
        epsilon: Callable[[str], float | None],
        *,
        train: bool = False,
    ):
        self.run, self.ours, self.epsilon = run, ours, epsilon
        self.prints = values.prints([value.array for value in ours.values])
        self.train = train
        self.stage = "training" if train else "evaluation"

    def standing(self, trial: Trial) -> Standing:
        """The comparison of one run."""
        run = self.run(trial)
        prints = values.prints([value.array for value in run.values])
        matched = values.matches(prints, self.prints)
        difference = 0.0
        for number, other in zip(run.outputs, self.ours.outputs, strict=False):
            theirs = run.values[number].array
            ours = values.aligned(self.ours.values[other].array, theirs)
            apart = values.distance(ours, theirs)
            difference = max(difference, apart)
            if apart > SAME:
                matched[number] = -1
        origins = values.origins(run.values, [other >= 0 for other in matched], run.outputs)
        if difference > SAME and not origins:
            origins = self._reordered(run, matched)
        return Standing(run, matched, origins, difference)

    def _reordered(self, run: torch_side.Run, matched: Sequence[int]) -> list[int]:
        return [number for number in run.outputs if run.values[number].leaf is None][:1]

    def _strict(self, standing: Standing, call: Call) -> list[int]:
        """Calls back from one whose inputs hold JAX's numbers in another order."""
        found, waiting, seen = [], list(call.inputs), set()
        makers = self._makers(standing.run)
        while waiting:
            number = waiting.pop()
            if number in seen or number not in makers:
                continue
            seen.add(number)
            theirs = standing.run.values[number].array
            scale = float(np.abs(values.bounded(theirs)).max(initial=0.0)) or 1.0
            same = any(
                values.turned(ours.array, theirs, SAME * scale) is not None
                for ours in self.ours.values
                if ours.array.size == theirs.size
            )
            if not same:
                found.append(makers[number])
                waiting += standing.run.calls[makers[number]].inputs
        return sorted(set(found))

    @staticmethod
    def _makers(run: torch_side.Run) -> dict[int, int]:
        return {number: v.made_by for number, v in enumerate(run.values) if v.made_by >= 0}

    def around(self, run: torch_side.Run, path: str) -> Around:
        """What candidates need to know."""
        return Around(
            run.calls,
            self._makers(run),
            {number: v.leaf for number, v in enumerate(run.values) if v.leaf},
            {number: v.array.shape for number, v in enumerate(run.values)},
            self.train,
            run.state,
            self.epsilon(path),
        )

    def rounded(self, standing: Standing) -> Candidate | None:
        """Constants that are JAX's but for rounding to float32, with JAX's in their place."""
        run = standing.run
        theirs = values.fixed(run.values, run.state)
        mine = [self.ours.values[k].array for k in values.fixed(self.ours.values)]
        places: dict[int, dict[int, np.ndarray]] = {}
        names: list[str] = []
        for number in theirs:
            array = run.values[number].array
            right = None if standing.matched[number] >= 0 else _nearly(array, mine)
            if right is None:
                continue
            users = [call for call in run.calls if number in call.inputs]
            for call in users:
                found = places.setdefault(call.index, {})
                found |= {k: right for k, value in enumerate(call.inputs) if value == number}
            about = users[0].line if users else ""
            names.append(run.values[number].leaf or f"a constant ({about})")
        if not places:
            return None
        shown = ", ".join(dict.fromkeys(names))
        changes = {index: partial(_with, given) for index, given in places.items()}
        words = f"{shown} of PyTorch's and JAX's constants differ by a rounding to float32"
        return Candidate("float32 constant", words, changes)

    def jax_place(self, standing: Standing) -> tuple[str, str]:
        """Path and line of the first JAX value that PyTorch has not, all it comes from it has."""
        theirs = values.prints([value.array for value in standing.run.values])
        back = values.matches(self.prints, theirs)
        found = values.origins(self.ours.values, [k >= 0 for k in back], self.ours.outputs)
        if not found:
            found = list(self.ours.outputs)
        value = self.ours.values[found[0]]
        return value.path, value.line

    def causes(self, trial: Trial) -> Iterator[tuple[Finding, Trial]]:
        """The differences one after another, each with the trial that takes it away too."""
        standing = self.standing(trial)
        for _ in range(MOST):
            if standing.agree:
                return
            finding, better = self.next(standing, trial)
            if better is None:
                yield finding, trial
                return
            trial, standing = better
            yield finding, trial

    def next(self, standing: Standing, trial: Trial):
        """The first difference; and, where a cause was found, (trial, standing) without it."""
        run = standing.run
        starts = sorted({run.values[number].made_by for number in standing.origins} - {-1})
        jax_path, jax_line = self.jax_place(standing)
        best: tuple[Any, ...] | None = None
        reordered = [k for number in starts[:2] for k in self._strict(standing, run.calls[number])]
        for start in (*starts[:6], *reordered):
            for candidate in candidates(run.calls[start], self.around(run, jax_path)):
                other = self._tried(trial, candidate)
                if other is None or not _further(other, standing, start):
                    continue
                rank = (other.agree, other.first)
                if best is None or rank > best[0]:
                    best = rank, start, candidate, other
                if other.agree:
                    break
            if best is not None and best[0][0]:
                break
        if not starts:
            number = (run.outputs or [0])[0]
            call = run.calls[max(run.values[number].made_by, 0)]
        else:
            call = run.calls[best[1] if best else starts[0]]
        where = self._difference(standing, call)
        finding = Finding(self.stage, call.path, call.name, call.line, jax_path, jax_line, where)
        if best is None:
            return finding, None
        _, start, candidate, other = best
        trial_ = trial.with_(candidate)
        places = 1
        everywhere = self._everywhere(run, candidate, call, jax_path, start)
        if everywhere is not None and len(everywhere.changes) > len(candidate.changes):
            wide = self._tried(trial, everywhere)
            if wide is not None and wide.agree:
                trial_, other = trial.with_(everywhere), wide
                places = len(everywhere.changes)
        after = self._after(other, call)
        x, y = (r.values[r.calls[call.index].output].array for r in (run, other.run))
        if call.output >= 0 and values.distance(y, x) > 0:
            finding = replace(finding, difference=values.distance(y, x))
        return replace(
            finding, cause=candidate.cause, words=candidate.words, after=after, places=places
        ), (trial_, other)

    def _everywhere(self, run, candidate, call, jax_path, start) -> Candidate | None:
        """The same change at all later calls of the same function."""
        if candidate.cause == "rotary pairs":
            return None
        changes = dict(candidate.changes)
        for other in run.calls[start + 1 :]:
            if other.name != call.name:
                continue
            for same in candidates(other, self.around(run, jax_path)):
                if (same.cause, same.words) == (candidate.cause, candidate.words):
                    changes |= same.changes
                    break
        return replace(candidate, changes=changes)

    def _tried(self, trial: Trial, candidate: Candidate) -> Standing | None:
        try:
            return self.standing(trial.with_(candidate))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            return None  # the change does not fit the shapes around it

    def _difference(self, standing: Standing, call: Call) -> float:
        """How far the call's result is from the nearest JAX value of its size."""
        if call.output < 0:
            return standing.difference
        x = np.sort(values.bounded(standing.run.values[call.output].array).ravel())
        scale = float(np.abs(x).max(initial=0.0)) or 1.0
        taken = {
            other for number, other in enumerate(standing.matched) if number != call.output
        }  # those are other values of PyTorch's
        apart = [
            float(np.abs(x - y).max()) / scale
            for number, y in enumerate(self.prints.ordered)
            if y.size == x.size and number not in taken
        ]
        return min(apart, default=standing.difference)

    def _after(self, standing: Standing, call: Call) -> float:
        """What is left: at the outputs, or up to the next difference of all that has a match."""
        if standing.agree:
            return standing.difference
        left = 0.0
        for later in standing.run.calls[call.index : standing.first]:
            other = standing.matched[later.output] if later.output >= 0 else -1
            if other >= 0:
                x = np.sort(values.bounded(standing.run.values[later.output].array).ravel())
                y = self.prints.ordered[other]
                if x.size == y.size:
                    left = max(left, values.distance(y, x))
        return left


def _nearly(theirs: np.ndarray, ours: Sequence[np.ndarray]) -> np.ndarray | None:
    """The first of `ours` that holds the same numbers but for a rounding to float32, turned."""
    bound = 2.0**-22 * float(np.abs(theirs).max(initial=0.0))
    for array in ours:
        if array.size != theirs.size:
            continue
        axes = values.turned(array, theirs, bound)
        if axes is not None:
            return np.squeeze(array).transpose(axes).reshape(theirs.shape)
    return None


def _with(given: Mapping[int, np.ndarray], call: Call) -> Any:
    """The call with some of its tensors, counted as in `inputs`, holding other numbers."""
    places = itertools.count()

    def one(x: Any) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        other = given.get(next(places))
        return x if other is None else torch.tensor(other, dtype=x.dtype)

    args, kwargs = _pytree.tree_map(one, (call.args, call.kwargs))
    return call.function(*args, **kwargs)


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Findings of one cause and function, in the same words, as one with the number of places."""
    result: list[Finding] = []
    for found in findings:
        for place, known in enumerate(result):
            same = (known.stage, known.cause, known.words, known.operation)
            if found.cause and same == (found.stage, found.cause, found.words, found.operation):
                result[place] = replace(
                    known, places=known.places + found.places, after=found.after
                )
                break
        else:
            result.append(found)
    return result


def _further(other: Standing, before: Standing, start: int) -> bool:
    """Whether a change takes the first difference away, and not only to the next call.

    A change that gives back what went in always matches, and so proves nothing by itself: then
    what is made of it must match as well.
    """
    if other.agree:
        return True
    if other.first <= before.first:
        return False
    call = other.run.calls[start]
    if call.output < 0 or other.matched[call.output] not in before.matched:
        return True
    uses = [c.index for c in other.run.calls if call.output in c.inputs]
    return other.first not in uses


def statistics(
    run: Callable[[Trial], torch_side.Run],
    trial: Trial,
    apart: Callable[[torch_side.Run], dict],
    momentum: Sequence[float],
) -> Iterator[tuple[str, str, str, float, float, Trial]]:
    """Causes of different statistics: (cause, words, name, before, after, trial).

    `apart`: by name of a statistic how far the two are. `momentum`: of the JAX layers.
    """
    first = run(trial)
    before = {name: x for name, x in apart(first).items() if x > SAME}
    norms = [call for call in first.calls if call.name == "batch_norm"]
    for _ in range(3):
        if not before or not norms:
            break
        name = next(iter(before))
        found = None
        for cause, words, change in _statistic_causes(norms[0], momentum):
            # the mean tells the momentum, before the variance is looked at
            there = trial.with_(Candidate(cause, words, {call.index: change for call in norms}))
            after = {key: x for key, x in apart(run(there)).items() if x > SAME}
            if len(after) < len(before):
                found = cause, words, name, before[name], there, after
                break
        if found is None:
            break
        cause, words, name, size, trial, after = found
        left = max(apart(run(trial))[name], 0.0)
        yield cause, words, name, size, left, trial
        before = after
    for name, size in before.items():
        yield "", "", name, size, size, trial
        return


def _statistic_causes(call: Call, momentum: Sequence[float]) -> Iterator[tuple[str, str, Change]]:
    m = call.given["momentum"]
    m = 0.1 if m is None else m
    yield ("running variance", "JAX's running variance is biased, PyTorch's unbiased", _biased)
    for new in dict.fromkeys((1 - m, *(1 - k for k in momentum), 0.01, 0.001, 0.9, 0.99, 0.0)):
        if new == m:
            continue
        told = "; it reads PyTorch's number the other way" if abs(new - (1 - m)) < 1e-12 else ""
        words = (
            f"JAX keeps {1 - new:g} of the old statistics (its momentum), PyTorch {1 - m:g} "
            f"(1 - its momentum){told}"
        )
        yield "momentum", words, again(momentum=new)
        yield (
            "momentum",
            f"{words}; and JAX's running variance is biased, PyTorch's unbiased",
            partial(_biased, momentum=new),
        )


def _biased(call: Call, **other: Any) -> Any:
    given = {**call.given, **other}
    x, variance = given["input"], given["running_var"]
    count = x.numel() // x.shape[1]
    kept = (1 - given["momentum"]) * variance.detach().clone()
    fresh = variance.detach().clone()  # autograd minds changes of what a call was given
    result = functional.batch_norm(**{**given, "running_var": fresh})
    with torch.no_grad():
        variance.copy_(kept + (fresh - kept) * (count - 1) / count)
    return result


def stopped(
    run: Callable[[Trial], torch_side.Run], trial: Trial, apart: Callable[[torch_side.Run], float]
) -> tuple[Call, float] | None:
    """The call whose gradient JAX does not pass on, and what is left when PyTorch's stops too."""
    calls = run(trial).calls
    found = None
    for call in reversed(calls):
        if call.output < 0:
            continue
        change = Candidate("", "", {call.index: lambda c: c.plain().detach()})
        try:
            left = apart(run(trial.with_(change)))
        except (RuntimeError, AttributeError):
            continue
        if left <= SAME:
            found = call, left  # and on: the first such call is the nearest to where it stops
        elif found is not None:
            break
    return found


def names_of(standing: Mapping[str, float]) -> list[str]:
    """Names of what differs."""
    return [name for name, size in standing.items() if size > SAME]
