"""The outcome of a check: a table on the terminal, `report.json` and a self-contained page."""

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import torch

from data.base import pages, tables, writing
from data.run.manifest import git
from parity.checks.modes import Cost
from parity.checks.tolerance import CONSTANT, Check
from parity.pages import dots

COLUMNS = ("what", "type", "max abs", "max rel", "allowed", "verdict", "detail")


@dataclass(frozen=True)
class Row:
    """A line of the table: a part of a name's checks, of which the worst is shown."""

    name: str
    what: str
    dtype: str
    max_abs: float
    max_rel: float
    tolerance: str
    verdict: str
    detail: str

    def cells(self) -> tuple[str, ...]:
        """As text, all but the first two."""
        sizes = (f"{self.max_abs:.1e}", f"{self.max_rel:.1e}")
        return (self.dtype, *sizes, self.tolerance, self.verdict, self.detail)


def summarised(checks: Sequence[Check]) -> list[Row]:
    """A row for each part of checks that have one name, part and type."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for index, check in enumerate(checks):
        key = (check.name, check.part or f"{check.what}#{index}", check.dtype)
        groups.setdefault(key, []).append(check)
    rows = []
    for (name, _, dtype), group in groups.items():
        failed = [check for check in group if not check.passed]
        worst = max(failed or group, key=lambda check: check.max_rel)
        detail = worst.detail
        if worst.part:
            shares = [check.share for check in group if check.share is not None]
            share = f", {max(shares):.2f} x rounding" if shares else ""
            detail = f"{len(group)} tensors{share}"
            if failed:
                detail = f"{len(failed)} of {detail}; first: {failed[0].what} ({failed[0].detail})"
        verdict = "FAILED" if failed else "passed"
        rows.append(
            Row(
                name,
                worst.part or worst.what,
                dtype,
                worst.max_abs,
                worst.max_rel,
                worst.tolerance,
                verdict,
                detail,
            )
        )
    return rows


def blocks(checks: Sequence[Check]) -> dict[str, list[Row]]:
    """The rows by name, in order."""
    result: dict[str, list[Row]] = {}
    for row in summarised(checks):
        result.setdefault(row.name, []).append(row)
    return result


def print_table(checks: Sequence[Check]) -> None:
    """The table on standard output: a block for each name, which its rows then leave out."""
    rows: list[tables.Row] = []
    failed = []
    for name, block in blocks(checks).items():
        rows.append(name)
        for row in block:
            if row.verdict == "FAILED":
                failed.append(len(rows))
            rows.append((f"  {row.what}", *row.cells()))
    tables.print_table("", COLUMNS, rows, left=(0, 1, 4, 5, 6), marked=failed)


COST_COLUMNS = ("what", "mode", "error of JAX", "error of PyTorch", "other decisions")


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The second table's rows: errors are shares of the largest score, rms."""
    return [
        (
            cost.name,
            cost.mode,
            f"{cost.jax:.1e}",
            f"{cost.torch:.1e}",
            f"JAX {cost.changed[0]}, PyTorch {cost.changed[1]} of {cost.total}",
        )
        for cost in costs
    ]


def print_costs(costs: Sequence[Cost]) -> None:
    """The second table on standard output, if there is one."""
    if costs:
        title = "What fast arithmetic costs (scores against float64)"
        tables.print_table(title, COST_COLUMNS, cost_rows(costs), left=(0, 1, 4))


def verdict(checks: Sequence[Check]) -> str:
    """One line."""
    failed = sum(not check.passed for check in checks)
    shares = [check.share for check in checks if check.share is not None]
    line = f"{len(checks) - failed:,} of {len(checks):,} checks passed"
    if shares:
        line += (
            f"; the largest float32 error is {max(shares):.2f} times what rounding is expected to "
            f"make (x rounding), and {CONSTANT:g} times is allowed"
        )
    return line


def about(seed: int) -> dict[str, Any]:
    """What the report was made with."""
    names = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": seed,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in names},
        "jax device": jax.devices()[0].device_kind,
        "torch device": "cuda" if torch.cuda.is_available() else "cpu",
        "git": git(Path(__file__)),
    }


def as_json(checks: Sequence[Check], seed: int, costs: Sequence[Cost] = ()) -> dict[str, Any]:
    """The content of `report.json`. Differences that are not finite become null."""

    def plain(check: Check) -> dict[str, Any]:
        def finite(value: Any) -> Any:
            if isinstance(value, tuple):
                return [finite(part) for part in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {key: finite(value) for key, value in asdict(check).items()}

    return {
        "passed": all(check.passed for check in checks),
        "checks": [plain(check) for check in checks],
        "modes": [asdict(cost) for cost in costs],
        "about": about(seed),
    }


def _row(check: Check) -> dots.Row:
    assert check.errors is not None
    assert check.limits is not None
    return dots.Row(check.what, check.errors, check.limits, not check.passed)


def is_backward(check: Check) -> bool:
    """Whether it is of a gradient."""
    return "gradient" in check.what


def overview(measured: Sequence[Check]) -> list[dots.Row]:
    """A row for each network and direction: the tensor that came nearest to its bound."""
    rows = []
    for name in dict.fromkeys(check.name for check in measured):
        for way, backward in (("forward", False), ("backward", True)):
            mine = [c for c in measured if c.name == name and is_backward(c) == backward]
            if mine:
                worst = max(mine, key=_nearness)
                failed = not all(check.passed for check in mine)
                row = _row(worst)
                rows.append(dots.Row(f"{name}, {way}", row.errors, row.bounds, failed, worst.what))
    return rows


def _nearness(check: Check) -> tuple[bool, float]:
    assert check.errors is not None
    assert check.limits is not None
    shares = [e / b for e, b in zip(check.errors, check.limits, strict=True)]
    return not check.passed, max(shares)


def words(checks: Sequence[Check]) -> list[str]:
    """What a reader should know, in sentences."""
    failed = [check for check in checks if not check.passed]
    lines = []
    if failed:
        first = failed[0]
        where = f"{first.name}, {first.what} ({first.dtype})"
        lines.append(f"{len(failed):,} of {len(checks):,} checks failed, the first: {where}.")
    else:
        lines.append(f"All {len(checks):,} checks passed.")
    measured = [check for check in checks if check.errors is not None]
    if measured:
        both, ours, theirs = dots.further([_row(check) for check in measured])
        largest = max(max(check.errors or (0.0,)) for check in measured)
        nearest = max(_nearness(check)[1] for check in measured)
        count = len({check.name for check in measured})
        lines.append(
            f"{both:,} tensors of {count} networks were computed in float32 by both and held "
            f"against the exact result in float64. The furthest is {largest:.2g} units in the last "
            f"place off, and the one nearest to its bound has {100 * nearest:.0f} % of it. JAX is "
            f"further from the exact result on {ours:,} of them, PyTorch on {theirs:,}."
        )
    exact = [check for check in checks if check.dtype == "float64"]
    if exact:
        most = max(check.max_rel for check in exact)
        lines.append(
            f"In float64 {len(exact):,} comparisons of the two differ by at most {most:.0e} of "
            "the largest value."
        )
    return lines


def as_html(checks: Sequence[Check], seed: int, costs: Sequence[Cost] = ()) -> str:
    """A page that needs nothing else."""
    facts = about(seed)
    packages = [f"{name} {version}" for name, version in facts["packages"].items()]
    measured = [check for check in checks if check.errors is not None]
    networks = dict.fromkeys(check.name for check in measured)
    on = dots.axis([_row(check) for check in measured])
    charts = {
        name: {
            way: dots.chart(
                [_row(c) for c in measured if c.name == name and is_backward(c) == backward], on
            )
            for way, backward in (("forward", False), ("backward", True))
        }
        for name in networks
    }
    return pages.render(
        Path(__file__).with_name("report.html"),
        {
            "passed": all(check.passed for check in checks),
            "words": words(checks),
            "style": dots.style(),
            "key": dots.key(),
            "overview": dots.chart(overview(measured), on),
            "charts": charts,
            "verdict": verdict(checks),
            "made": ", ".join(
                [facts["made"], f"Python {facts['python']}", *packages, f"seed {seed}"]
            ),
            "columns": COLUMNS,
            "blocks": blocks(checks),
            "cost_columns": COST_COLUMNS,
            "costs": cost_rows(costs),
        },
    )


def write(folder: Path, checks: Sequence[Check], seed: int, costs: Sequence[Cost] = ()) -> None:
    """`report.json` and `report.html`."""
    writing.write_json(folder / "report.json", as_json(checks, seed, costs))
    writing.write_bytes(folder / "report.html", as_html(checks, seed, costs).encode())
