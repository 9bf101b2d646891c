"""Accuracy against cost of one trained tree: what each rule of stopping would give.

A tree is asked once, every node about every image; what follows from a rule is then arithmetic
on these scores. Validation images decide the rule: temperatures by their likelihood, thresholds
and a second branch by accuracy and mean cost.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar

from data.base.errors import UserError
from data.inference.model import Predictions, Visit, predictions
from data.inference.stopping import NEVER, Stopping
from data.tree.hierarchy import ROOT, Node, Tree

Scores = Mapping[Node, Float[np.ndarray, "n outputs"]]
Costs = Mapping[str, Mapping[str, int]]

# Probabilities of the second branch from which both are visited, as they are tried.
_BOTH_FROM = (0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03)
_SUREST = 0.9999  # the highest threshold: beyond it float32 tells probabilities apart no more
_STEPS = 60  # thresholds that are tried
_HOTTEST = 5.0  # a temperature, and its inverse the coldest


@dataclass(frozen=True)
class Asked:
    """What a tree says of images: the scores of every node, and the right labels."""

    tree: Tree
    scores: Scores
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Point:
    """A rule and what it gives on some images.

    `multiply_adds`, `parameters`: of the mean image. `last`: by node name, the share of images
    whose way ends there.
    """

    rule: Stopping
    correct: int
    total: int
    multiply_adds: float
    parameters: float
    last: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.total


def temperature(scores: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> float:
    """What to divide scores by so that the targets are likeliest (Guo et al., 2017).

    Between 1/5 and 5; 1 where there are no images.
    """
    if not len(targets):
        return 1.0
    scores = scores.astype(np.float64)

    def loss(logarithm: float) -> float:
        likelihoods = log_softmax(scores / np.exp(logarithm))
        return -float(likelihoods[np.arange(len(targets)), targets].mean())

    most = float(np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=(-most, most), method="bounded").x))


def temperatures(asked: Asked) -> dict[str, float]:
    """That of each node, from the images of its classes; by node name."""
    found = {}
    for node in asked.tree.nodes:
        targets = asked.tree.targets(node)[asked.labels]
        own = targets >= 0
        found[asked.tree.names[node]] = temperature(asked.scores[node][own], targets[own])
    return found


def log_softmax(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """The logarithms of the probabilities that scores stand for, in their own type."""
    shifted = scores - scores.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def branch_shares(
    tree: Tree, node: Node, shares: Float[np.ndarray, "n outputs"]
) -> Float[np.ndarray, "n branches"]:
    """The probability of each branch of a node, from those of its outputs."""
    if not tree.exits:
        return shares
    return np.stack([shares[:, np.array(each)].sum(1) for each in tree.columns(node)], axis=1)


def visits(tree: Tree, scores: Scores, rule: Stopping) -> Iterator[Visit]:
    """The visits that a rule makes of the scores of every node."""

    def visit(node: Node, places: Int[np.ndarray, " k"]) -> Iterator[Visit]:
        name = tree.names[node]
        likelihoods = log_softmax(scores[node][places].astype(np.float64) / rule.temperature(name))
        shares = np.exp(likelihoods)
        branches = branch_shares(tree, node, shares)
        deeper, open_ways = np.ones(branches.shape[1], bool), True
        if tree.exits:
            deeper = np.array([(*node, k) not in tree.paths for k in range(len(deeper))])
            open_ways = shares.max(1) < rule.threshold(name)
        rows = np.arange(len(places))
        best = branches.argmax(1)
        chosen = np.where(open_ways & deeper[best], best, -1)
        second = None
        if rule.second is not None and branches.shape[1] > 1:
            rest = branches.copy()
            rest[rows, best] = -1
            other = rest.argmax(1)
            goes = open_ways & deeper[other] & (rest[rows, other] >= rule.second)
            second = np.where(goes, other, -1)
        found = Visit(node, places, chosen, likelihoods, second)
        yield found
        for child, mine in found.taken:
            if child not in tree.paths:
                yield from visit(child, places[mine])

    count = len(scores[ROOT])
    if count:
        yield from visit(ROOT, np.arange(count))


def point(asked: Asked, rule: Stopping, costs: Costs) -> Point:
    """What a rule gives. `costs`: by node name, `multiply_adds` and `parameters` of one image."""
    tree = asked.tree
    count = len(asked.labels)
    found = predictions(tree, visits(tree, asked.scores, rule), count)
    correct = int((found.labels == asked.labels).sum())
    mean = mean_costs(tree, found.met, costs)
    last = last_nodes(tree, found.met)
    return Point(rule, correct, count, mean["multiply_adds"], mean["parameters"], last)


def mean_costs(tree: Tree, met: Bool[np.ndarray, "n nodes"], costs: Costs) -> dict[str, float]:
    """`multiply_adds` and `parameters` of the mean image, from the nodes that each met."""
    result = {}
    for key in ("multiply_adds", "parameters"):
        each = np.array([costs[tree.names[node]][key] for node in tree.nodes], np.float64)
        result[key] = float((met @ each).mean())
    return result


def last_nodes(tree: Tree, met: Bool[np.ndarray, "n nodes"]) -> dict[str, float]:
    """The share of images whose way ends at each node; with two branches, at the last of them."""
    last = met.shape[1] - 1 - met[:, ::-1].argmax(1)
    shares = np.bincount(last, minlength=met.shape[1]) / len(met)
    return {tree.names[node]: float(shares[k]) for k, node in enumerate(tree.nodes)}


def of(found: Predictions, tree: Tree, costs: Costs) -> dict[str, Any]:
    """What images cost on the ways that they took, and where these ended."""
    return mean_costs(tree, found.met, costs) | {"last": last_nodes(tree, found.met)}


def rules(asked: Asked, both_ways: bool) -> list[Stopping]:
    """The rules that are tried, on validation images: calibrated, each with one threshold for all.

    Thresholds are quantiles of the root's certainty, so that they are close where many images are;
    each halfway to the next image that is less sure, for at the value of an image rounding would
    decide where it stops.
    `both_ways`: also with second branches. Where nodes score groups images stop nowhere, so only
    second branches are tried.
    """
    tree = asked.tree
    seconds: tuple[float | None, ...] = (None, *_BOTH_FROM) if both_ways else (None,)
    if not tree.exits:
        return [Stopping(second=second) for second in seconds]
    calibrated = temperatures(asked)
    inner = [tree.names[node] for node in tree.nodes if tree.children(node)]
    sure = np.exp(log_softmax(asked.scores[ROOT] / calibrated[tree.names[ROOT]])).max(1)
    quantiles = np.quantile(sure, np.linspace(0, 1, _STEPS, endpoint=False), method="lower")
    values = np.unique(sure)
    places = np.searchsorted(values, quantiles)
    # nobody is less sure than the least sure: a little less than that stops them all
    below = np.where(places > 0, values[places - 1], 0.99 * values[0])
    tried = np.unique(np.minimum((values[places] + below) / 2, _SUREST))
    return [
        Stopping(calibrated, dict.fromkeys(inner, float(share)), second)
        for share in (*tried, NEVER)
        for second in seconds
    ]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those of which no other is as good for less, the cheapest first."""
    best: list[Point] = []
    for each in sorted(points, key=lambda p: (p.multiply_adds, -p.correct)):
        if not best or each.correct > best[-1].correct:
            best.append(each)
    return best


def chosen(points: Sequence[Point], stop_at: float) -> Point:
    """The point for a wanted mean cost (above 1) or a wanted accuracy (0 to 1).

    Of those that cost no more the most accurate; of those that are as accurate the cheapest.
    UserError if there is none, with what there is.
    """
    best = frontier(points)
    if stop_at > 1:
        within = [each for each in best if each.multiply_adds <= stop_at]
        if not within:
            least = math.ceil(best[0].multiply_adds / 100) / 1e4  # the advice has to be enough
            raise UserError(
                f"--stop-at {stop_at / 1e6:.4g}M is less than any image costs; give at least "
                f"{least:.4f}M, or an accuracy from 0 to 1"
            )
        return within[-1]
    within = [each for each in best if each.accuracy >= stop_at]
    if not within:
        most = math.floor(1e4 * best[-1].accuracy) / 1e4
        raise UserError(
            f"--stop-at {stop_at:g}: no threshold gives that accuracy on validation images; the "
            f"best is {most:.4f}, at {best[-1].multiply_adds / 1e6:.4g}M multiply-adds"
        )
    return within[0]


def to_json(each: Point) -> dict[str, Any]:
    """A point as a command's JSON has it."""
    return {
        "thresholds": dict(each.rule.thresholds),
        "second": each.rule.second,
        "accuracy": each.accuracy,
        "correct": each.correct,
        "total": each.total,
        "multiply_adds": each.multiply_adds,
        "parameters": each.parameters,
        "last": dict(each.last),
    }
