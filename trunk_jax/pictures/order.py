"""The order in which pictures show classes: neighbours in the tree are neighbours in a matrix."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from data.tree.hierarchy import ROOT, Groups, Tree
from trunk_jax.pictures.style import INK


def tree_order(tree: Tree) -> list[int]:
    """Labels by their path, depth first."""
    return sorted(range(len(tree.paths)), key=lambda label: tree.paths[label])


def spans(tree: Tree) -> Iterator[tuple[int, int, int]]:
    """(first place, number of classes, depth) of each node below the root, in `tree_order`."""
    place = {label: k for k, label in enumerate(tree_order(tree))}
    for node in tree.nodes:
        if node != ROOT:
            mine = [place[label] for label in tree.members(node)]
            yield min(mine), len(mine), len(node)


def group_order(groups: Groups) -> list[int]:
    """Class indices, a group after the other."""
    return [index for group in groups for index in group]


def outline(axes: Axes, first: int, count: int, width: float) -> None:
    """A box on the diagonal of a matrix about `count` classes from place `first` on."""
    axes.add_patch(
        Rectangle(
            (first - 0.5, first - 0.5), count, count, fill=False, edgecolor=INK, linewidth=width
        )
    )
