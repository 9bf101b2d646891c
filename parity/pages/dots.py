"""Errors as dots: for each tensor JAX's and PyTorch's, on one logarithmic axis, with the bound.

A chart is plain HTML that a page's template draws with the macros of `dots.html`: it is as wide as
the page, and needs no script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from data.base import pages

LEAST = 1e-3  # units in the last place: what is smaller, 0 too, is drawn here
NAMES = ("JAX", "PyTorch")


@dataclass(frozen=True)
class Row:
    """A tensor. `errors`, `bounds`: JAX's and PyTorch's, in units in the last place.

    None where there is none. `marked`: the first difference.
    """

    label: str
    errors: tuple[float | None, float | None]
    bounds: tuple[float | None, float | None]
    marked: bool = False
    note: str = ""

    @property
    def beyond(self) -> bool:
        """Whether an error is more than its bound."""
        return any(
            e is not None and b is not None and not e <= b
            for e, b in zip(self.errors, self.bounds, strict=True)
        )


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, powers of ten."""

    low: int
    high: int

    def place(self, value: float | None) -> float | None:
        """Where a value is drawn, in percent of the width."""
        if value is None:
            return None
        exponent = math.log10(max(value, 10.0**self.low)) if math.isfinite(value) else self.high
        share = (exponent - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(percent, label) of each power of ten, at most eight of them named."""
        step = -(-(self.high - self.low) // 7)
        return [
            (100 * (e - self.low) / (self.high - self.low), _power(e))
            for e in range(self.low, self.high + 1, step)
        ]


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"


def axis(rows: Sequence[Row]) -> Axis:
    """One that all rows fit on."""
    values = [v for row in rows for v in (*row.errors, *row.bounds) if v and math.isfinite(v)]
    low = math.floor(math.log10(max(LEAST, min(values, default=1.0))))
    high = math.ceil(math.log10(max(max(values, default=1.0), LEAST) * 1.0001))
    return Axis(low, max(high, low + 1))


def chart(rows: Sequence[Row], on: Axis | None = None, axis_shown: bool = True) -> Markup:
    """The HTML of a chart; `on`: an axis that several have in common."""
    on = on or axis(rows)
    drawn = [
        {
            "label": row.label,
            "marked": row.marked,
            "beyond": row.beyond,
            "note": row.note,
            "dots": [
                (kind, on.place(error))
                for kind, error in zip(("jax", "torch"), row.errors, strict=True)
                if error is not None
            ],
            "bounds": sorted({place for place in map(on.place, row.bounds) if place is not None}),
            "title": "; ".join(
                f"{name} {_told(error)}" + ("" if bound is None else f" of {_told(bound)} allowed")
                for name, error, bound in zip(NAMES, row.errors, row.bounds, strict=True)
                if error is not None
            ),
        }
        for row in rows
    ]
    template = Path(__file__).with_name("dots.html")
    content = {"rows": drawn, "ticks": on.ticks, "axis": axis_shown, "names": NAMES}
    text = pages.render(template, content)
    return Markup(text)


def style() -> Markup:
    """What a page with charts has in its style."""
    text = Path(__file__).with_name("dots.css").read_text(encoding="utf-8")
    return Markup(text)


def key() -> Markup:
    """What the dots and lines mean."""
    return Markup(
        '<p class="soft"><i class="key jax"></i>JAX<i class="key torch"></i>PyTorch'
        '<i class="key limit"></i>allowed; in units in the last place of float32</p>'
    )


def _told(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "infinitely far"


def further(rows: Sequence[Row]) -> tuple[int, int, int]:
    """(rows with both errors, those where JAX's is larger, those where PyTorch's is)."""
    pairs = (row.errors for row in rows)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return len(both), sum(a > b for a, b in both), sum(b > a for a, b in both)
