"""The order in which a tree is grown (published.md, section 1); the same for every framework."""

from collections.abc import Callable

import numpy as np

from data import hierarchy
from data.grouping import splits
from data.hierarchy import ROOT, Groups, Path, Tree


def grow(
    classes: int,
    *,
    fit: Callable[[Tree, Path, str], None],
    likelihood: Callable[[Tree, Path], np.ndarray],
    decide: Callable[[Tree, Path, Callable[[], np.ndarray]], Groups],
    finish: Callable[[Tree, Path], None],
) -> Tree:
    """Grow a tree breadth first, siblings in name order.

    Args:
      fit: train a node for the phase `class` (one output a class) or `group`.
      likelihood: the ASL of a node that was trained for its classes.
      decide: the node's groups, from its ASL (called for only if not on record).
      finish: called when a node has its final network and the tree its new shape.

    """
    tree = hierarchy.bare(classes)
    waiting = [ROOT]
    while waiting:
        node = waiting.pop(0)
        fit(tree, node, "class")
        groups = decide(tree, node, lambda tree=tree, node=node: likelihood(tree, node))
        if splits(groups):
            tree = hierarchy.regroup(tree, node, groups)
            fit(tree, node, "group")
            paths = {tree.names[child]: child for child in hierarchy.children(tree, node)}
            waiting += [paths[name] for name in hierarchy.name_order(paths)]
        finish(tree, node)
    return tree
