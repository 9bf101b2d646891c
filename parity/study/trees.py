"""Are two trees the same? Groups of classes compared."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score

from data.tree.hierarchy import Groups, Tree


def membership(groups: Groups) -> np.ndarray:
    """The number of the group that each class is in, int [classes]."""
    result = np.empty(sum(map(len, groups)), np.int64)
    for number, group in enumerate(groups):
        result[list(group)] = number
    return result


def adjusted_rand(a: Groups, b: Groups) -> float:
    """Adjusted Rand index of two groupings of the same classes: 1 if equal, 0 as by chance.

    Two groupings that are trivial in the same way (each class alone, or all together) count as
    equal.
    """
    return float(adjusted_rand_score(membership(a), membership(b)))


def margin(asl: np.ndarray, volatility: float | None) -> float:
    """How far the nearest pair of classes is from the threshold that decides on it.

    An ASL that differs by less than this in every value gives the same groups. 0 without a
    volatility: equal likelihoods were told apart by the order of their classes.
    """
    if volatility is None:
        return 0.0
    upper = asl[np.triu_indices(len(asl), 1)]
    return float(np.abs(upper - volatility / len(asl)).min(initial=np.inf))


def root_groups(tree: Tree) -> Groups:
    """The classes below each child of the root (each class alone if the root has no child)."""
    tops: dict[int, list[int]] = {}
    for label, path in enumerate(tree.paths):
        tops.setdefault(path[0], []).append(label)
    return tuple(sorted(tuple(group) for group in tops.values()))


def pairwise(groupings: Sequence[Groups]) -> list[float]:
    """The adjusted Rand index of every two of them."""
    return [adjusted_rand(a, b) for i, a in enumerate(groupings) for b in groupings[i + 1 :]]
