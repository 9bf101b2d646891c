"""The tree: root on the left, a row a class, edges as wide as their traffic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from data.tree.attrition import by_node, traffic
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_jax.pictures.order import tree_order
from trunk_jax.pictures.style import ACCURACY, BLUE, figure, over, styled

_ROW = 0.3  # inches a class
_COLUMN = 1.95  # inches from a node to its children
_BOX = (1.02, 0.42)  # a node's, inches
_WIDEST = 24.0  # points, of the edge that all images would take


@dataclass(frozen=True)
class _Place:
    """Where everything is, in inches from the left and from the top."""

    x: dict[Node, float]
    y: dict[Node, float]
    width: float
    height: float


@styled
def tree_picture(
    tree: Tree,
    names: Sequence[str],
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    title: str,
    samples: Mapping[int, UInt8[np.ndarray, "h w c"]] | None = None,
) -> Figure:
    """A node shows how often it is right about images that reach it rightly, and how many do.

    A leaf shows its class, how often it is found (recall), and with `samples` an image of it.
    """
    place = _layout(tree, names, samples)
    drawing = figure(place.width, place.height)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, place.width)
    axes.set_ylim(place.height, 0)
    axes.axis("off")

    inner, flow = tree.nodes, traffic(tree, predicted)
    rows = by_node(tree, labels, predicted)
    recall = [
        float((predicted[labels == k] == k).mean()) if (labels == k).any() else None
        for k in range(len(names))
    ]
    known = [row["accuracy"] for row in rows.values() if row["accuracy"] is not None]
    known += [value for value in recall if value is not None]
    lowest = min(0.95, np.floor(20 * min(known, default=0)) / 20)
    scale = ScalarMappable(Normalize(lowest, 1), ACCURACY)

    for node in inner:
        _edges(axes, place, tree, node, flow)
    for node in inner:
        row = rows[tree.names[node]]
        _node(axes, place, node, tree.names[node], row["accuracy"], row["reached"], scale)
    for label, path in enumerate(tree.paths):
        sample = samples.get(label) if samples else None
        _leaf(axes, place, path, names[label], recall[label], sample, scale)
    _legend(drawing, place, scale, title, lowest)
    return drawing


def _layout(tree: Tree, names: Sequence[str], samples: Mapping | None) -> _Place:
    row = _ROW if samples is None else 0.42
    top = 1.0
    y = {tree.paths[label]: top + row * (k + 0.5) for k, label in enumerate(tree_order(tree))}
    for node in reversed(tree.nodes):  # children before their parents
        below = {path[: len(node) + 1] for path in tree.paths if path[: len(node)] == node}
        y[node] = float(np.mean([y[child] for child in below]))
    levels = tree.depth
    leaves = 0.15 + _BOX[0] / 2 + _COLUMN * levels - 0.25
    x = {node: 0.15 + _BOX[0] / 2 + _COLUMN * len(node) for node in tree.nodes}
    x |= dict.fromkeys(tree.paths, leaves)
    right = 0.95 + 0.09 * max(map(len, names)) + (0.45 if samples else 0)
    return _Place(x, y, max(leaves + right, 5.4), top + row * len(tree.paths) + 0.2)


def _edges(axes: Axes, place: _Place, tree: Tree, node: Node, flow: Mapping[Node, int]) -> None:
    """The edges to a node's children: side by side at the parent, bending, then straight."""
    below = sorted({path[: len(node) + 1] for path in tree.paths if path[: len(node)] == node})
    widths = [_WIDEST * flow[child] / max(flow[ROOT], 1) for child in below]  # points
    start = place.x[node] + _BOX[0] / 2
    bend = start + _COLUMN - _BOX[0]
    top = place.y[node] - sum(widths) / 72 / 2
    leaves = set(tree.paths)
    for child, width in zip(below, widths, strict=True):
        y0, y1, middle = top + width / 72 / 2, place.y[child], (start + bend) / 2
        top += width / 72
        end = place.x[child] if child in leaves else bend
        points = [(start, y0), (middle, y0), (middle, y1), (bend, y1), (end, y1)]
        codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO]
        axes.add_patch(
            PathPatch(
                Curve(points, codes),
                fill=False,
                edgecolor=BLUE,
                alpha=0.4,
                capstyle="butt",
                joinstyle="round",
                linewidth=max(0.4, width),
                linestyle="-" if width else ":",
            )
        )


def _node(
    axes: Axes,
    place: _Place,
    node: Node,
    name: str,
    accuracy: float | None,
    images: int,
    scale: ScalarMappable,
) -> None:
    x, y = place.x[node], place.y[node]
    colour = "#b8bec6" if accuracy is None else scale.to_rgba(np.array(accuracy))
    width, height = _BOX
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            facecolor=colour,
            edgecolor="none",
            boxstyle="round,pad=0,rounding_size=0.07",
            zorder=3,
        )
    )
    share = "no images" if accuracy is None else f"{100 * accuracy:.1f} %"
    ink = over(colour)
    axes.text(
        x,
        y - 0.085,
        f"{name}  {share}",
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold",
        color=ink,
        zorder=4,
    )
    axes.text(
        x,
        y + 0.095,
        f"{images:,} images",
        ha="center",
        va="center",
        fontsize=7,
        color=ink,
        zorder=4,
    )


def _leaf(
    axes: Axes,
    place: _Place,
    path: Node,
    name: str,
    recall: float | None,
    sample: np.ndarray | None,
    scale: ScalarMappable,
) -> None:
    x, y = place.x[path] + 0.08, place.y[path]
    if sample is not None:
        grey = sample.shape[2] == 1
        image = OffsetImage(
            sample[:, :, 0] if grey else sample,
            zoom=0.36 * 72 / sample.shape[0],
            cmap="gray" if grey else None,
            interpolation="nearest",
        )
        image.image.axes = axes
        axes.add_artist(
            AnnotationBbox(image, (x + 0.2, y), frameon=False, box_alignment=(0.5, 0.5), pad=0)
        )
        x += 0.45
    colour = "#b8bec6" if recall is None else scale.to_rgba(np.array(recall))
    axes.plot([x + 0.06], [y], "o", ms=6.5, color=colour, mec="none", zorder=3)
    axes.text(x + 0.2, y, name, ha="left", va="center", fontsize=9.5)
    text = "" if recall is None else f"{100 * recall:.1f} %"
    axes.text(place.width - 0.12, y, text, ha="right", va="center", fontsize=8)


_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def _legend(drawing: Figure, place: _Place, scale: ScalarMappable, title: str, low: float) -> None:
    width, height = place.width, place.height
    drawing.text(0.12 / width, 1 - 0.12 / height, title, va="top", fontsize=10.5, fontweight="bold")
    bar = drawing.add_axes((0.15 / width, 1 - 0.62 / height, 1.5 / width, 0.1 / height))
    legend = drawing.colorbar(scale, cax=bar, orientation="horizontal")
    legend.set_ticks([low, 1], labels=[f"{100 * low:.0f} %", "100 %"])
    for text, side in zip(bar.get_xticklabels(), _SIDES, strict=True):
        text.set_horizontalalignment(side)
    legend.outline.set_visible(False)
    bar.tick_params(length=0, labelsize=7.5)
    drawing.text(
        1.95 / width,
        1 - 0.57 / height,
        "Nodes: right of the images that\nreached them rightly. Leaves: found.",
        va="center",
        fontsize=7.5,
        linespacing=1.3,
    )
