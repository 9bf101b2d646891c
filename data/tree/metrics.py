"""What a run is measured by, from predictions alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.tree.hierarchy import Tree

Labels = Int[np.ndarray, " n"]


def confusion(labels: Labels, predicted: Labels, classes: int) -> Int[np.ndarray, "true predicted"]:
    """Counts; rows are true classes, columns predicted ones (scikit-learn's orientation)."""
    flat = np.bincount(labels * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def accuracy(labels: Labels, predicted: Labels, balanced: bool = False) -> float:
    """The share of right answers; with `balanced`, the mean over classes of each one's share."""
    right = labels == predicted
    if not balanced:
        return float(right.mean())
    counts = np.bincount(labels)
    return float((np.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]).mean())


def recall(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each class, by name: the share of its images that are right (None: it has none)."""
    total = np.bincount(labels, minlength=len(names)).tolist()
    right = np.bincount(labels[labels == predicted], minlength=len(names)).tolist()
    return {
        name: {"recall": correct / count if count else None, "correct": correct, "total": count}
        for name, correct, count in zip(names, right, total, strict=True)
    }


def node_accuracy(tree: Tree, labels: Labels, predicted: Labels) -> dict[str, dict[str, Any]]:
    """For each node: of the images that belong to it and reached it, those it sent on rightly."""
    result = {}
    for node in tree.nodes:
        belongs = set(tree.members(node))
        output = np.array(
            [path[len(node)] if label in belongs else -1 for label, path in enumerate(tree.paths)]
        )
        true, chosen = output[labels], output[predicted]
        reached = (true >= 0) & (chosen >= 0)
        correct = int((true == chosen)[reached].sum())
        total = int(reached.sum())
        result[tree.names[node]] = {
            "accuracy": correct / total if total else None,
            "correct": correct,
            "total": total,
        }
    return result


def path_costs(
    tree: Tree, node_costs: dict[str, dict[str, int]], labels: Labels
) -> dict[str, dict[str, float]]:
    """Parameters and multiply-adds of the shortest, longest and mean path.

    `node_costs`: by node name, `parameters` and `multiply_adds` of one image. Paths are
    those of the true labels: the mean is over the images that `labels` belong to.
    """
    per_label: list[dict[str, float]] = [
        {
            key: sum(node_costs[tree.names[path[:length]]][key] for length in range(len(path)))
            for key in ("parameters", "multiply_adds")
        }
        for path in tree.paths
    ]
    order = sorted(range(len(per_label)), key=lambda i: per_label[i]["multiply_adds"])
    counts = np.bincount(labels, minlength=len(per_label))
    mean = {
        key: float(np.average([cost[key] for cost in per_label], weights=counts))
        for key in ("parameters", "multiply_adds")
    }
    return {"shortest": per_label[order[0]], "longest": per_label[order[-1]], "mean": mean}


def score_accuracy(scores: Float[np.ndarray, "n outputs"], targets: Labels) -> tuple[float, float]:
    """(accuracy, mean negative log-likelihood) of scores, which need not be normalised."""
    scores = scores.astype(np.float64)
    shifted = scores - scores.max(1, keepdims=True)
    likelihood = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(targets))
    correct = scores.argmax(1) == targets
    return float(correct.mean()), float(-likelihood[rows, targets].mean())


def softmax(scores: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
    """Probabilities over the last axis, in float64."""
    scores = scores.astype(np.float64)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
