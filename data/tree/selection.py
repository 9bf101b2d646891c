"""The rule of `--volatility auto`: which of the groupings that a node's likelihoods offer to take.

Single linkage on likelihoods gives at most one grouping for each number of groups; each is what
a range of volatilities would have given. What the node says of images that it was not trained on
tells how good each would be. docs/trees.md states the rule and its reasons.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import cut_tree, linkage

from data.base import tables
from data.base.words import plural
from data.tree.grouping import group, splits
from data.tree.hierarchy import Groups, as_groups

TOLERATED = 0.005  # accuracy that a tree may be estimated to lose against the flat network,
MORE_ERRORS = 0.02  # or this share of the flat network's errors, where that is more
CLEAR = 0.3  # modularity from which groups are taken for real (Newman and Girvan, 2004)

LARGEST = 2 / 3  # of the images that one group may hold where there is a choice
_ROUNDED = 1e-12  # what sums of weights may be off by
_SHOWN = 16  # rows of a table
_COLUMNS = ("", "volatility", "node %", "tree %", "mult-adds, M", "modularity", "groups")
_CHOSEN = "->"


@dataclass(frozen=True)
class Candidate:
    """A grouping, and the volatilities that give it: `low` <= volatility < `high`.

    `high` is infinite for single classes. `low` equals `high` where equal likelihoods let no
    volatility tell two merges apart.
    """

    groups: Groups
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut:
    """What a node, one output a class, says of images that it was not trained on.

    `probabilities`: float [images, classes]; `targets`: int [images], the right output.
    """

    probabilities: Float[np.ndarray, "images classes"]
    targets: Int[np.ndarray, " images"]


@dataclass(frozen=True)
class Estimate:
    """How good a tree of this grouping would be, if a specialist were as good as the node itself.

    `node_accuracy`: share of images whose group has the largest summed probability.
    `accuracy`: share of those whose class has also the largest probability in its group.
    `multiply_adds`: of the mean path. `modularity`: the share of confusions that groups hold,
    less the share that they would hold by chance. `largest`: the largest group's share of images.
    """

    candidate: Candidate
    node_accuracy: float
    accuracy: float
    multiply_adds: float
    modularity: float
    largest: float

    @property
    def left(self) -> float:
        """Share of images that specialists would have to put right: confused within a group."""
        return self.node_accuracy - self.accuracy


@dataclass(frozen=True)
class Selection:
    """What was chosen (None: no groups), of what, and the accuracy of the node without groups."""

    chosen: Estimate | None
    estimates: tuple[Estimate, ...]
    flat_accuracy: float
    images: int


def candidates(asl: Float[np.ndarray, "n n"]) -> tuple[Candidate, ...]:
    """All groupings that some volatility gives, from single classes to one group.

    As in `grouping.group`, i < j are alike when A[i, j] > v/n. Where none of them splits the
    classes (equal likelihoods), pairs of equal likelihood are joined one after the other instead,
    in the order of their classes.

    Example:
      >>> asl = np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]])
      >>> [c.groups for c in candidates(asl)]
      [((0,), (1,), (2,)), ((0, 1), (2,)), ((0, 1, 2),)]

    """
    n = len(asl)
    upper = np.asarray(asl, np.float64)[np.triu_indices(n, 1)]
    likelihoods, rank = np.unique(-upper, return_inverse=True)  # ranks are exact, 1 - A is not
    merges = linkage(rank.astype(np.float64), "single")
    member = cut_tree(merges)  # [classes, merges done]: the number of its group
    edges = np.maximum(-likelihoods[merges[:, 2].astype(int)] * n, 0.0)
    bounds = [math.inf, *edges.tolist(), 0.0]
    every = tuple(
        Candidate(_groups(member[:, done]), bounds[done + 1], bounds[done]) for done in range(n)
    )
    attainable = tuple(each for each in every if each.low < each.high)
    return attainable if any(splits(each.groups) for each in attainable) else every


def _groups(numbers: Int[np.ndarray, " classes"]) -> Groups:
    return as_groups([np.flatnonzero(numbers == number).tolist() for number in set(numbers)])


def volatility_of(candidate: Candidate, asl: Float[np.ndarray, "n n"]) -> float | None:
    """The middle of the candidate's range of volatilities; None if none gives its groups."""
    if not candidate.low < candidate.high:
        return None
    low, high = candidate.low, candidate.high
    middle = (low + high) / 2 if math.isfinite(high) else max(2 * low, 1.0)
    return next((v for v in (middle, low) if v > 0 and group(asl, v) == candidate.groups), None)


def modularity(confusions: Float[np.ndarray, "n n"], groups: Groups) -> float:
    """Newman's modularity of groups of classes in the graph of their confusions, below 1.

    `confusions[i, j]`: how much of class i is taken for j; the diagonal does not count. 0 for one
    group, and where nothing is confused.
    """
    mixed = np.asarray(confusions, np.float64).copy()
    np.fill_diagonal(mixed, 0.0)
    total = mixed.sum()
    if not total > 0:
        return 0.0
    mixed = (mixed + mixed.T) / (2 * total)
    degree = mixed.sum(1)
    return float(sum(mixed[np.ix_(g, g)].sum() - degree[list(g)].sum() ** 2 for g in groups))


def estimate(
    found: Sequence[Candidate],
    held_out: HeldOut,
    cost: Callable[[Groups, Sequence[float]], float],
    balanced: bool = False,
) -> tuple[Estimate, ...]:
    """Estimates of those candidates that split the classes.

    `cost`: groups and each class's share of images to multiply-adds of the mean path.
    `balanced`: classes count equally, however many images they have.
    """
    truth, probabilities = held_out.targets, np.asarray(held_out.probabilities, np.float64)
    n = probabilities.shape[1]
    weights = _weights(truth, n, balanced)
    shares = np.bincount(truth, weights=weights, minlength=n)
    confusions = np.zeros((n, n))
    np.add.at(confusions, truth, weights[:, None] * probabilities)
    result = []
    for candidate in found:
        if not splits(candidate.groups):
            continue
        number = np.empty(n, np.int64)
        for place, members in enumerate(candidate.groups):
            number[list(members)] = place
        summed = np.stack([probabilities[:, list(g)].sum(1) for g in candidate.groups], axis=1)
        right = summed.argmax(1) == number[truth]
        within = np.where(number[None] == number[truth][:, None], probabilities, -1.0)
        both = right & (within.argmax(1) == truth)
        result.append(
            Estimate(
                candidate,
                float(weights[right].sum()),
                float(weights[both].sum()),
                cost(candidate.groups, shares.tolist()),
                modularity(confusions, candidate.groups),
                float(max(shares[list(g)].sum() for g in candidate.groups)),
            )
        )
    return tuple(result)


def _weights(truth: Int[np.ndarray, " images"], n: int, balanced: bool) -> np.ndarray:
    """What each image counts; they add up to 1."""
    if not balanced:
        return np.full(len(truth), 1 / len(truth))
    counts = np.bincount(truth, minlength=n)
    return 1 / (counts[truth] * np.count_nonzero(counts))


def flat_accuracy(held_out: HeldOut, balanced: bool = False) -> float:
    """The accuracy of the node as it is, with one output a class."""
    truth = held_out.targets
    weights = _weights(truth, held_out.probabilities.shape[1], balanced)
    return float(weights[held_out.probabilities.argmax(1) == truth].sum())


def tolerated(flat: float) -> float:
    """Accuracy that a tree may be estimated to lose against a flat network of accuracy `flat`.

    A node that gets much wrong is at the beginning of its training: what its groups lose falls with
    its other errors, so it is measured by them.

    Example: `tolerated(0.9), tolerated(0.5)` is `(0.005, 0.01)`.
    """
    return max(TOLERATED, MORE_ERRORS * (1 - flat))


def choose(
    estimates: Sequence[Estimate], flat: float, *, is_root: bool, budget: float = 0
) -> Estimate | None:
    """The grouping to take, None for none.

    Of those whose mean path costs at most `budget` multiply-adds (0: any) and whose estimated
    accuracy is at most `tolerated` below `flat`, that of the highest modularity; of equal ones the
    cheaper. Those with a group of more than `LARGEST` count only where there are no others.

    The root always takes one if there is any: the cheapest if none is within the budget, the most
    accurate if none is accurate enough. Any other node takes one only if its modularity is `CLEAR`
    and its specialists have more than `TOLERATED` of the images to put right.
    """

    def affordable(each: Estimate) -> bool:
        return budget == 0 or each.multiply_adds <= budget

    def accurate(each: Estimate) -> bool:
        return each.accuracy >= flat - tolerated(flat) - _ROUNDED

    def pays(each: Estimate) -> bool:
        return is_root or (each.modularity >= CLEAR and each.left > TOLERATED + _ROUNDED)

    within = [each for each in estimates if affordable(each)]
    if is_root and estimates and not within:
        least = min(each.multiply_adds for each in estimates)
        within = [each for each in estimates if each.multiply_adds == least]
    good = [each for each in within if accurate(each)]
    if is_root and within and not good:
        most = max(each.accuracy for each in within)
        good = [each for each in within if each.accuracy == most]
    even = [each for each in good if each.largest <= LARGEST + _ROUNDED]
    return max(
        (each for each in even or good if pays(each)),
        key=lambda each: (each.modularity, -each.multiply_adds),
        default=None,
    )


def select(
    asl: Float[np.ndarray, "n n"],
    held_out: HeldOut,
    cost: Callable[[Groups, Sequence[float]], float],
    *,
    is_root: bool,
    balanced: bool = False,
    budget: float = 0,
) -> Selection:
    """The candidates of `asl`, their estimates by `held_out`, and the choice among them."""
    estimates = estimate(candidates(asl), held_out, cost, balanced)
    flat = flat_accuracy(held_out, balanced)
    chosen = choose(estimates, flat, is_root=is_root, budget=budget)
    return Selection(chosen, estimates, flat, len(held_out.targets))


def to_json(selection: Selection) -> dict[str, Any]:
    """The form stored in `asl/<node>.json`."""
    return {
        "images": selection.images,
        "flat_accuracy": selection.flat_accuracy,
        "candidates": [
            {
                "volatility": [_finite(each.candidate.low), _finite(each.candidate.high)],
                "groups": [list(members) for members in each.candidate.groups],
                "node_accuracy": each.node_accuracy,
                "accuracy": each.accuracy,
                "multiply_adds": each.multiply_adds,
                "modularity": each.modularity,
                "largest": each.largest,
                "chosen": each is selection.chosen,
            }
            for each in selection.estimates
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def lines(selection: Selection, names: Sequence[str]) -> list[str]:
    """The table of candidates for the terminal. `names`: of the node's classes.

    Of many, those of the highest modularity and the chosen one are shown, which an arrow marks.
    """
    head = (
        f"groups by --volatility auto, from {selection.images:,} validation images; without groups "
        f"{100 * selection.flat_accuracy:.2f} % are right"
    )
    if not selection.estimates:
        return [f"{head}; {len(names)} classes cannot be split"]
    best = sorted(selection.estimates, key=lambda each: -each.modularity)[:_SHOWN]
    shown = [each for each in selection.estimates if each in best or each is selection.chosen]
    rows = [_cells(each, names, each is selection.chosen) for each in shown]
    result = [head, *tables.text(_COLUMNS, rows, left=(0, 6)).splitlines()]
    left_out = len(selection.estimates) - len(shown)
    if left_out:
        are = "is" if left_out == 1 else "are"
        result.append(f"{plural(left_out, 'candidate')} of lower modularity {are} not shown")
    if selection.chosen is None:
        result.append("no grouping pays: the node keeps one output a class")
    return result


def _cells(each: Estimate, names: Sequence[str], chosen: bool) -> list[str]:
    low, high = each.candidate.low, each.candidate.high
    return [
        _CHOSEN if chosen else "",
        f"{low:.4g} to {high:.4g}" if low < high else "(likelihoods tie)",
        f"{100 * each.node_accuracy:.2f}",
        f"{100 * each.accuracy:.2f}",
        f"{each.multiply_adds / 1e6:.2f}",
        f"{each.modularity:.3f}",
        in_words(each.candidate.groups, names),
    ]


def in_words(groups: Groups, names: Sequence[str]) -> str:
    """Groups by the names of their classes; single classes are counted."""
    joined = [" ".join(names[index] for index in g) for g in groups if len(g) > 1]
    single = sum(len(g) == 1 for g in groups)
    return ", ".join(f"({text})" for text in joined) + (f" + {single} single" if single else "")


def why_flat(
    asl: Float[np.ndarray, "n n"], groups: Groups, volatility: float
) -> tuple[str, float | None]:
    """Why these groups split nothing and which volatilities would, in words; and one of those.

    Of the volatilities that split, the one whose groups have the highest modularity by `asl`.
    """
    n = len(asl)
    alike = f"all {n} classes are alike" if len(groups) == 1 else f"no two of {n} classes are alike"
    reason = f"{alike} at volatility {volatility:g}"
    proper = [each for each in candidates(asl) if splits(each.groups) and each.low < each.high]
    if not proper:
        return f"{reason}, and no volatility splits them", None
    best = max(proper, key=lambda each: modularity(asl, each.groups))
    low, high = proper[-1].low, proper[0].high
    return f"{reason}; one from {low:.4g} to {high:.4g} splits them", volatility_of(best, asl)
