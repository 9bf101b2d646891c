"""Whether our packages are all our own, or another file of that name comes before one of them.

`data` and `parity` are names that a user's folder may hold as well; Python takes what is in the
current folder first. This module is beside the packages, for none of them can be relied on.
"""

import importlib.util
import sys
from pathlib import Path

NAMES = ("data", "parity", "trunk_jax", "trunk_torch_ref")


def check() -> None:
    """To be called as one of our packages is imported: ImportError if another one is not ours.

    As `python -m PACKAGE.COMMAND` is started: one line on standard error, and exit code 2.
    """
    house = Path(__file__).resolve().parent
    for name in NAMES:
        found = _file(name)
        if found is None or found.resolve() == house / name / "__init__.py":
            continue
        line = (
            f"{found} hides the package {name} of {house}; start in another folder, or with "
            "python -P, or rename it"
        )
        if sys.argv[:1] == ["-m"]:  # so it is until Python has found the module to run
            print(f"error: {line}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(line)


def _file(name: str) -> Path | None:
    """The file that `import name` runs; None if there is none (a mere folder has none)."""
    module, find = sys.modules.get(name), importlib.util.find_spec  # which imports nothing
    try:
        spec = None if module else find(name)
    except (ImportError, ValueError):
        return None
    file = getattr(module, "__file__", None) if module else spec and spec.origin
    return Path(file) if file and file not in ("built-in", "frozen") else None
