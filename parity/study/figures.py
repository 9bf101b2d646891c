"""The pictures of a study: divergence over steps, weights by layer, accuracy by seed."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from trunk_jax.pictures.style import BLUE, INK, LINE, ORANGE, figure, styled

_KINDS = {
    "loss": "loss",
    "gradient": "gradient",
    "weight": "weights",
    "mean": "running means",
    "variance": "running variances",
}
_LEAST = 1e-18  # where a difference of exactly 0 is drawn
_COLOURS = {"jax": BLUE, "torch": ORANGE}
_NAMES = {"jax": "JAX", "torch": "PyTorch"}


def figures(value: dict[str, Any]) -> dict[str, Figure]:
    """Those that the study has data for, by name."""
    made = {}
    if value["coupled"]:
        made["divergence"] = divergence(value)
        made["layers"] = layers(value)
    if value["stepwise"]:
        made["steps"] = steps(value)
    if value["independent"]:
        made["accuracy"] = accuracy(value)
    return made


def _title(drawing: Figure, value: dict[str, Any], what: str) -> None:
    """Two lines on top: what is shown, and of which study."""
    height = drawing.get_figheight()
    fault = f", planted: {value['fault']}" if value["fault"] else ""
    about = f"{value['dataset']}, {value['backbone']} {value['nodes']}{fault}"
    drawing.text(0.012, 1 - 0.08 / height, what, va="top", fontsize=10, fontweight="bold")
    drawing.text(0.012, 1 - 0.27 / height, about, va="top", fontsize=9)


def _drawn(series: list[float | None]) -> np.ndarray:
    """Values to draw on a logarithmic axis; what is not finite leaves a gap."""
    numbers = np.array([np.nan if v is None else v for v in series], np.float64)
    return np.maximum(numbers, _LEAST)


@styled
def divergence(value: dict[str, Any]) -> Figure:
    """How far apart the frameworks are at each step, and the controls as a band.

    A column a type, a row a kind; the stages of a tree stand one after the other. All seeds are
    drawn.
    """
    dtypes = list(dict.fromkeys(c["dtype"] for c in value["coupled"]))
    kinds = [k for k in _KINDS if k in value["coupled"][0]["stages"][0]["series"]["distance"]]
    drawing = figure(max(6.6, 1.2 + 3.9 * len(dtypes)), 1.1 + 1.5 * len(kinds))
    height = drawing.get_figheight()
    grid = drawing.add_gridspec(
        len(kinds),
        len(dtypes),
        left=0.95 / drawing.get_figwidth(),
        right=0.985,
        bottom=0.45 / height,
        top=1 - 1.1 / height,
        wspace=0.2,
        hspace=0.3,
    )
    for column, dtype in enumerate(dtypes):
        mine = [c for c in value["coupled"] if c["dtype"] == dtype]
        for row, kind in enumerate(kinds):
            axes = drawing.add_subplot(grid[row, column])
            for coupled in mine:
                _one(axes, coupled, kind)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color=LINE, alpha=0.25, lw=0.6)
            if column == 0:
                axes.set_ylabel(_KINDS[kind])
            if row == 0:
                axes.set_title(dtype)
            if row == len(kinds) - 1:
                axes.set_xlabel("step")
            else:
                axes.tick_params(labelbottom=False)
            if row == 0 and column == 0:
                handles, labels = axes.get_legend_handles_labels()
                unique = dict(zip(labels, handles, strict=True))
                drawing.legend(
                    unique.values(),
                    unique.keys(),
                    loc="upper left",
                    ncols=3,
                    fontsize=8.5,
                    bbox_to_anchor=(0.0, 1 - 0.45 / height),
                    borderaxespad=0.2,
                )
    _title(drawing, value, "Relative difference of JAX and PyTorch, step by step")
    return drawing


def _one(axes: Any, coupled: dict[str, Any], kind: str) -> None:
    start = 0
    for stage in coupled["stages"]:
        series = stage["series"]
        steps = np.array(series["step"]) + start
        low, high = (_drawn([pair[i] for pair in series["control"][kind]]) for i in (0, 1))
        axes.fill_between(
            steps,
            low,
            high,
            color=ORANGE,
            alpha=0.3,
            lw=0,
            label="control: one framework, bits flipped",
        )
        axes.plot(steps, high, color=ORANGE, lw=0.7)
        axes.plot(
            steps, _drawn(series["distance"][kind]), color=BLUE, lw=1.4, label="JAX against PyTorch"
        )
        if start:
            axes.axvline(start + 0.5, color=LINE, lw=0.8)
        start += stage["steps"]
    # the place where a difference was found beyond the control
    if found := coupled["finding"]:
        before = [s["stage"] for s in coupled["stages"]].index(found["stage"])
        at = sum(s["steps"] for s in coupled["stages"][:before]) + found["step"]
        axes.axvline(at, color=INK, lw=1, ls=":", label="first beyond the control")


_STEP_KINDS = {
    "mean": "statistics",
    "variance": "statistics",
    "scores": "scores, loss",
    "loss": "scores, loss",
    "gradient": "gradients",
    "moment": "moments",
    "weight": "weights",
}


@styled
def steps(value: dict[str, Any]) -> Figure:
    """How near each step came to what rounding allows; a panel a type and framework.

    Of many steps the largest share of each stretch is drawn. The first seed.
    """
    one = value["stepwise"][0]
    panels = [
        (dtype, name, kinds)
        for dtype, names in one["series"]["share"].items()
        for name, kinds in names.items()
    ]
    drawing = figure(7.2, 0.9 + 1.75 * len(panels))
    height = drawing.get_figheight()
    grid = drawing.add_gridspec(
        len(panels),
        1,
        left=0.1,
        right=0.985,
        bottom=0.45 / height,
        top=1 - 0.95 / height,
        hspace=0.42,
    )
    at = one["series"]["step"]
    colours = [BLUE, ORANGE, "#2b8a57", "#9c4dcc", "#b08800"]
    for row, (dtype, name, kinds) in enumerate(panels):
        axes = drawing.add_subplot(grid[row, 0])
        for colour, label in zip(colours, dict.fromkeys(_STEP_KINDS.values()), strict=True):
            mine = [_drawn(kinds[kind]) for kind, word in _STEP_KINDS.items() if word == label]
            shares = np.maximum(np.max(mine, axis=0), 1e-4)
            axes.plot(at, shares, ".-", color=colour, lw=0.8, ms=3, label=label)
        axes.axhline(1, color=INK, lw=1.2, label="allowed")
        axes.set_yscale("log")
        axes.set_ylim(top=max(2.0, axes.get_ylim()[1]))
        axes.grid(color=LINE, alpha=0.25, lw=0.6)
        who = f"{_NAMES[name]} against float64" if dtype == "float32" else "JAX against PyTorch"
        axes.set_title(f"{dtype}: {who}")
        axes.set_ylabel("share of bound")
        if row == 0:
            handles, labels = axes.get_legend_handles_labels()
        if row == len(panels) - 1:
            axes.set_xlabel("step of the training")
    drawing.legend(
        handles,
        labels,
        loc="upper left",
        ncols=6,
        fontsize=8,
        bbox_to_anchor=(0.0, 1 - 0.42 / height),
        borderaxespad=0.2,
    )
    _title(drawing, value, "How near each step came to what rounding allows")
    return drawing


@styled
def layers(value: dict[str, Any]) -> Figure:
    """How far each tensor of weights ended apart, and what the control allows it.

    Of the first seed; the first stage, which every study has.
    """
    dtypes = list(dict.fromkeys(c["dtype"] for c in value["coupled"]))
    mine = [next(c for c in value["coupled"] if c["dtype"] == dtype) for dtype in dtypes]
    stages = [coupled["stages"][0] for coupled in mine]
    keys = list(stages[0]["layers"])
    wide = max(map(len, keys)) * 0.068 + 0.25
    drawing = figure(max(6.2, wide + 3.0 * len(dtypes) + 0.3), 1.65 + 0.17 * len(keys))
    width, height = drawing.get_figwidth(), drawing.get_figheight()
    grid = drawing.add_gridspec(
        1,
        len(dtypes),
        left=wide / width,
        right=1 - 0.15 / width,
        bottom=0.45 / height,
        top=1 - 1.1 / height,
        wspace=0.08,
    )
    places = np.arange(len(keys))
    for column, (dtype, stage) in enumerate(zip(dtypes, stages, strict=True)):
        axes = drawing.add_subplot(grid[0, column])
        rows = [stage["layers"][key] for key in keys]
        axes.plot(
            _drawn([row["control"] for row in rows]),
            places,
            "|",
            color=ORANGE,
            ms=9,
            mew=2,
            label="control, the largest so far",
        )
        axes.plot(
            _drawn([row["distance"] for row in rows]),
            places,
            "o",
            color=BLUE,
            ms=4,
            label="JAX against PyTorch",
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_yticks(places, keys if column == 0 else [], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(color=LINE, alpha=0.25, lw=0.6)
        axes.set_title(dtype)
        axes.set_xlabel("relative difference of the weights")
        if column == 0:
            drawing.legend(
                *axes.get_legend_handles_labels(),
                loc="upper left",
                ncols=2,
                fontsize=8.5,
                bbox_to_anchor=(0.0, 1 - 0.45 / height),
                borderaxespad=0.2,
            )
    what = f"Weights by layer after {stages[0]['steps']} steps of {stages[0]['stage']}"
    _title(drawing, value, what)
    return drawing


@styled
def accuracy(value: dict[str, Any]) -> Figure:
    """Test accuracy of every run, means with their intervals, and the difference's beside."""
    both = value["independent"]
    c = both["comparison"]
    drawing = figure(8.4, 3.4)
    grid = drawing.add_gridspec(
        1, 2, left=0.085, right=0.985, bottom=0.16, top=0.76, wspace=0.22, width_ratios=(1.25, 1)
    )
    axes = drawing.add_subplot(grid[0, 0])
    for place, (name, row) in enumerate(both["accuracies"].items()):
        around = place + np.linspace(-0.16, 0.16, len(row))
        axes.plot(around, row, "o", color=_COLOURS[name], ms=5, alpha=0.85)
        axes.plot([place - 0.3, place + 0.3], [c["means"][place]] * 2, color=_COLOURS[name], lw=1.6)
    axes.set_xlim(-0.6, 1.6)
    axes.set_xticks([0, 1], [_NAMES[name] for name in both["accuracies"]], fontsize=9)
    axes.set_title("each run, and the mean")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color=LINE, alpha=0.25, lw=0.6, axis="y")
    axes = drawing.add_subplot(grid[0, 1])
    low, high = c["interval"]
    axes.axvspan(-c["margin"], c["margin"], color=LINE, alpha=0.2, lw=0)
    axes.axvline(0, color=LINE, lw=0.8)
    axes.plot([low, high], [0, 0], color=INK, lw=1.8)
    axes.plot([c["difference"]], [0], "o", color=INK, ms=6)
    reach = 1.15 * max(c["margin"], abs(low), abs(high))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.set_title("JAX minus PyTorch, 95 % interval")
    axes.set_xlabel(f"points; shaded: the margin of {c['margin']:g}")
    _title(drawing, value, f"Independent runs, {len(both['accuracies']['jax'])} a framework")
    return drawing
