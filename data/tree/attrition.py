"""Where images leave their true path: which node loses how many, and how deep."""

from typing import Any

import numpy as np
from jaxtyping import Int

from data.tree.hierarchy import Node, Tree
from data.tree.metrics import node_accuracy

Labels = Int[np.ndarray, " n"]


def by_node(tree: Tree, labels: Labels, predicted: Labels) -> dict[str, dict[str, Any]]:
    """For each node: images that `reached` it rightly, how many it `lost`, and as a share of all.

    Every wrong answer is lost at exactly one node, so `lost` sums to the number of errors.
    `accuracy` is of the images that reached it, None if there are none.
    """
    rows = node_accuracy(tree, labels, predicted)
    return {
        name: {
            "reached": row["total"],
            "lost": row["total"] - row["correct"],
            "lost_share": (row["total"] - row["correct"]) / len(labels),
            "accuracy": row["accuracy"],
        }
        for name, row in rows.items()
    }


def by_depth(tree: Tree, labels: Labels, predicted: Labels) -> list[dict[str, Any]]:
    """After 1, 2, ... decisions: images still on their true path, and those that decided.

    `decided`: images with a decision to take at that depth, on their true path until then;
    `right`: those of them that took it rightly; `on_path`: the share of all images that are on
    their true path or have ended it rightly.
    """
    agree = common(tree, labels, predicted)
    length = np.array([len(path) for path in tree.paths])[labels]
    result = []
    for depth in range(1, int(length.max()) + 1):
        deciding = (length >= depth) & (agree >= depth - 1)
        right = deciding & (agree >= depth)
        on_path = float((agree >= np.minimum(depth, length)).mean())
        decided, kept = int(deciding.sum()), int(right.sum())
        accuracy = kept / decided if decided else None
        row = {"depth": depth, "decided": decided, "right": kept, "accuracy": accuracy}
        result.append(row | {"on_path": on_path})
    return result


def common(tree: Tree, labels: Labels, predicted: Labels) -> Int[np.ndarray, " n"]:
    """How many decisions of each image agree with its true path before the first that does not."""
    table = np.array([[_shared(a, b) for b in tree.paths] for a in tree.paths])
    return table[labels, predicted]


def _shared(a: Node, b: Node) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


def traffic(tree: Tree, predicted: Labels) -> dict[Node, int]:
    """How many images each node and leaf received, rightly or not."""
    count: dict[Node, int] = {}
    for path, images in zip(
        tree.paths, np.bincount(predicted, minlength=len(tree.paths)), strict=True
    ):
        for length in range(len(path) + 1):
            count[path[:length]] = count.get(path[:length], 0) + int(images)
    return count


def sequences(tree: Tree) -> dict[tuple[Node, ...], tuple[int, ...]]:
    """The paths through networks, as nodes from the root down, and the labels that take each.

    In depth-first order of their last node.
    """
    result: dict[tuple[Node, ...], list[int]] = {}
    for label, path in enumerate(tree.paths):
        walked = tuple(path[:length] for length in range(len(path)))
        result.setdefault(walked, []).append(label)
    order = {node: place for place, node in enumerate(tree.nodes)}
    return {key: tuple(result[key]) for key in sorted(result, key=lambda k: order[k[-1]])}
