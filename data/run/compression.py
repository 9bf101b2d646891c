"""How a run's networks were made smaller: what its `config.json` says of it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.run import runfolder

METHODS = ("int8", "prune")


@dataclass(frozen=True)
class Compression:
    """`method`: `int8` weights, or `prune`: channels removed. `share`: of them, 0 for int8."""

    method: str
    share: float = 0.0

    def __str__(self) -> str:
        """As it is called in file names and reports."""
        return "int8" if self.method == "int8" else f"prune{100 * self.share:g}"


def check(value: Compression) -> Compression:
    """The value itself; UserError if it makes no sense."""
    if value.method not in METHODS:
        raise UserError(f"compression {value.method!r:.80}; it must be one of {', '.join(METHODS)}")
    if value.method == "prune" and not (math.isfinite(value.share) and 0 < value.share < 1):
        raise UserError(f"--prune is {value.share:g}; it must be above 0 and below 1")
    return value


def to_json(value: Compression) -> dict[str, Any]:
    """The form stored in `config.json`."""
    return {"method": value.method, "share": value.share}


def read(folder: Path) -> Compression | None:
    """How the run in `folder` was compressed; None if it was not."""
    stored = runfolder.read_config(folder).get("compression")
    if stored is None:
        return None
    try:
        return check(Compression(stored["method"], float(stored["share"])))
    except (KeyError, TypeError, ValueError, UserError):
        raise UserError(
            f"{folder / 'config.json'}: {stored!r:.80} is no compression of ours"
        ) from None
