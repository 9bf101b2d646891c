"""All tables: on the terminal, in a pipe (100 columns, no trailing blanks) and in Markdown."""

import io
import re
import sys
import textwrap
from collections.abc import Collection, Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 100  # columns of what is not a terminal
_GAP = 2
_NARROWEST = 14  # columns that a column of words is folded to at the least

_HEADING = "\ue000"  # stands where a heading goes, until widths are known
Row = Sequence[str]  # its cells; a str is a heading over the rows that follow it


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    left: Collection[int] = (0,),
    marked: Collection[int] = (),
) -> None:
    """A table on standard output, and an empty line.

    `left`: the columns of words, which are folded where room is short; the others, numbers, never
    are and stand on the right. `marked`: the rows to show in red on a terminal.
    """
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.width = max(console.width, _least(columns, rows, left))
        with console.capture() as drawn:
            console.print(_table(title, columns, rows, left, marked))
        print(_headed(drawn.get(), rows))
    else:
        print(text(columns, rows, title=title, left=left), end="\n\n")


def text(
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    title: str = "",
    left: Collection[int] = (0,),
    width: int = WIDTH,
) -> str:
    r"""The table as plain lines of at most `width` columns, without trailing blanks.

    Example: `text(["node", "right"], [["root", "12"]])` is `"node  right\nroot     12"`.
    """
    file = io.StringIO()
    console = Console(
        file=file,
        width=max(width, _least(columns, rows, left)),
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(_table(title, columns, rows, left, ()))
    lines = _headed(file.getvalue(), rows).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def _headed(drawn: str, rows: Sequence[Row]) -> str:
    """The lines with the headings in their places: they are as long as they are."""
    headings = iter([row for row in rows if isinstance(row, str)])
    return "".join(
        f"{next(headings)}\n" if _HEADING in line else line for line in drawn.splitlines(True)
    )


def folded(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns.

    A word that is longer than a line is broken behind a dot, underscore, slash or hyphen where it
    has one, and anywhere else where it has none.

    Example:
      >>> folded("gradient of features.1.running_mean", 20)
      ['gradient of', 'features.1.running_', 'mean']

    """
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            if cell_len(line + word) <= width:
                line += word
                continue
            if line.strip():
                lines.append(line)
                word = word.lstrip()
            *whole, line = _broken(word, width)
            lines += whole
        lines.append(line)
    return lines


def _broken(word: str, width: int) -> list[str]:
    """A word in parts of at most `width` columns, each as long as can be."""
    parts = [""]
    for piece in re.findall(r"[^._/-]*[._/-]+|[^._/-]+", word):
        if cell_len(parts[-1] + piece) <= width:
            parts[-1] += piece
        elif cell_len(piece) <= width:
            parts.append(piece)
        else:
            parts[-1:] = chop_cells(parts[-1] + piece, width)
    return [part for part in parts if part]


class _Words:
    """A cell of words, `folded` to the width of its column."""

    def __init__(self, text: str):
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self._text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(folded(self._text, options.max_width)))


def markdown(columns: Sequence[str], rows: Sequence[Row], *, right: Collection[int] = ()) -> str:
    r"""The table in Markdown; `right`: the columns that stand on the right.

    Example: `markdown(["a"], [["1"]])` is `"| a |\n|---|\n| 1 |"`.
    """

    def line(cells: Row) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "".join("--:|" if place in right else "---|" for place in range(len(columns)))
    head = line(columns) if any(columns) else "|" + " |" * len(columns)
    return "\n".join([head, f"|{rule}", *map(line, rows)])


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    left: Collection[int],
    marked: Collection[int],
) -> Table:
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        show_header=any(columns),
    )
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows if not isinstance(row, str)]
        if place in left:
            table.add_column(column, overflow="fold", vertical="top")
        else:
            width = max([8, *map(len, cells), *map(len, column.split())])
            heading = "\n".join(textwrap.wrap(column, width, break_on_hyphens=False))
            table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        cells = [_HEADING] if isinstance(row, str) else list(row)
        drawn = [_Words(cell) if k in left else cell for k, cell in enumerate(cells)]
        table.add_row(*drawn, style="bold red" if place in marked else None)
    return table


def _least(columns: Sequence[str], rows: Sequence[Row], left: Collection[int]) -> int:
    """The width below which numbers would be cut: a table is then wider than it should be."""
    total = 0
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows if not isinstance(row, str)]
        longest = max([*map(len, cells), *map(len, column.split())], default=0)
        if place in left:
            total += min(max(longest, len(column)), _NARROWEST) + _GAP
        else:
            total += max(min(len(column), 8), longest) + _GAP
    return total


def percent(share: float | None) -> str:
    """`98.88 %`, or `-` for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def mb(count: float) -> str:
    """Bytes as MB (1e6 bytes), to the thousand bytes."""
    return f"{count / 1e6:.3f}"


def millions(count: float) -> str:
    """A count in millions."""
    return f"{count / 1e6:.3f}"
