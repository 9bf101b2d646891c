"""Networks by what they cost and how often they are right, a group in one colour."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from trunk_jax.measure.comparison import BASELINES, MONOLITHS, TREES, Row
from trunk_jax.pictures.style import BLUE, INK, LINE, ORANGE, figure, styled

_LOOKS = {TREES: ("o", BLUE), MONOLITHS: ("D", ORANGE), BASELINES: ("s", INK)}
_ABLATION = (".", "#2b8a57")
_AXES: tuple[tuple[Callable[[Row], float], str], ...] = (
    (lambda row: row.multiply_adds / 1e6, "multiply-adds for one image, millions"),
    (lambda row: row.latency, "latency for one image, ms"),
)
_STEPS = [
    (dx * r, dy * r)
    for r in (7, 14, 24, 36, 50, 66, 84, 104)
    for dx, dy in ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0))
]  # points from a mark to its label, the nearest first


@styled
def comparison_picture(rows: Sequence[Row], title: str) -> Figure:
    """Accuracy against multiply-adds and against latency.

    An ablation's trees are joined by a line, which has one label. Networks without an accuracy
    are ticks at the foot: they cost something, and no more is known.
    """
    drawing = figure(8.4, 9.2)
    FigureCanvasAgg(drawing)
    grid = drawing.add_gridspec(2, 1, left=0.08, right=0.98, bottom=0.06, top=0.91, hspace=0.2)
    for place, (cost, label) in enumerate(_AXES):
        _panel(drawing.add_subplot(grid[place]), rows, cost, label, place == 0)
    drawing.text(0.012, 0.985, title, va="top", fontsize=10.5, fontweight="bold")
    return drawing


def _panel(
    axes: Axes, rows: Sequence[Row], cost: Callable[[Row], float], label: str, legend: bool
) -> None:
    trained = [row for row in rows if row.accuracy is not None]
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.25)
    names: list[tuple[tuple[float, float], str, str]] = []
    for group in dict.fromkeys(row.group for row in trained):
        mark, colour = _LOOKS.get(group, _ABLATION)
        mine = sorted((row for row in trained if row.group == group), key=cost)
        at = [(cost(row), 100 * row.accuracy) for row in mine if row.accuracy is not None]
        joined = group not in _LOOKS
        axes.plot(
            *zip(*at, strict=True),
            mark,
            ls="-" if joined else "",
            lw=1,
            ms=6,
            color=colour,
            label=group,
        )
        if joined:
            names.append((at[-1], group, colour))
        else:
            names += [(point, row.name, colour) for point, row in zip(at, mine, strict=True)]
    costs = [cost(row) for row in rows]
    axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
    axes.set_xlabel(label)
    axes.grid(color=LINE, alpha=0.25, lw=0.6)
    if trained:
        axes.set_ylabel("test accuracy, %")
        if legend:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, fontsize=8)
    else:
        axes.set_yticks([])
    taken = _foot(axes, sorted((row for row in rows if row.accuracy is None), key=cost), cost)
    for point, _, _ in names:
        x, y = axes.transData.transform(point)
        taken.append(Bbox([[x - 4, y - 4], [x + 4, y + 4]]))
    for point, name, colour in names:
        taken.append(_beside(axes, point, name, colour, taken))


def _foot(axes: Axes, rows: Sequence[Row], cost: Callable[[Row], float]) -> list[Bbox]:
    """Ticks with upright names, each as low as it is free; their places."""
    taken: list[Bbox] = []
    foot = axes.get_xaxis_transform()
    for row in rows:
        axes.plot([cost(row)] * 2, [0, 0.03], transform=foot, color=LINE, lw=1)
        text = axes.text(
            cost(row),
            0.04,
            row.name,
            transform=foot,
            rotation=90,
            fontsize=7,
            color=LINE,
            ha="center",
            va="bottom",
        )
        for step in range(80):
            text.set_y(0.04 + 0.02 * step)
            if _free(text, taken):
                break
        taken.append(_box(text))
    return taken


def _beside(
    axes: Axes, point: tuple[float, float], name: str, colour: str, taken: Sequence[Bbox]
) -> Bbox:
    """Write a name as near to its mark as it is free, with a line to it where that is far."""
    text = axes.annotate(
        name,
        point,
        xytext=_STEPS[0],
        textcoords="offset points",
        fontsize=7.5,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6},
    )
    inside = axes.get_window_extent()
    for dx, dy in _STEPS:
        _move(text, dx, dy)
        box = _box(text)
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0
        if within and box.y1 <= inside.y1 and _free(text, taken):
            break
    return _box(text)


def _move(text: Annotation, dx: float, dy: float) -> None:
    text.set_position((dx, dy))
    text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")


def _box(text: Text) -> Bbox:
    """Where the words stand, in pixels; not the line that leads to them."""
    figure = text.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg)  # `comparison` gave it one
    renderer = figure.canvas.get_renderer()
    if isinstance(text, Annotation):
        text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _free(text: Text, taken: Sequence[Bbox]) -> bool:
    return not any(_box(text).overlaps(box) for box in taken)
