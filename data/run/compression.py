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
    """`method`: `int8` weights, or `prune`: channels removed.

    `share`: of the channels, 0 for int8. `epochs`: of training after that; 0 for none.
    """

    method: str
    share: float = 0.0
    epochs: int = 0

    def __str__(self) -> str:
        """As it is called in file names and reports."""
        trained = f"-{self.epochs}epochs" if self.epochs else ""
        return "int8" if self.method == "int8" else f"prune{100 * self.share:g}{trained}"


def check(value: Compression) -> Compression:
    """The value itself; UserError if it makes no sense."""
    if value.method not in METHODS:
        raise UserError(f"compression {value.method!r:.80}; it must be one of {', '.join(METHODS)}")
    if value.method == "prune" and not (math.isfinite(value.share) and 0 < value.share < 1):
        raise UserError(f"--prune is {value.share:g}; it must be above 0 and below 1")
    if value.epochs < 0 or (value.epochs and value.method != "prune"):
        raise UserError("--epochs must be 0 or more, and goes with --prune")
    return value


def to_json(value: Compression) -> dict[str, Any]:
    """The form stored in `config.json`."""
    trained = {"epochs": value.epochs} if value.epochs else {}
    return {"method": value.method, "share": value.share, **trained}


def read(folder: Path) -> Compression | None:
    """How the run in `folder` was compressed; None if it was not."""
    stored = runfolder.read_config(folder).get("compression")
    if stored is None:
        return None
    try:
        return check(Compression(**(stored | {"share": float(stored["share"])})))
    except (KeyError, TypeError, ValueError, UserError):
        raise UserError(
            f"{folder / 'config.json'}: {stored!r:.80} is no compression of ours"
        ) from None
