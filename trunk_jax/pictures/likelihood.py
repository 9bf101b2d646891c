"""ASL heat maps: how likely a node finds each class on images of each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from data.tree.hierarchy import Groups
from trunk_jax.pictures.order import group_order, outline
from trunk_jax.pictures.style import BLUE, ORANGE, cells, figure, on_cell, styled


@styled
def likelihoods(
    matrices: dict[str, Float[np.ndarray, "n n"]],
    names: Sequence[str],
    groups: Groups,
    threshold: float,
    title: str,
) -> Figure:
    """Matrices side by side, classes ordered by group, groups of two or more in boxes.

    In the last, the one that the groups follow from, what makes two classes alike is orange: a
    value above `threshold` whose row comes before its column by label.
    """
    order, n = group_order(groups), len(names)
    labels = [names[index] for index in order]
    cell = 0.42 if n <= 12 else 0.22
    margin, gap = 0.3 + 0.075 * max(map(len, labels)), 0.35
    side = n * cell
    drawing = figure(max(len(matrices) * (side + margin) + gap, 5.2), side + margin + 1.05)
    width, height = drawing.get_size_inches()
    for k, (name, matrix) in enumerate(matrices.items()):
        left = margin + k * (side + margin)
        axes = drawing.add_axes((left / width, 0.15 / height, side / width, side / height))
        bound = threshold if k == len(matrices) - 1 else np.inf
        _heat_map(axes, matrix, order, labels, groups, bound, n)
        drawing.text(
            left / width, 1 - 0.86 / height, name, fontweight="bold", fontsize=9.5, va="bottom"
        )
    drawing.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=10.5, fontweight="bold")
    drawing.text(
        0.1 / width,
        1 - 0.36 / height,
        f"Rows: true class, columns: mean probability. Orange: above {threshold:.4f}, alike",
        va="top",
        fontsize=8.5,
    )
    return drawing


def _heat_map(axes, matrix, order, labels, groups, threshold, n) -> None:
    shown = np.asarray(matrix)[np.ix_(order, order)]
    upper = np.less.outer(order, order)  # by label, as the rule has it, not by place
    strength = np.clip(shown, 0, 1) ** 0.4
    alike = upper & (shown > threshold)
    cells(axes, np.where(alike, 0, strength), BLUE)
    cells(axes, np.where(alike, np.maximum(strength, 0.25), 0), ORANGE)
    if n <= 12:
        for (i, j), value in np.ndenumerate(shown):
            if value >= 0.0005:
                text = f"{value:.3f}" if value < 0.0995 else f"{value:.2f}"
                axes.text(
                    j,
                    i,
                    text.removeprefix("0"),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color=on_cell(strength[i, j]),
                )
    first = 0
    for group in groups:
        if len(group) > 1:
            outline(axes, first, len(group), 1.2)
        first += len(group)
    size = 8.5 if n <= 12 else 6.5
    axes.set_xticks(range(n), labels, fontsize=size)
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.xaxis.tick_top()
    if max(map(len, labels)) > 2:
        axes.tick_params(axis="x", rotation=90)
