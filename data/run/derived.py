"""Where what is derived from a run goes: measurements, pictures, reports, parity checks.

To `runs/<its name>/`, so that a folder that others keep (a tracked checkpoint, a snapshot of a
hub) stays as it is. A run below `runs/` is such a folder itself. In a folder that is not the run's
own, `derived-from.json` says which run it belongs to, by its weights: a report must never show
what was measured on another tree of the same name.
"""

import hashlib
import sys
from pathlib import Path

from data.base import reading, writing
from data.base.errors import UserError

CARD = "README.md"  # a folder that has one is handed on as it is
MARK = "derived-from.json"
ROOT = "runs"
_FORM: reading.Form = {"run": str, "weights_sha256": str}


def is_shipped(run: Path) -> bool:
    """Whether a run is handed on as it is: it has a model card, or lies in a hub's cache."""
    return (run / CARD).exists() or reading.is_snapshot(run)


def named(run: Path, suffix: str = "") -> Path:
    """`runs/<the run's name><suffix>`; of a run below `runs/`, the folder itself or beside it.

    Example: `named(Path("checkpoints/svhn-efficient"))` is `runs/svhn-efficient`.
    """
    whole = run.resolve()
    if whole.is_relative_to(Path(ROOT).resolve()):
        same = run if run.name not in ("", "..") else whole
        return same.with_name(same.name + suffix)
    return Path(ROOT) / (whole.name + suffix)


def place(run: Path) -> Path:
    """The folder for what is derived from a run; nothing is made yet.

    UserError if it belongs to another run of that name.
    """
    folder = named(run)
    if not _is(folder, run):
        if (folder / "config.json").exists():
            raise UserError(
                f"{folder} is another run than {run}; rename one of them, or name a "
                "folder with --out"
            )
        if (folder / MARK).exists() and _marked(folder) != digest(run):
            raise UserError(
                f"{folder} holds what was derived from another run of that name; "
                "remove it, or name a folder with --out"
            )
    return folder


def claim(run: Path) -> Path:
    """As `place`, and from now on the folder is this run's."""
    folder = place(run)
    if not _is(folder, run) and not (folder / MARK).exists():
        mark = {"run": str(run.absolute()), "weights_sha256": digest(run)}
        writing.write_json(folder / MARK, mark)
    return folder


def find(run: Path, name: str) -> Path:
    """The file of that name that is derived from a run: in its own folder or `named`'s, the newer.

    The run's own, which may be missing, if there is neither. One that was derived from another
    run of that name is left out, with a line.
    """
    own, folder = run / name, named(run)
    other = folder / name
    if _is(folder, run) or not other.exists():
        return own
    if not (folder / MARK).exists() or _marked(folder) != digest(run):
        print(f"note: {other} is of another run than {run}, and left out", file=sys.stderr)
        return own
    if own.exists() and own.stat().st_mtime >= other.stat().st_mtime:
        return own
    return other


def _is(folder: Path, run: Path) -> bool:
    return folder.resolve() == run.resolve()


def _marked(folder: Path) -> str:
    return reading.json_of_form(folder / MARK, _FORM, "a mark of ours")["weights_sha256"]


def digest(run: Path) -> str:
    """SHA-256 of the run's weights and of the names of their files."""
    total = hashlib.sha256()
    for file in sorted((run / "weights").glob("*.safetensors")):
        with open(file, "rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()
