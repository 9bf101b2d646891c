"""`python -m benchmarks.gpu.table FOLDER...`: results as a table of docs/gpu.md.

Each FOLDER is an `--out` of `python -m benchmarks.gpu`, or what came back of one, unpacked. A job
with a result has a row; the others are named below the table.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import run, sweep
from benchmarks.gpu import plan
from data.base import reading, tables, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.words import plural

Result = dict[str, Any]


def _training(value: Result) -> str:
    test, nodes = value["accuracy"]["test"], len(value["nodes"])
    return f"{_evaluation(test)}, {plural(nodes, 'node')}"


def _evaluation(value: Result) -> str:
    return f"{100 * value['accuracy']:.2f} % ({value['correct']:,} of {value['total']:,})"


def _checks(value: Result) -> str:
    checks = value["checks"]
    if isinstance(checks, int):
        left, kinds = len(value["kinds_left"]), len(value["kinds_left"]) + len(value["kinds_done"])
        return f"{value['passed']} of {checks} pass; {left} of {kinds} kinds not reached"
    return f"{sum(check['passed'] for check in checks)} of {len(checks)} pass"


def _card(value: Result) -> str:
    rates = value["multiply_adds_per_s"].items()
    told = ", ".join(f"{name} {rate / 1e12:.1f} T" for name, rate in rates)
    return f"{told} multiply-adds a second; copy {value['copy_bytes_per_s'] / 1e12:.2f} TB/s"


def _modes(value: Result) -> str:
    return "; ".join(
        f"{mode} {worst:.1e}, {value['changed'][mode]} decisions"
        for mode, worst in value["worst"].items()
    )


def _speed(value: Result) -> str:
    compiled = value["rounds"].get("compile")
    forms = {value["best"]: value["theirs_s"]}
    if compiled:
        forms["compile"] = statistics.median(compiled)
    text = f"{1e6 * value['ours_s']:.2f} us an image; " + "; ".join(
        f"{form} {1e6 * seconds:.2f} ({value['ours_s'] / seconds:.2f})"
        for form, seconds in forms.items()
    )
    return text + ("; bar missed" if run.missed(value) else "")


def _bar(value: Result) -> str:
    """What a speed is held to, in words; empty for other results."""
    bars = []
    if value.get("ours_s") and value["bar"] is not None:
        bars.append(f"{value['bar']:g} of PyTorch's best form")
    if value.get("limit_s") is not None:
        bars.append(f"{1e6 * value['limit_s']:g} us")
    return ", ".join(bars)


def _sweep(value: Result) -> str:
    return "; ".join(
        f"{row['batch']} {row['precision']} {1e6 * row['seconds']:.2f} us, "
        f"first {row['first_s']:.1f} s"
        for row in value["rows"]
    )


def _precision(value: Result) -> str:
    ends = ", ".join(f"{way} {values[-1]:.1e}" for way, values in value["apart"].items())
    return f"apart after {value['steps']} steps, of the way gone: {ends}"


def _repeat(value: Result) -> str:
    told = " and ".join(f"{seconds:.1f}" for seconds in value["seconds"])
    return f"{'the same bits' if value['same'] else 'other bits'}, {told} s"


# A result is told by what only it has.
_KINDS: dict[str, Callable[[Result], str]] = {
    "multiply_adds_per_s": _card,
    "worst": _modes,
    "checks": _checks,
    "ours_s": _speed,
    "variant": _sweep,
    "apart": _precision,
    "same": _repeat,
    "paths": _training,
    "correct": _evaluation,
}


def told(value: Result) -> str:
    """A result in a few words."""
    for key, words in _KINDS.items():
        if key in value:
            return words(value)
    return "done"


def found(folders: list[Path]) -> dict[str, Result]:
    """By job its latest result that was finished, of the card that its folder names.

    UserError for a folder without results. Rehearsals do not count.
    """
    result: dict[str, Result] = {}
    for folder in folders:
        files = sorted((folder / "results").glob("*.json"))
        if not files:
            raise UserError(f"{folder} has no results of python -m benchmarks.gpu")
        rows = [
            reading.json_of_form(file, {"job": str, "status": str}, "a result") for file in files
        ]
        cards = [row["result"]["kind"] for row in rows if row["job"] == "card" and row["result"]]
        for row in rows:
            if row["status"] == "done" and not row["rehearsal"]:
                before = result.get(row["job"])
                if before is None or before["finished"] < row["finished"]:
                    result[row["job"]] = row | {"card": cards[0] if cards else "?"}
    return result


def lines(results: dict[str, Result]) -> list[str]:
    """The table, a row for each job of the plan that has a result, and the names of the others."""
    made, missing = [], []
    for stage in plan.stages():
        for job in stage.jobs:
            row = results.get(job.name)
            if row is not None:
                day = f"{row['card']}, {row['finished'][:10]}"
                bar = job.bar or _bar(row["result"])
                cells = [told(row["result"]), f"{row['seconds']:.0f}", bar, day]
                made.append([str(stage.number), job.what, *cells])
        names = [f"`{job.name}`" for job in stage.jobs if job.name not in results]
        missing += [f"- stage {stage.number}: {', '.join(names)}"] if names else []
    if missing:
        head = "Not measured yet (`python -m benchmarks.gpu --list` says what each is):"
        missing = ["", head, "", *missing]
    columns = ("stage", "what", "result", "in all, s", "bar", "card, day")
    return tables.markdown(columns, made, right=(3,)).splitlines() + missing


def expectations() -> list[str]:
    """The table of switches: what is expected of each, and why."""
    made = []
    for variant in sweep.variants().values():
        if variant.platform == "cpu":
            continue
        forms = [f"channels in multiples of {variant.channels}"] if variant.channels > 1 else []
        forms += ["one pass"] if variant.one_pass else []
        flags = [f"`{flag.removeprefix('--')}`" for flag in variant.flags.split()]
        how = " ".join(flags + forms) or "none"
        made.append([variant.name, how, variant.expect, variant.why])
    return tables.markdown(("variant", "flags or form", "expected", "because"), made).splitlines()


def written(text: str, name: str, rows: list[str]) -> str:
    """A page with the lines between its marks `<!-- name -->` and `<!-- end of name -->` replaced.

    UserError if it lacks them.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if start not in text or end not in text:
        raise UserError(f"the page has no place for {name}: it needs {start.strip()} and {end}")
    before, _, rest = text.partition(start)
    return before + start + "\n".join(rows) + "\n" + end + rest.partition(end)[2]


def main(arguments: list[str] | None = None) -> None:
    """Make the table as the flags say."""
    parser = Parser(prog="python -m benchmarks.gpu.table", description="Results as a table.")
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="of results (default: none, a list of what is not measured)",
    )
    parser.add_argument(
        "--write",
        type=target,
        metavar="FILE",
        help="put it and the table of expectations between their marks in FILE (default: print it)",
    )
    options = parser.parse_args(arguments)
    rows = lines(found([Path(folder) for folder in options.folders]))
    if not options.write:
        print(*rows, sep="\n")
        return
    page = options.write
    if not page.is_file():
        raise UserError(f"{page} is missing")
    text = written(page.read_text(), "measured", rows)
    text = written(text, "expected", expectations())
    writing.save_bytes(page, text.encode())


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
