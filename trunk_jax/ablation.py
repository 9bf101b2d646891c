"""`python -m trunk_jax.ablation --dataset D --volatility 0.6 1.2 0.05`: a tree a volatility.

What the trees have in common is trained once: the root's class phase and its likelihoods do not
depend on volatility, and neither does any stage that two trees share (`data.training.sharing`).
"""

import csv
import dataclasses
import io
import math
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base import interrupts, tables, writing
from data.base.errors import UserError, run_command
from data.base.locking import hold
from data.base.parser import Parser, out_folder, target
from data.base.writing import save_json
from data.images import datasets
from data.run import results
from data.run.options import DEFAULTS, TrainOptions, train_options
from trunk_jax.pictures import style
from trunk_jax.pictures.ablation import ablation_picture

COLUMNS = (
    "volatility",
    "test_accuracy",
    "validation_accuracy",
    "mean_multiply_adds",
    "shortest_multiply_adds",
    "longest_multiply_adds",
    "mean_parameters",
    "total_parameters",
    "depth",
    "nodes",
)
_MOST = 1000
# Flags of `train` that mean the same here, for every tree.
_PASSED = {
    "dataset": str,
    "data_dir": str,
    "image_size": int,
    "budget": str,
    "backbone": str,
    "recipe": str,
    "protocol": str,
    "epochs": int,
    "batch_size": int,
    "limit": int,
    "seed": int,
    "grouping": str,
}


@dataclass(frozen=True)
class Options:
    """What `ablation` was asked for: a training run for each volatility."""

    runs: dict[float, TrainOptions]
    out: Path
    json: Path | None


def options_of(arguments: list[str] | None) -> Options:
    """Parse the flags. UserError for any that makes no sense."""
    parser = Parser(
        prog="python -m trunk_jax.ablation",
        description="Grow a tree for each volatility, training what they share once, and show "
        "accuracy, costs and shape against volatility.",
    )
    add = parser.add_argument
    add(
        "--volatility",
        nargs=3,
        type=float,
        required=True,
        metavar=("FROM", "TO", "STEP"),
        help="the volatilities of all nodes, both ends included",
    )
    for name, kind in _PASSED.items():
        default = DEFAULTS.get(name) or "that of train"
        add(f"--{name.replace('_', '-')}", type=kind, help=f"as in train (default: {default})")
    add(
        "--out",
        type=out_folder,
        help="the folder; each tree is a run folder in it (default: runs/ablation-<dataset>)",
    )
    add("--resume", action="store_true", help="go on with the ablation in --out (default: off)")
    add("--json", type=target, metavar="FILE", help="also write the rows to FILE (default: none)")
    given = parser.parse_args(arguments)
    out = Path(given.out or f"runs/ablation-{datasets.short_name(given.dataset or 'digits')}")
    writing.check_folder(out)
    begun = out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir())
    if begun and not given.resume:
        raise UserError(f"{out} exists; add --resume to go on with it, or choose another --out")
    words = [
        f"--{name.replace('_', '-')}={getattr(given, name)}"
        for name in _PASSED
        if getattr(given, name) is not None
    ]
    runs = {
        value: train_options(
            "jax", [*words, f"--volatility={value}", f"--out={out / f'v{value!r}'}", "--resume"]
        )
        for value in volatilities(*given.volatility)
    }
    return Options(runs, out, given.json)


def volatilities(first: float, last: float, step: float) -> list[float]:
    """From `first` to `last`, both included. UserError if that makes no sense."""
    if not all(map(math.isfinite, (first, last, step))) or not 0 < first <= last or step <= 0:
        raise UserError(
            f"--volatility {first:g} {last:g} {step:g}: FROM and STEP must be above 0, and TO not "
            "below FROM"
        )
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > _MOST:
        raise UserError(f"--volatility asks for {count:,} trees; at most {_MOST:,} are grown")
    return [round(first + k * step, 9) for k in range(count)]


def row_of(volatility: float, summary: dict[str, Any]) -> dict[str, Any]:
    """A finished run's line of `ablation.csv`; counts are of one image, parameters of weights."""
    paths, accuracy = summary["paths"], summary["accuracy"]
    values = (
        volatility,
        accuracy["test"]["accuracy"],
        accuracy["validation"]["accuracy"],
        paths["mean"]["multiply_adds"],
        paths["shortest"]["multiply_adds"],
        paths["longest"]["multiply_adds"],
        paths["mean"]["parameters"],
        sum(node["parameters"] for node in summary["nodes"].values()),
        summary["depth"],
        len(summary["nodes"]),
    )
    return dict(zip(COLUMNS, values, strict=True))


def grow_tree(options: TrainOptions, others: list[Path]) -> dict[str, Any]:
    """Train one tree, or find it finished; `others` are finished ones. Its summary."""
    from data.training.sharing import share
    from data.training.train import train
    from trunk_jax.framework import FRAMEWORK

    def grow(recipe: Any, splits: Any, classes: int, folder: Path, report: Any) -> Any:
        shared = share(folder, recipe, classes, others)
        if shared:
            report(stage="shared", note=", ".join(shared))
        return FRAMEWORK.grow(recipe, splits, classes, folder, report)

    with redirect_stdout(io.StringIO()):  # one table for all of them comes at the end
        train(dataclasses.replace(FRAMEWORK, grow=grow), options)
    return results.read_summary(options.out)


def write(out: Path, rows: list[dict[str, Any]], title: str) -> None:
    """`ablation.csv`, and the figure as PNG and SVG."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    writing.write_bytes(out / "ablation.csv", table.getvalue().encode())
    style.write(ablation_picture(rows, title), out, "ablation")


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table on standard output."""
    print(title)
    print("M are millions, of one image; choose a volatility by validation, not by test\n")
    columns = [
        "volatility",
        "test",
        "validation",
        "mean path multiply-adds M",
        "shortest M",
        "longest M",
        "depth",
        "nodes",
        "parameters of all nodes",
    ]
    cells = [
        [
            f"{row['volatility']:g}",
            tables.percent(row["test_accuracy"]),
            tables.percent(row["validation_accuracy"]),
            tables.millions(row["mean_multiply_adds"]),
            tables.millions(row["shortest_multiply_adds"]),
            tables.millions(row["longest_multiply_adds"]),
            str(row["depth"]),
            str(row["nodes"]),
            f"{row['total_parameters']:,}",
        ]
        for row in rows
    ]
    tables.print_table("trees by volatility", columns, cells)


def main(arguments: list[str] | None = None) -> None:
    """Grow all trees. UserError for anything a user can put right."""
    options = options_of(arguments)
    interrupts.resumable("python -m trunk_jax.ablation", arguments, "--resume")
    from trunk_jax.machine import backend

    backend.start()
    with hold(options.out):
        ablate(options)


def ablate(options: Options) -> None:
    """Grow all trees, and show and write what came of them."""
    rows: list[dict[str, Any]] = []
    finished: list[Path] = []
    title = ""
    for count, (volatility, run) in enumerate(options.runs.items(), 1):
        print(f"volatility {volatility:g}, {count} of {len(options.runs)}", file=sys.stderr)
        summary = grow_tree(run, finished)
        finished.append(run.out)
        rows.append(row_of(volatility, summary))
        title = f"{summary['dataset_title']}, {summary['backbone']} nodes, {summary['recipe']}"
        write(options.out, rows, title)  # after each: an ablation takes long
    show(rows, title)
    print(options.out / "ablation.csv", options.out / "ablation.png", sep="\n")
    if options.json:
        save_json(options.json, rows)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
