"""`python -m data.table RUN...`: the results of finished runs as a Markdown table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.base import reading, tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.writing import save_bytes
from data.run import results
from data.tree.interval import interval

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
_PREDICTIONS = "predictions, JAX against PyTorch"
_CHECK: reading.Form = {"what": str, "passed": bool, "max_abs": float}
COLUMNS = (
    "data",
    "network",
    "test accuracy, % (95 % interval)",
    "right",
    "multiply-adds of an image",
    "parameters an image meets",
)


def row(run: Path) -> tuple[str, ...]:
    """A line of the table, of a finished run. UserError if it is not finished."""
    summary = results.read_summary(run)
    standing = results.standing(run, summary)
    nodes, recipe = len(summary["nodes"]), f"{summary['recipe']}, {summary['backbone']}"
    chosen = ", selected on TEST" if summary["selected_on"] == "test" else ""
    kind = f"our tree, {nodes} nodes" if nodes > 1 else "one network"
    early = ", images stop early" if standing["stopped"] else ""
    network = f"{kind}{early} ({recipe}{chosen})"
    return _row(summary["dataset_title"], network, standing, standing)


def _row(data: str, network: str, counts: Any, mean: Any) -> tuple[str, ...]:
    low, high = interval(counts["correct"], counts["total"])
    return (
        data,
        network,
        f"{100 * counts['correct'] / counts['total']:.2f} ({100 * low:.2f} to {100 * high:.2f})",
        f"{counts['correct']:,} of {counts['total']:,}",
        f"{mean['multiply_adds'] / 1e6:.1f} M",
        f"{mean['parameters'] / 1e6:.3f} M",
    )


def verdict(checked: str) -> tuple[str, ...]:
    """A line of what both frameworks make of a run, from `RUN=FILE`.

    FILE is what `python -m parity.check --checkpoint RUN --json FILE` wrote. UserError if it is
    not, or if the run is not finished.
    """
    run, equals, file = checked.partition("=")
    if not (run and equals and file):
        raise UserError(f"--parity {checked}: give the run and what parity found, as RUN=FILE")
    # a shell leaves a ~ that is not a word's beginning
    folder, file = reading.at_home(run), str(reading.at_home(file))
    summary, found = results.read_summary(folder), reading.json_file(Path(file))
    try:
        reading.need(found, {"passed": bool, "checks": [_CHECK]})
        total = results.standing(folder, summary)["total"]
        differ = [c["max_abs"] for c in found["checks"] if c["what"] == _PREDICTIONS]
        if len(differ) != 1 or not 0 <= differ[0] <= total:
            raise ValueError(f"its check {_PREDICTIONS!r} is not of {total:,} images")
    except ValueError as error:
        raise UserError(
            f"{file} is not what `parity.check --checkpoint {run}` writes ({error})"
        ) from None
    passed = sum(check["passed"] for check in found["checks"])
    return (
        summary["dataset_title"],
        f"PyTorch beside JAX: {folder.name}",
        f"{passed} of {len(found['checks'])} checks passed",
        f"{total - int(differ[0]):,} of {total:,} predictions equal",
        "",
        "",
    )


def table(runs: list[Path], published: Path | None = None, checked: Sequence[str] = ()) -> str:
    """The table of the runs. UserError for one that is not finished.

    `published`: a JSON list of published classifiers (docs/published.json). Those of a dataset
    stand above its first run; those of datasets without a run are left out. `checked`: verdicts
    of parity as `RUN=FILE`, which stand at the end.
    """
    rows = [row(run) for run in runs]
    known = [] if published is None else results.read_published(published)
    others = [_row(one["data"], one["network"], one, one) for one in known]
    result = []
    for number, mine in enumerate(rows):
        if mine[0] not in (before[0] for before in rows[:number]):
            result += [other for other in others if other[0] == mine[0]]
        result.append(mine)
    result += [verdict(each) for each in checked]
    return tables.markdown(COLUMNS, result)


def insert(file: Path, text: str) -> None:
    """Put the table between the marks in a Markdown file. UserError if they are not there."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    content = file.read_text("utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise UserError(f"{file} needs one line {BEGIN} and one line {END}")
    before, rest = content.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{text}\n{END}{after}"
    save_bytes(file, new.encode())


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or write it into a file."""
    parser = Parser(
        prog="python -m data.table",
        description="The results of finished runs, from their summary.json. As a Markdown table, "
        "which may be wide.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument(
        "--write",
        type=target,
        metavar="FILE",
        help="put it into a "
        "Markdown file, between the "
        f"lines {BEGIN} and {END} (default: print it)",
    )
    parser.add_argument(
        "--published",
        metavar="FILE",
        help="a JSON list of "
        "published classifiers to put beside the runs, such as "
        "docs/published.json",
    )
    parser.add_argument(
        "--parity",
        metavar="RUN=FILE",
        action="append",
        default=[],
        help="a line of what `python -m parity.check --checkpoint RUN --json FILE` found (again "
        "for another)",
    )
    options = parser.parse_args(arguments)
    known = options.published and Path(options.published)
    text = table([Path(run) for run in options.runs], known, options.parity)
    if options.write:
        insert(options.write, text)
    else:
        print(text)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
