"""From averaged softmax likelihood (ASL) to groups of classes that a node confuses.

Goel et al., "Modular Neural Networks for Low-Power Image Classification on Embedded
Devices", ACM TODAES 26(1), 2020; the details are those of the published release.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from data.tree.hierarchy import Groups, as_groups

DRAWS = 100_000


def average_softmax(
    probabilities: Float[np.ndarray, "images n"], targets: Int[np.ndarray, " images"]
) -> Float[np.ndarray, "n n"]:
    """ASL: row i is the mean of `probabilities` over the images of class i; 0 if there are none.

    Images whose target is negative are left out. Sums are taken in float64.
    """
    n = probabilities.shape[1]
    counts = np.bincount(targets[targets >= 0], minlength=n)
    sums = np.zeros((n, n))
    for index in range(n):
        sums[index] = probabilities[targets == index].sum(0, dtype=np.float64)
    return sums / np.maximum(counts, 1)[:, None]


def membership(asl: Float[np.ndarray, "n n"], volatility: float) -> Float[np.ndarray, "n n"]:
    """How much class j belongs with class i: sigmoid((A[i, j] - v/n) * 10 n v), in 0 to 1."""
    n = len(asl)
    # tanh form of the sigmoid: no overflow far from the threshold
    return 0.5 * (1 + np.tanh((asl - volatility / n) * 5 * n * volatility))


def group(
    asl: Float[np.ndarray, "n n"],
    volatility: float,
    generator: np.random.Generator | None = None,
) -> Groups:
    """Groups of class indices: i < j are alike when A[i, j] > v/n; likeness is transitive.

    With `generator`, likeness is decided as the release does, by the mean of 100,000
    draws with the membership as their probability (`--grouping sampled`). Groups are in
    the order of their smallest member.
    """
    asl = np.asarray(asl, np.float64)
    if generator is None:
        alike = asl > volatility / len(asl)
    else:
        alike = generator.binomial(DRAWS, membership(asl, volatility)) / DRAWS > 0.5
    count, component = connected_components(np.triu(alike, 1), directed=False)
    return as_groups([np.flatnonzero(component == index).tolist() for index in range(count)])


def whole(groups: Groups) -> bool:
    """Whether `groups` pass all classes on to a single child (`--grouping one`)."""
    return len(groups) == 1 and len(groups[0]) > 1


def splits(groups: Groups) -> bool:
    """Whether `groups` change a node: more than one group, fewer than one a class."""
    return 1 < len(groups) < sum(map(len, groups))
