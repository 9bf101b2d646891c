"""Which commands a package has, and the list of them that `python -m PACKAGE` prints.

A command is a file at the top of a package, or a folder with `__main__.py`, whose first line reads
"`python -m NAME ...`: what it does." Nothing is imported to find them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIRST_LINE = re.compile(r'"""`python -m (?P<usage>[\w.]+[^`]*)`: (?P<summary>.+?)\.?(""")?$')


@dataclass(frozen=True)
class Command:
    """`name`: its place in the package. `usage`: how it is called. `summary`: what it does."""

    name: str
    usage: str
    summary: str


def commands(package: Path) -> dict[str, Command]:
    """The commands of a package by name; `package` is its folder.

    Example: `commands(Path("data"))["versus"].usage` is `data.versus RUN RUN`.
    """
    files = sorted([*package.glob("[!_]*.py"), *package.glob("*/__main__.py")])
    found = {}
    for file in files:
        name = file.parent.name if file.name == "__main__.py" else file.stem
        with file.open(encoding="utf-8") as text:
            match = _FIRST_LINE.match(text.readline().strip())
        if match:
            found[name] = Command(name, match["usage"], match["summary"])
    return found


def listing(house: Path, groups: Mapping[str, Sequence[str]]) -> str:
    """Commands, a line each, under the titles of `groups`, which hold names like `data.versus`.

    `house`: the folder of the packages. KeyError if a group names a command that is not there.
    """
    lines = []
    for title, names in groups.items():
        lines += ["", title]
        for name in names:
            package, command = name.split(".")
            lines.append(f"  {name:<25} {commands(house / package)[command].summary}")
    return "\n".join(lines).lstrip("\n")
