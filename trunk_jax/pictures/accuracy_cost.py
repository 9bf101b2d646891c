"""Finished runs by what they cost and how often they are right, a colour a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data.run import results
from data.tree.interval import interval
from trunk_jax.pictures.style import BLUE, INK, LINE, ORANGE, figure, styled

TREE, SINGLE, PUBLISHED = "tree of ours", "one network", "published tree"
_MARKS = {TREE: "o", SINGLE: "D", PUBLISHED: "s"}
_COLOURS = (BLUE, ORANGE, "#2b8a57", "#7c3aed", "#0e7490", "#b42318")


@dataclass(frozen=True)
class Point:
    """A classifier: its data, its kind, its test images right and in all, its mean cost."""

    data: str
    kind: str
    correct: int
    total: int
    multiply_adds: float


def point(run: Path) -> Point:
    """A finished run as a point (`results.standing`). UserError if it is not finished."""
    summary = results.read_summary(run)
    found = results.standing(run, summary)
    kind = TREE if len(summary["nodes"]) > 1 else SINGLE
    cost = float(found["multiply_adds"])
    return Point(summary["dataset_title"], kind, found["correct"], found["total"], cost)


def published(file: Path) -> list[Point]:
    """Points of published trees (`results.read_published`)."""
    return [
        Point(row["data"], PUBLISHED, row["correct"], row["total"], row["multiply_adds"])
        for row in results.read_published(file)
    ]


@styled
def accuracy_cost(points: Sequence[Point], title: str) -> Figure:
    """Test accuracy with its 95 % interval (Wilson) against mean multiply-adds of an image."""
    drawing = figure(8.0, 4.4)
    axes = drawing.add_axes((0.085, 0.125, 0.66, 0.78))
    data = list(dict.fromkeys(p.data for p in points))
    colours = {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(data)}
    for p in points:
        low, high = interval(p.correct, p.total)
        at, share = p.multiply_adds / 1e6, 100 * p.correct / p.total
        axes.plot([at, at], [100 * low, 100 * high], color=colours[p.data], lw=1.2, alpha=0.6)
        axes.plot(
            [at],
            [share],
            _MARKS[p.kind],
            ms=8,
            color=colours[p.data],
            mew=1.5,
            markerfacecolor="none" if p.kind == PUBLISHED else colours[p.data],
            alpha=0.75 if p.kind == SINGLE else 1,
        )
    axes.set_xlabel("multiply-adds for one image, millions, mean over the test images")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.margins(y=0.08)
    axes.grid(color=LINE, alpha=0.25, lw=0.6)
    kinds = [kind for kind in _MARKS if any(p.kind == kind for p in points)]
    marks = [
        Line2D(
            [],
            [],
            marker=_MARKS[kind],
            ls="",
            ms=7,
            color=INK,
            label=kind,
            markerfacecolor="none" if kind == PUBLISHED else INK,
        )
        for kind in kinds
    ]
    lines = [Line2D([], [], color=colours[name], lw=4, label=name) for name in data]
    drawing.legend(handles=marks + lines, loc="center left", bbox_to_anchor=(0.755, 0.55))
    drawing.text(0.012, 0.98, title, va="top", fontsize=10.5, fontweight="bold")
    return drawing
