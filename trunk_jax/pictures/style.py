"""One look for all pictures, and how they are written: PNG and SVG files, or inside a page.

Cells and edges are tints of one colour over a background that shows through, so the same SVG
is right on white and, in a page, on black: there ink and lines become the page's own colours.
"""

import html
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle

from data.base import writing

if TYPE_CHECKING:  # older versions of matplotlib lack it
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")

INK, LINE = "#1b1f24", "#8a919a"  # text; axes and edges. Used for nothing else: see `inline`
BLUE, ORANGE = "#2a6fdb", "#d9730d"
ACCURACY = LinearSegmentedColormap.from_list("accuracy", ["#b42318", "#e8b04b", "#2b8a57"])
_SETTINGS: "dict[RcKeyType, Any]" = {
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "trunk",  # and the same file in every run
    "legend.frameon": False,
}
# After matplotlib's own font, which comes with it and knows European scripts, one is asked for what
# it lacks: class names are in any script. Those that usual systems have.
_FONTS = [
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei"),
    *("PingFang SC", "Hiragino Sans", "Malgun Gothic", "Noto Sans Devanagari", "Nirmala UI"),
    *("Noto Sans Thai", "Leelawadee UI", "Arial Unicode MS"),
]


@cache
def _fonts() -> list[str]:
    here = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS if name in here)]


_missing: set[str] = set()  # characters that were told of


@contextmanager
def _settings(more: "dict[RcKeyType, Any] | None" = None) -> Iterator[None]:
    """Ours, whatever the user's matplotlibrc says; characters without a font are told of once."""
    chosen: dict[RcKeyType, Any] = {**_SETTINGS, "font.family": _fonts(), **(more or {})}
    with (
        matplotlib.rc_context(chosen),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        yield
    lacking = set()
    for each in caught:
        found = re.match(r"Glyph (\d+) .*missing from font", str(each.message))
        if found:
            lacking.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if new := sorted(lacking - _missing):
        _missing.update(new)
        print(
            f"note: no font here has {''.join(new)}: pictures show "
            "boxes for it; a font that has, such as Noto Sans CJK, mends that",
            file=sys.stderr,
        )


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without a global state behind it."""
    with _settings():
        return Figure(figsize=(width, height))


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with our settings, whatever the user's matplotlibrc says."""

    @wraps(function)
    def drawn(*arguments: P.args, **named: P.kwargs) -> Figure:
        with _settings():
            return function(*arguments, **named)

    return drawn


def write(drawing: Figure, folder: Path, name: str) -> list[Path]:
    """`name.png` (150 dots an inch) and `name.svg`, whole or not at all, on white."""
    png, svg = io.BytesIO(), io.BytesIO()
    with _settings():
        FigureCanvasAgg(drawing).print_png(png, metadata={"Software": None})
        drawing.savefig(svg, format="svg", metadata={"Date": None})
    writing.write_bytes(folder / f"{name}.png", png.getvalue())
    writing.write_bytes(folder / f"{name}.svg", svg.getvalue())
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def inline(drawing: Figure, name: str, title: str) -> str:
    """The SVG element to put into a page, in the page's `currentColor` and `--line`.

    `name` keeps its ids apart from those of other pictures; `title` is read out in its place.
    """
    buffer = io.StringIO()
    with _settings({"svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)  # of no use, and not unique in a page
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|href="|url\()#', rf"\1#{name}-", text)
    text = text.replace(INK, "currentColor").replace(LINE, "var(--line)")
    text = re.sub(r'(<svg[^>]*?) height="([\d.]+)pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="--points: \2"', text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def luminance(colour: Any) -> float:
    """How bright a colour is, 0 to 1 (WCAG's relative luminance)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def over(colour: Any) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return "#ffffff" if luminance(colour) < 0.22 else "#000000"


def cells(axes: Axes, strength: np.ndarray, colour: str = BLUE) -> None:
    """A matrix as tiles, row 0 on top: 0 is the background, 1 the full colour."""
    rows, columns = strength.shape
    for i in range(rows):
        for j in range(columns):
            if strength[i, j] >= 0.004:
                tile = Rectangle(
                    (j - 0.47, i - 0.47),
                    0.94,
                    0.94,
                    facecolor=colour,
                    edgecolor="none",
                    alpha=float(min(1, strength[i, j])),
                )
                axes.add_patch(tile)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def on_cell(strength: float) -> str:
    """The colour of a number on a tile of `cells`: the page's ink while the tile is faint."""
    return "#ffffff" if strength > 0.62 else INK
