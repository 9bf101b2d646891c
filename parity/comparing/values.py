"""What two programs computed, and which value of one is which of the other.

Values are matched by what they hold, not by what they are called: an array of one side is the
same as one of the other if it holds the same numbers, in whatever order its axes are and however
often each is repeated.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

# In float64 both programs' values differ by rounding, 1e-16 times what layers make of it; the
# smallest fault that is looked for, an epsilon of 1e-12 for 1e-6, changes a value by 5e-7.
SAME = 1e-9
HUGE = 1e20  # beyond it lies what masks are filled with
# and so does what lies so far below nought, and this much further from it than all the rest
FILL, FURTHER = 9e3, 1e3


@dataclass(frozen=True)
class Value:
    """An array that a program computed.

    Attributes:
      array: float64.
      made_by: the operation's number in its program; -1 for inputs, weights and constants.
      path: of the layer in which it was computed, "" at the top.
      operation: e.g. `conv2d`.
      line: `file.py:12` of the caller's own code.
      of: the numbers of the values that it was computed from.
      leaf: for inputs and weights their name, for constants "", else None.

    """

    array: np.ndarray
    made_by: int
    path: str
    operation: str
    line: str
    of: tuple[int, ...]
    leaf: str | None = None


@dataclass(frozen=True)
class Prints:
    """Marks of many values, equal for arrays that hold the same numbers."""

    marks: np.ndarray  # (values, 6)
    ordered: list[np.ndarray]


def bounded(array: np.ndarray) -> np.ndarray:
    """Infinities and the huge numbers of masks as twice the largest of the rest, of their sign."""
    x = np.nan_to_num(np.asarray(array, np.float64), nan=3 * HUGE, posinf=HUGE, neginf=-HUGE)
    huge = np.abs(x) >= HUGE
    low = ~huge & (x <= -FILL)
    if low.any():
        rest = np.abs(x[~huge & ~low])
        if rest.size and FURTHER * float(rest.max()) <= -float(x[low].max()):
            huge |= low
    if not huge.any():
        return x
    scale = float(np.abs(x[~huge]).max(initial=0.0)) or 1.0
    return np.where(huge, np.sign(x) * 2 * scale, x)


def in_order(result: Any) -> Any:
    """What a model returned, its dicts as lists by their sorted keys: JAX's order, not Python's."""
    if type(result) in (dict, OrderedDict, defaultdict):
        return [in_order(result[key]) for key in sorted(result, key=str)]
    return [in_order(x) for x in result] if type(result) in (list, tuple) else result


def channels_first(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether an array has to have its last axis second to be the other; the nearer if it may."""
    if ours.ndim < 3:
        return False
    moved = np.moveaxis(ours, -1, 1)
    if moved.shape != theirs.shape or ours.shape != theirs.shape:
        return moved.shape == theirs.shape
    return distance(moved, theirs) < distance(ours, theirs)


def aligned(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """An array with its axes as the other has them, where order or axes of size 1 part them."""
    if channels_first(ours, theirs):
        return np.moveaxis(ours, -1, 1)
    if ours.shape != theirs.shape and np.squeeze(ours).shape == np.squeeze(theirs).shape:
        return ours.reshape(theirs.shape)
    return ours


def prints(arrays: Sequence[np.ndarray]) -> Prints:
    """The marks of arrays."""
    marks, ordered = np.zeros((len(arrays), 6)), []
    for place, array in enumerate(arrays):
        x = np.sort(bounded(np.asarray(array, np.float64)).ravel())
        ordered.append(x)
        if x.size:
            scale = max(abs(x[0]), abs(x[-1])) or 1.0
            y = x / scale
            marks[place] = (
                scale,
                y.mean(),
                np.abs(y).mean(),
                (y**2).mean(),
                (y**3).mean(),
                y[0],
            )
    return Prints(marks, ordered)


def matches(ours: Prints, theirs: Prints, tolerance: float = SAME) -> list[int]:
    """For each of `ours` the first of `theirs` that holds the same numbers, else -1."""
    found = []
    for place, x in enumerate(ours.ordered):
        found.append(-1)
        if not x.size:
            continue
        mark = ours.marks[place]
        near = np.abs(theirs.marks[:, 0] - mark[0]) <= tolerance * mark[0]
        near &= (np.abs(theirs.marks[:, 1:] - mark[1:]) <= 4 * tolerance).all(axis=1)
        for other in np.flatnonzero(near):
            if same_numbers(x, theirs.ordered[other], tolerance * mark[0]):
                found[-1] = int(other)
                break
    return found


def same_numbers(x: np.ndarray, y: np.ndarray, bound: float) -> bool:
    """Whether sorted arrays agree; the longer may hold each number several times as often."""
    if x.size < y.size:
        x, y = y, x
    if not y.size or x.size % y.size:
        return False
    return bool(np.abs(x.reshape(y.size, -1) - y[:, None]).max() <= bound)


def turned(ours: np.ndarray, theirs: np.ndarray, bound: float) -> tuple[int, ...] | None:
    """The order of axes in which `ours` is `theirs`, axes of size 1 left out; None if none is."""
    a, b = np.squeeze(ours), np.squeeze(theirs)
    if a.ndim != b.ndim or sorted(a.shape) != sorted(b.shape) or a.ndim > 6:
        return None
    for axes in permutations(range(a.ndim)):
        if tuple(a.shape[axis] for axis in axes) == b.shape:
            difference = np.abs(bounded(a.transpose(axes)) - bounded(b))
            if difference.max(initial=0.0) <= bound:
                return axes
    return None


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a share of the largest of `theirs`; infinite between shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0 if np.array_equal(a, b, equal_nan=True) else float("inf")
    scale = float(np.abs(b).max(initial=0.0)) or float(np.abs(a).max(initial=0.0)) or 1.0
    return float(np.abs(a - b).max(initial=0.0)) / scale


def fixed(values: Sequence[Value], buffers: Collection[str] = ()) -> list[int]:
    """The numbers of values that come from neither inputs nor weights, but for `buffers`."""
    found: set[int] = set()
    for number, value in enumerate(values):
        leaf = value.leaf is None or value.leaf == "" or value.leaf in buffers
        if leaf and all(source in found for source in value.of):
            found.add(number)
    return sorted(found)


def origins(values: Sequence[Value], matched: Sequence[bool], outputs: Sequence[int]) -> list[int]:
    """Where a difference begins: values that have no match though all they come from has one.

    Looked for from `outputs` back; a value without a match is no difference where all that is
    made of it has one, as the parts of a layer that the other side computes in one piece.
    """
    depends = [value.leaf is not None and value.leaf != "" for value in values]
    for number, value in enumerate(values):
        depends[number] |= any(depends[source] for source in value.of)
    found, seen = [], set()
    waiting = [number for number in outputs if not matched[number]]
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        value = values[number]
        if value.leaf is not None:
            continue
        sources = [
            source
            for source in value.of
            if not matched[source] and values[source].leaf is None and depends[source]
        ]
        if sources:
            waiting += sources
        else:
            found.append(number)
    return sorted(found)
