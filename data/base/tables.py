"""Tables on the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; all columns but the first are aligned right."""
    console = Console(file=sys.stdout, highlight=False)
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    console.print()


def percent(share: float | None) -> str:
    """`98.88 %`, or `-` for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def mb(count: float) -> str:
    """Bytes as MB (1e6 bytes), to the thousand bytes."""
    return f"{count / 1e6:.3f}"


def millions(count: float) -> str:
    """A count in millions."""
    return f"{count / 1e6:.3f}"
