"""The confusion matrix: shares of each true class, grouped by the tree."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from data.tree.hierarchy import Tree
from trunk_jax.pictures.order import outline, spans, tree_order
from trunk_jax.pictures.style import LINE, cells, figure, on_cell, styled

_CELL = 0.36  # inches; from 20 classes on smaller


@styled
def confusion_matrix(
    counts: Int[np.ndarray, "true predicted"], names: Sequence[str], tree: Tree, title: str
) -> Figure:
    """Rows are true classes, columns predicted ones; numbers are percent of a row's images.

    A node's classes stand together, in a box. Shares below half a percent are left out.
    """
    order = tree_order(tree)
    counts = counts[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels, n = [names[label] for label in order], len(order)
    cell = _CELL if n <= 20 else 0.26
    margin = 0.35 + 0.075 * max(map(len, labels))
    side = n * cell
    drawing = figure(side + margin + 0.25, side + margin + 0.75)
    width, height = drawing.get_size_inches()
    axes = drawing.add_axes((margin / width, 0.15 / height, side / width, side / height))
    strength = share**0.6  # small confusions are what one looks for
    cells(axes, strength)
    small = 7.5 if n <= 20 else 5.5
    for i, j in np.argwhere(np.rint(100 * share) >= 1):
        axes.text(
            j,
            i,
            f"{100 * share[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=small,
            color=on_cell(strength[i, j]),
        )
    for first, count, depth in spans(tree):
        outline(axes, first, count, 1.4 / depth)
    _names(axes, labels, 9 if n <= 20 else 7)
    right, total = int(np.trace(counts)), int(counts.sum())
    drawing.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=10.5, fontweight="bold")
    drawing.text(
        0.1 / width,
        1 - 0.34 / height,
        f"{100 * right / max(total, 1):.2f} % right. Rows: true, columns: predicted, in % of a row",
        va="top",
        fontsize=8.5,
    )
    return drawing


def _names(axes, labels: Sequence[str], size: float) -> None:
    axes.set_xticks(range(len(labels)), labels, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.xaxis.tick_top()
    if max(map(len, labels)) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_axisbelow(True)
    axes.hlines(
        np.arange(1, len(labels)) - 0.5, -0.5, len(labels) - 0.5, color=LINE, lw=0.25, alpha=0.5
    )
