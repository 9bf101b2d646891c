"""Training curves: loss and accuracy of every node, its phases one after the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from trunk_jax.pictures.style import BLUE, INK, LINE, ORANGE, figure, styled

_SERIES = {"train": BLUE, "validation": ORANGE}


@styled
def training_curves(
    rows: list[dict[str, Any]], ties: str, title: str, titles: Mapping[str, str] | None = None
) -> Figure:
    """`rows`: the lines of `metrics.jsonl`; `ties`: the recipe's. A ring marks the epoch kept.

    `titles`: what each node is called.
    """
    titles = titles or {}
    names = list(dict.fromkeys(row["node"] for row in rows))
    across = 1 if len(names) <= 8 else 2  # nodes in a row of the picture, two panels each
    down = -(-len(names) // across)
    drawing = figure(8.4 * across, 0.95 + 2.05 * max(down, 1))
    height = drawing.get_size_inches()[1]
    grid = drawing.add_gridspec(
        max(down, 1),
        2 * across,
        left=0.08 / across,
        right=0.985,
        wspace=0.28,
        hspace=0.62,
        bottom=0.42 / height,
        top=1 - 0.9 / height,
    )
    for k, name in enumerate(names):
        mine = [row for row in rows if row["node"] == name]
        for column, kind in enumerate(("accuracy", "loss")):
            axes = drawing.add_subplot(grid[k // across, 2 * (k % across) + column])
            _panel(axes, mine, kind, ties)
            axes.set_title(
                f"{titles.get(name, name)}: {'accuracy, %' if kind == 'accuracy' else 'loss'}",
                pad=13,
            )
            if k // across == down - 1 or k + across >= len(names):
                axes.set_xlabel("epoch, phases one after the other")
    handles = [Line2D([], [], color=colour, label=name) for name, colour in _SERIES.items()]
    handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec=INK, label="epoch kept"))
    width = drawing.get_size_inches()[0]
    drawing.legend(
        handles=handles, loc="upper right", ncols=3, bbox_to_anchor=(1, 1 - 0.02 / height)
    )
    drawing.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=10.5, fontweight="bold")
    return drawing


def _panel(axes: Axes, rows: list[dict[str, Any]], kind: str, ties: str) -> None:
    factor, offset = (100 if kind == "accuracy" else 1), 0
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = sorted((r for r in rows if r["phase"] == phase), key=lambda row: row["epoch"])
        epochs = offset + np.array([row["epoch"] for row in mine])
        for series, colour in _SERIES.items():
            found = [row.get(f"{series}_{kind}") for row in mine]
            values = np.array([np.nan if v is None else factor * v for v in found])
            dot = "." if len(mine) == 1 else ""
            axes.plot(epochs, values, color=colour, lw=1.4, marker=dot)
            if series == "validation":
                kept = _kept(mine, ties)
                axes.plot(epochs[kept], values[kept], "o", mfc="none", mec=INK, ms=5)
        if offset:
            axes.axvline(offset + 0.5, color=LINE, lw=0.8, ls=":")
        axes.text(
            (epochs[0] + epochs[-1]) / 2,
            1.0,
            phase,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=LINE,
        )
        offset = int(epochs[-1])
    axes.set_xlim(0.5, offset + 0.5)
    axes.grid(axis="y", color=LINE, alpha=0.25, lw=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _kept(rows: list[dict[str, Any]], ties: str) -> int:
    """The place of the epoch with the best validation accuracy; of equal ones as `ties` says.

    The last one for `final`.
    """
    if ties == "final":
        return len(rows) - 1
    accuracy = [row.get("validation_accuracy") or 0 for row in rows]
    if ties == "first":
        return int(np.argmax(accuracy))
    return len(accuracy) - 1 - int(np.argmax(accuracy[::-1]))
