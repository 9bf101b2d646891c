"""`python -m benchmarks.run`: ours and PyTorch in turns, medians, and their ratios."""

import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import worker
from benchmarks.cases import BATCH_OF, Case, cases
from data import runfolder
from data.errors import UserError, run_command
from data.manifest import git
from data.options import Parser

Ask = Callable[..., Any]


def measure(case: Case, ours: Ask, theirs: Ask, rounds: int, folder: Path) -> dict[str, Any]:
    """One row: medians over the rounds, both sides in turns.

    A form of PyTorch that does not run is left out, and why is said in the row. RuntimeError
    if none runs.
    """
    if case.kind in ("tree", "image"):
        ours("write_tree", case, folder)
    times: dict[str, list[float]] = {form: [] for form in ("ours", *case.theirs)}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for form in times:
            if form not in failed:
                ask = ours if form in ("ours", "ancestors") else theirs
                try:
                    times[form].append(ask(case, form))
                except RuntimeError as error:
                    failed[form] = str(error)
    if "ours" in failed or len(failed) == len(case.theirs):
        raise RuntimeError(f"{case.name}: {failed}")
    medians = {form: statistics.median(values) for form, values in times.items() if values}
    mine = medians.pop("ours")
    best = min(medians, key=medians.__getitem__)
    row = {
        "name": case.name,
        "ours_s": mine,
        "theirs_s": medians[best],
        "ratio": mine / medians[best],
        "bar": case.bar,
        "best": best,
        "theirs": medians,
        "failed": failed,
    }
    if case.kind in BATCH_OF:
        # a step is a forward pass and the gradients of input and weights: three times as much
        passes = 3 if case.kind == "step" else 1
        achieved = passes * ours("multiply_adds", case) / mine
        row["share_of_peak"] = achieved / ours("peak")
    return row


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The rows on standard output, times in milliseconds."""
    table = Table(box=None, pad_edge=False)
    for column in ("what", "ours, ms", "theirs, ms", "which", "ratio", "bar", "of peak"):
        table.add_column(column, justify="left" if column in ("what", "which") else "right")
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        peak = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        late = row["bar"] is not None and row["ratio"] > row["bar"]
        table.add_row(
            row["name"], f"{1e3 * row['ours_s']:.3f}", f"{1e3 * row['theirs_s']:.3f}", row["best"],
            f"{row['ratio']:.2f}", bar, peak, style="yellow" if late else None,
        )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def about() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("jax", "jaxlib", "torch")},
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
        "git": git(Path(__file__).parent),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    parser = Parser(
        prog="python -m benchmarks.run",
        description="Time JAX and PyTorch in turns, one process each, and print the ratios.",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    add("--only", default="", metavar="TEXT", help="cases whose name has TEXT in it (default: all)")
    add("--json", metavar="FILE", help="also write the rows to FILE (default: none)")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if options.only in case.name]
    if not chosen:
        raise UserError(f"no case has {options.only!r} in its name")
    if options.rounds < 1:
        raise UserError("--rounds must be 1 or more")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (worker.start(name, folder) for name in ("jax", "torch"))
        for case in track(chosen, "measuring", console=Console(file=sys.stderr), transient=True):
            rows.append(measure(case, ours, theirs, options.rounds, Path(folder)))
    print_table(rows)
    if options.json:
        runfolder.write_json(Path(options.json), {"rows": rows, "about": about()})


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
