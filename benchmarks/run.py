"""`python -m benchmarks.run`: ours and PyTorch in turns, medians, and their ratios.

The rows are kept in a JSON file after each case, so that a run can be interrupted, and be done
case by case: `--only` chooses cases, `--missing` those that the file does not have.
"""

import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import worker
from benchmarks.cases import RATED, Case, cases
from data.base import machine, tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.progress import working
from data.base.writing import is_regular, save_bytes, save_json
from data.run import runfolder
from data.run.manifest import git

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
    for _ in range(1 if case.kind == "grow" else rounds):
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
        "rounds": {form: [float(f"{v:.4g}") for v in values] for form, values in times.items()},
        "failed": failed,
    }
    if case.limit_s is not None:
        row["limit_s"] = case.limit_s
    if case.theirs == ("ancestors",):
        row["least_ratio"] = ours("least_ratio", case)
    if case.kind in RATED:
        # of an image that goes through a tree the root alone is counted: so much is always needed
        # a step is a forward pass and the gradients of input and weights: three times as much
        passes = 3 if case.kind == "step" else 1
        achieved = passes * ours("multiply_adds", case) / mine
        row["rate"], row["peak"] = achieved, ours("peak")
    return row


def share(rows: Iterable[dict[str, Any]]) -> None:
    """Set each row's share of the highest rate that the large matrix product had in any of them."""
    peaks = [row["peak"] for row in rows if "peak" in row]
    for row in rows:
        if "rate" in row:
            row["share_of_peak"] = row["rate"] / max(peaks)


COLUMNS = ("what", "ours, ms", "theirs, ms", "which", "ratio", "bar", "of peak")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, times in milliseconds."""
    bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
    if "limit_s" in row:
        bar = f"{row['limit_s']:.0f} s"
    peak = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
    times = (f"{1e3 * row[side]:.3f}" for side in ("ours_s", "theirs_s"))
    return (row["name"], *times, row["best"], f"{row['ratio']:.2f}", bar, peak)


def missed(row: dict[str, Any]) -> bool:
    """Whether the row has a bar and is above it."""
    late = row["bar"] is not None and row["ratio"] > row["bar"]
    return late or row["ours_s"] > row.get("limit_s", float("inf"))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The rows on standard output."""
    late = [place for place, row in enumerate(rows) if missed(row)]
    tables.print_table("", COLUMNS, [cells(row) for row in rows], left=(0, 3), marked=late)


def markdown(rows: Sequence[dict[str, Any]], where: dict[str, Any]) -> str:
    """The rows as a page of their own; a bar that is missed is marked."""
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines = [
        "# Speed, measured",
        "",
        f"{where['cpus']} cores of {where['processor']}"
        + ("" if where["device"] == "cpu" else f" and {where['device']}")
        + f", {packages}; written "
        "by `python -m benchmarks.run`. Times are medians, an image; ratio is ours / theirs; a "
        "bar that is missed has an `x`.",
        "",
        tables.markdown(COLUMNS, [_marked(row) for row in rows], right=(1, 2, 4, 5, 6)),
    ]
    kept = [row for row in rows if "least_ratio" in row]
    if kept:
        lines += ["", "The least ratio that keeping inputs can give, by multiply-adds:", ""]
        lines += [f"- {row['name']}: {row['least_ratio']:.2f}" for row in kept]
    return "\n".join(lines) + "\n"


def _marked(row: dict[str, Any]) -> tuple[str, ...]:
    """A row's cells, an `x` beside a bar that is missed."""
    *before, bar, peak = cells(row)
    return (*before, f"{bar} x" if missed(row) else bar, peak)


def about(device: str) -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "device": device,
        "cpus": machine.cores(),
        "processor": machine.processor(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("jax", "jaxlib", "torch")},
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
        "git": git(Path(__file__)),
    }


def recorded(file: Path | None, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file has. UserError if they are of another machine or other versions."""
    if file is None or not is_regular(file):
        return []
    found = runfolder.read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise UserError(f"{file} is not a file of this command; name another one")
    there = found.get("about", {})
    differs = [key for key in here if key != "git" and there.get(key) != here[key]]
    if differs:
        raise UserError(
            f"{file} was measured with another {', '.join(differs)}; name another file or remove it"
        )
    return found["rows"]


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    parser = Parser(
        prog="python -m benchmarks.run",
        description="Time JAX and PyTorch in turns, one process each, and print the ratios.",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    add("--only", default="", metavar="TEXT", help="cases whose name has TEXT in it (default: all)")
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write the rows to FILE after each case, beside those of other cases that it "
        "has (default: none)",
    )
    add("--missing", action="store_true", help="only cases that FILE has no row of (default: off)")
    add(
        "--table",
        type=target,
        metavar="FILE",
        help="write the rows as Markdown to FILE (default: none)",
    )
    add("--list", action="store_true", help="name the cases and do no more (default: off)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError("--rounds must be 1 or more")
    if options.missing and not options.json:
        raise UserError("--missing needs --json FILE")
    file = options.json
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (worker.start(name, folder) for name in ("jax", "torch"))
        device = ours("platform")
        every = cases(accelerator=device != "cpu")
        chosen = [case for case in every if options.only in case.name]
        if not chosen:
            raise UserError(f"no case has {options.only!r} in its name")
        if options.list:
            print(*(case.name for case in chosen), sep="\n")
            return
        here = about(device)
        rows = {row["name"]: row for row in recorded(file, here)}
        if options.missing:
            chosen = [case for case in chosen if case.name not in rows]
        for place, case in enumerate(chosen, 1):
            with working(f"measuring {case.name}, {place} of {len(chosen)}"):
                rows[case.name] = measure(case, ours, theirs, options.rounds, Path(folder))
            share(rows.values())
            if file and (is_regular(file) or not file.exists()):
                inorder = [rows[c.name] for c in every if c.name in rows]
                save_json(file, {"rows": inorder, "about": here})
    table = [rows[case.name] for case in every if case.name in rows]
    print_table(table)
    if file and not is_regular(file):  # a pipe takes one whole text
        save_json(file, {"rows": table, "about": here})
    if options.table:
        save_bytes(options.table, markdown(table, here).encode())


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
