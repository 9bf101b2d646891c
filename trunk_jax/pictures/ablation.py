"""What becomes of a tree, and what it costs, as volatility rises."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trunk_jax.pictures.style import BLUE, LINE, ORANGE, figure, styled

_PANELS = {
    "accuracy, %": (("test_accuracy", 100, BLUE), ("validation_accuracy", 100, ORANGE)),
    "multiply-adds of the mean path, M": (("mean_multiply_adds", 1e-6, BLUE),),
    "nodes": (("nodes", 1, BLUE),),
    "networks on the longest path": (("depth", 1, BLUE),),
}


@styled
def ablation_picture(rows: list[dict[str, Any]], title: str) -> Figure:
    """`rows`: those of `ablation.csv`, a tree each."""
    rows = sorted(rows, key=lambda row: row["volatility"])
    x = [row["volatility"] for row in rows]
    drawing = figure(8.4, 5.4)
    grid = drawing.add_gridspec(
        2, 2, left=0.07, right=0.985, bottom=0.095, top=0.84, wspace=0.2, hspace=0.42
    )
    for place, (name, series) in enumerate(_PANELS.items()):
        axes = drawing.add_subplot(grid[place // 2, place % 2])
        axes.set_title(name)
        for key, factor, colour in series:
            y = [factor * row[key] for row in rows]
            label = key.removesuffix("_accuracy") if len(series) > 1 else None
            axes.plot(x, y, "o-", color=colour, ms=4, lw=1.3, label=label)
        if len(series) > 1:
            axes.legend(loc="best", fontsize=8)
        if name.startswith(("nodes", "networks")):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if place > 1:
            axes.set_xlabel("volatility: higher splits more")
        axes.grid(color=LINE, alpha=0.25, lw=0.6)
    drawing.text(0.012, 0.975, title, va="top", fontsize=10.5, fontweight="bold")
    return drawing
