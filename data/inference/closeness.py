"""Which images are too close to call: their way or answer may be another within an error of scores.

Two right programs differ by rounding, so that where a probability is next to what it is compared
with either may be right.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from data.base.rounding import CONSTANT, UNIT
from data.inference import curve
from data.inference.curve import Scores
from data.inference.model import distribution, group_shares
from data.inference.stopping import Stopping
from data.tree.hierarchy import Node, Tree

_SAFETY = 2  # times the error within which a decision is too close to call


def too_close(
    tree: Tree,
    rule: Stopping,
    scores: Scores,
    error: Mapping[Node, Float[np.ndarray, " n"]],
    met: Bool[np.ndarray, "n nodes"],
) -> Bool[np.ndarray, " n"]:
    """Whether an image's way or answer may be another within the error of its scores.

    An error e of scores at temperature t changes a probability by at most the factor exp(2e / t);
    right scores too become probabilities with an error of rounding, which each runtime has its own.

    Args:
      tree: whose nodes gave the scores.
      rule: where images stop, or visit two branches.
      scores: of every node, for all images.
      error: of every node, the largest that one of an image's scores may have.
      met: which of `tree.nodes` each image meets by these scores.

    """
    close = np.zeros(len(met), bool)
    slack = np.zeros(len(met))  # of logarithms of products along the way
    for place, node in enumerate(tree.nodes):
        mine, name = met[:, place], tree.names[node]
        heat = rule.temperature(name)
        heated = scores[node].astype(np.float64) / heat
        shares = np.exp(curve.log_softmax(heated))
        rounding = CONSTANT * UNIT * (1 + np.abs(heated).max(1))  # of a softmax, and of a threshold
        factor = _SAFETY * (2 * error[node] / heat + rounding)
        slack += np.where(mine, factor, 0)
        branches = curve.branch_shares(tree, node, shares)
        if tree.exits and name in rule.thresholds:
            close |= mine & _near(shares.max(1), rule.threshold(name), factor)
        order = np.sort(branches, axis=1)
        if branches.shape[1] > 1:
            close |= mine & _near(order[:, -2], order[:, -1], 2 * factor)
            if rule.second is not None:
                close |= mine & _near(order[:, -2], rule.second, factor)
        if rule.second is not None and branches.shape[1] > 2:
            may = order[:, -2] >= rule.second * np.exp(-factor)  # else neither is visited
            close |= mine & may & _near(order[:, -3], order[:, -2], 2 * factor)
    if tree.exits or rule.second is not None:  # the answer is a choice among products
        found, told = curve.visits(tree, scores, rule), distribution if tree.exits else group_shares
        answers = np.sort(told(tree, found, len(met)), axis=1)
        close |= _near(answers[:, -2], answers[:, -1], 2 * slack)
    return close


def _near(one: np.ndarray, other: np.ndarray | float, factor: np.ndarray) -> np.ndarray:
    """Whether probabilities are within a factor, given as its logarithm."""
    least = np.finfo(np.float64).tiny
    apart = np.abs(np.log(np.maximum(one, least)) - np.log(np.maximum(other, least)))
    return np.asarray(apart <= factor)
