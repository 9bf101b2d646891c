"""What every job here has: a parser, and its answer in a file that is whole or absent."""

from pathlib import Path
from typing import Any

from data.base import writing
from data.base.parser import Parser, target


def parser(name: str, about: str) -> Parser:
    """A parser with `--json`, for `python -m benchmarks.gpu.<name>`."""
    made = Parser(prog=f"python -m benchmarks.gpu.{name}", description=about)
    made.add_argument(
        "--json", type=target, metavar="FILE", help="write the result to FILE (default: none)"
    )
    return made


def give(value: Any, file: Path | None, text: str) -> None:
    """Print a line about a result, and write it where it was asked for."""
    print(text)
    if file:
        writing.save_json(file, value)
