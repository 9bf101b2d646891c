"""Finished runs by what they cost and how often they are right, a colour a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data.base import reading
from data.base.errors import UserError
from data.run import results
from data.run.results import PUBLISHED, SINGLE, TREE
from data.tree.interval import interval
from trunk_jax.pictures.style import BLUE, INK, LINE, ORANGE, figure, styled

_MARKS = {TREE: "o", SINGLE: "D", PUBLISHED: "s"}
_DASHES = ("-", "--", ":", "-.")
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
    """Points of published trees, or of what else a row's `kind` says (`results.read_published`)."""
    return [
        Point(
            row["data"],
            row.get("kind", PUBLISHED),
            row["correct"],
            row["total"],
            row["multiply_adds"],
        )
        for row in results.read_published(file)
    ]


@dataclass(frozen=True)
class Curve:
    """A network that stops early, its name in the legend and a point for each rule of stopping."""

    label: str
    points: tuple[Point, ...]


def curve(named: str) -> Curve:
    """What `evaluate --curve --json FILE` wrote, from `LABEL=FILE`. UserError for another form."""
    label, equals, name = named.partition("=")
    if not (label and equals and name):
        raise UserError(f"--curve {named}: give a name for the legend too, as LABEL=FILE")
    found = reading.json_file(reading.at_home(name))  # a shell expands a word's beginning alone
    try:
        data, rules = found["dataset_title"], [pair["test"] for pair in found["curve"]]
        points = tuple(
            Point(str(data), TREE, int(at["correct"]), int(at["total"]), float(at["multiply_adds"]))
            for at in rules
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{name} is not what `evaluate --split test --curve --json FILE` writes ({error!r})"
        ) from None
    if not points or any(not 0 <= p.correct <= p.total or p.total < 1 for p in points):
        raise UserError(f"{name} has a curve without points, or one that counts what cannot be")
    return Curve(label, tuple(sorted(points, key=lambda p: p.multiply_adds)))


def _draw_curve(axes: Axes, line: Curve, colour: str, dashes: str) -> None:
    """The curve, in the band of its points' intervals."""
    at = [p.multiply_adds / 1e6 for p in line.points]
    low, high = zip(*(interval(p.correct, p.total) for p in line.points), strict=True)
    share = [100 * p.correct / p.total for p in line.points]
    axes.fill_between(at, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.1)
    axes.plot(at, share, dashes, color=colour, lw=1.5, marker=".", ms=4)


@styled
def accuracy_cost(points: Sequence[Point], title: str, curves: Sequence[Curve] = ()) -> Figure:
    """Test accuracy with its 95 % interval (Wilson) against mean multiply-adds of an image."""
    drawing = figure(8.0, 4.4)
    axes = drawing.add_axes((0.085, 0.125, 0.66, 0.78))
    everything = [*points, *(p for line in curves for p in line.points)]
    data = list(dict.fromkeys(p.data for p in everything))
    colours = {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(data)}
    dashes = {line.label: _DASHES[k % len(_DASHES)] for k, line in enumerate(curves)}
    for line in curves:
        _draw_curve(axes, line, colours[line.points[0].data], dashes[line.label])
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
    lines = [
        Line2D([], [], color=INK, lw=1.5, ls=style, label=name) for name, style in dashes.items()
    ]
    lines += [Line2D([], [], color=colours[name], lw=4, label=name) for name in data]
    drawing.legend(handles=marks + lines, loc="center left", bbox_to_anchor=(0.755, 0.55))
    drawing.text(0.012, 0.98, title, va="top", fontsize=10.5, fontweight="bold")
    return drawing
