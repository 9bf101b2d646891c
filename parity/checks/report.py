"""The outcome of a check: a table on the terminal, `report.json` and a self-contained page."""

import html
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import torch
from rich.console import Console
from rich.table import Table

from data.run import runfolder
from data.run.manifest import git
from parity.checks.modes import Cost
from parity.checks.tolerance import CONSTANT, Check

COLUMNS = ("what", "dtype", "max abs", "max rel", "tolerance", "verdict")


def summarised(checks: Sequence[Check]) -> list[tuple[str, str, str, str, str, str, str]]:
    """Rows (what, dtype, max abs, max rel, tolerance, verdict, detail), a part of checks in one."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for index, check in enumerate(checks):
        key = (check.name, check.part or f"{check.what}#{index}", check.dtype)
        groups.setdefault(key, []).append(check)
    rows = []
    for (name, _, dtype), group in groups.items():
        failed = [check for check in group if not check.passed]
        worst = max(failed or group, key=lambda check: check.max_rel)
        what = f"{name}: {worst.part or worst.what}"
        detail = worst.detail
        if worst.part:
            shares = [check.share for check in group if check.share is not None]
            share = f", {max(shares):.2f} u of the model" if shares else ""
            detail = f"{len(group)} tensors{share}"
            if failed:
                detail = f"{len(failed)} of {detail}; first: {failed[0].what} ({failed[0].detail})"
        verdict = "FAILED" if failed else "passed"
        rows.append(
            (what, dtype, f"{worst.max_abs:.1e}", f"{worst.max_rel:.1e}", worst.tolerance, verdict,
             detail)
        )  # fmt: skip
    return rows


def print_table(checks: Sequence[Check]) -> None:
    """The table on standard output."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in (*COLUMNS, "detail"):
        table.add_column(column, overflow="fold")
    for row in summarised(checks):
        style = "bold red" if row[5] == "FAILED" else None
        table.add_row(*row, style=style)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


COST_COLUMNS = ("what", "mode", "error of JAX", "error of PyTorch", "other decisions")


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The second table's rows: errors are shares of the largest score, rms."""
    return [
        (cost.name, cost.mode, f"{cost.jax:.1e}", f"{cost.torch:.1e}",
         f"JAX {cost.changed[0]}, PyTorch {cost.changed[1]} of {cost.total}")
        for cost in costs
    ]  # fmt: skip


def print_costs(costs: Sequence[Cost]) -> None:
    """The second table on standard output, if there is one."""
    if costs:
        table = Table(*COST_COLUMNS, box=None, pad_edge=False)
        for row in cost_rows(costs):
            table.add_row(*row)
        console = Console(highlight=False)
        console.print("\nWhat fast arithmetic costs (scores against float64):", table, sep="\n")


def verdict(checks: Sequence[Check]) -> str:
    """One line."""
    failed = sum(not check.passed for check in checks)
    shares = [check.share for check in checks if check.share is not None]
    line = f"{len(checks) - failed} of {len(checks)} checks passed"
    if shares:
        line += (
            f"; worst share of the rounding model {max(shares):.2f}, the constant is {CONSTANT:g}"
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
        row = asdict(check)
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }

    return {
        "passed": all(check.passed for check in checks),
        "checks": [plain(check) for check in checks],
        "modes": [asdict(cost) for cost in costs],
        "about": about(seed),
    }


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884;
  vertical-align: top; white-space: nowrap; }
td:first-child, td:last-child { white-space: normal; min-width: 15rem; }
td:nth-child(3), td:nth-child(4) { text-align: right; white-space: nowrap; }
.passed { color: #1a7f37; } .FAILED { color: #d1242f; font-weight: bold; }
.scroll { overflow-x: auto; }
@media (prefers-color-scheme: dark) { .passed { color: #3fb950; } .FAILED { color: #ff7b72; } }
"""


def as_html(checks: Sequence[Check], seed: int, costs: Sequence[Cost] = ()) -> str:
    """A page that needs nothing else."""
    body = []
    for row in summarised(checks):
        cells = [f"<td>{html.escape(cell)}</td>" for cell in row]
        cells[5] = f'<td class="{row[5]}">{row[5]}</td>'
        body.append("".join(cells))
    table = _table((*COLUMNS, "detail"), body)
    if costs:
        rows = ["".join(f"<td>{html.escape(c)}</td>" for c in row) for row in cost_rows(costs)]
        table += "<h2>What fast arithmetic costs</h2><p>Scores of whole nodes in eval mode against "
        table += "the float64 truth: root mean square, as a share of the largest.</p>"
        table += _table(COST_COLUMNS, rows)
    facts = about(seed)
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    made = f"{facts['made']}, Python {facts['python']}, {versions}, seed {seed}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Parity report</title><style>{_STYLE}</style></head><body>"
        f"<h1>Parity of JAX and PyTorch</h1><p>{html.escape(verdict(checks))}.</p>"
        "<p>Differences are between the two frameworks; relative ones are shares of a tensor's "
        "largest value. float32 results are judged against the float64 truth.</p>"
        f"<p>{html.escape(made)}</p>"
        f"{table}</body></html>\n"
    )


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def write(folder: Path, checks: Sequence[Check], seed: int, costs: Sequence[Cost] = ()) -> None:
    """`report.json` and `report.html`."""
    runfolder.write_json(folder / "report.json", as_json(checks, seed, costs))
    runfolder.write_bytes(folder / "report.html", as_html(checks, seed, costs).encode())
