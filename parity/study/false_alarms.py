"""`python -m parity.study.false_alarms`: how often the coupled design is wrong, how often right.

Roots are trained coupled, over seeds, backbones and types: as they are, where every finding is a
false alarm, or with each planted fault in turn, where every finding is one that should be. Each run
is kept, and the command goes on where it was interrupted.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from data.base import interrupts, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.images import datasets
from data.images.splits import Splits, split
from data.recipes import recipe as recipes
from data.run import runfolder
from parity.checks.processes import prepare_process
from parity.study import plants, stepwise, tasks
from parity.study.coupled import coupled
from parity.study.options import DTYPES

BACKBONES = ("vgg", "mobilenet")


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, then count: 1 if there was a false alarm, else 0."""
    parser = Parser(
        prog="python -m parity.study.false_alarms",
        description="How often does a coupled or a stepwise study of digits find a difference "
        "where there is none, and how often one that was planted? A run that was interrupted goes "
        "on when it is started again.",
    )
    add = parser.add_argument
    add("--seeds", type=int, default=50, help="of every backbone and type (default: %(default)s)")
    add(
        "--backbones",
        nargs="+",
        choices=BACKBONES,
        default=BACKBONES,
        help="node networks (default: both)",
    )
    add("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="types (default: both)")
    add(
        "--faults",
        nargs="*",
        metavar="NAME",
        help="plant these (none named: each) in turn instead (default: off)",
    )
    add(
        "--design",
        choices=("coupled", "stepwise"),
        default="coupled",
        help="of the study (default: %(default)s)",
    )
    add(
        "--fault-from",
        metavar="STEP",
        type=int,
        default=1,
        help="of the stepwise design: the step at which a fault begins (default: %(default)s)",
    )
    add(
        "--recipe",
        default="corrected",
        help=f"one of {', '.join(recipes.names())}, or FILE.toml (default: %(default)s)",
    )
    add("--epochs", type=int, default=1, help="of training (default: %(default)s)")
    add(
        "--limit", type=int, default=512, help="images of each split; 0: all (default: %(default)s)"
    )
    add("--batch-size", type=int, default=64, help="images in a batch (default: %(default)s)")
    add(
        "--controls",
        type=int,
        default=2,
        help="runs of each framework with flipped bits (default: %(default)s)",
    )
    add(
        "--out",
        type=out_folder,
        default="runs/false-alarms",
        help="folder of the runs (default: %(default)s)",
    )
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.controls < 2:
        raise UserError("--seeds must be 1 or more and --controls 2 or more")
    stepwise = options.design == "stepwise"
    if options.fault_from < 1 or (options.fault_from > 1 and not stepwise):
        raise UserError("--fault-from must be 1 or more, and goes with --design stepwise")
    faults = [None] if options.faults is None else options.faults or plants.names()
    for fault in faults:
        if fault is not None:
            plants.find(fault)
    keys = ["recipe", "epochs", "limit", "batch_size"]
    keys += ["fault_from"] if stepwise else ["controls"]
    settings = {"design": options.design} | {key: getattr(options, key) for key in keys}
    out = Path(options.out)
    work = [
        (backbone, dtype, fault, seed)
        for seed in range(options.seeds)
        for fault in faults
        for backbone in options.backbones
        for dtype in options.dtypes
    ]
    interrupts.resumable("python -m parity.study.false_alarms", arguments)
    with runfolder.lock(out):
        runfolder.create(out, {"format": runfolder.FORMAT, "study": settings}, resume=True)
        # as the study's: results depend on no number of cores
        with tasks.workers(1) as pool:
            rows = pool.submit(_all, work, settings, out / "alarms.json").result()
    value: dict[str, Any] = {"settings": settings, "counts": counts(rows), "runs": rows}
    for line in lines(value["counts"]):
        print(line)
    if options.json:
        writing.save_json(options.json, value)
    return int(any(row["found"] and not row["fault"] for row in rows))


def _all(
    work: Sequence[tuple[str, str, str | None, int]], settings: dict[str, Any], file: Path
) -> list[dict[str, Any]]:
    """A row for each task of work; those that `file` has are not trained again."""
    prepare_process()
    kept = runfolder.read_json(file)["runs"] if file.exists() else []
    rows = {(r["backbone"], r["dtype"], r["fault"], r["seed"]): r for r in kept}
    compiled: dict[Any, Any] = {}
    dataset, planted = datasets.load("digits"), None
    for count, key in enumerate(work, 1):
        if key in rows:
            continue
        backbone, dtype, fault, seed = key
        if fault or fault != planted:
            compiled, planted = {}, fault
        started = time.monotonic()
        if settings["design"] == "stepwise":  # which plants it itself; a training serves all types
            types = [k[1] for k in work if (k[0], *k[2:]) == (backbone, fault, seed)]
            made = _stepwise(dataset, backbone, types, seed, settings, compiled, fault)
        else:
            with plants.planted(fault):
                made = {dtype: _one(dataset, backbone, dtype, seed, settings, compiled)}
        for kind, row in made.items():
            told = {"backbone": backbone, "dtype": kind, "fault": fault, "seed": seed} | row
            rows[backbone, kind, fault, seed] = told
        writing.write_json(file, {"runs": list(rows.values())})
        row = next((row for row in made.values() if row["found"]), made[dtype])
        said = row["found"]["first"] if row["found"] else f"{row['steps']} steps, no finding"
        name = " ".join(str(part) for part in key if part is not None)
        seconds = time.monotonic() - started
        print(f"{count} of {len(work)}: {name}: {said} ({seconds:.0f} s)", file=sys.stderr)
    return [rows[key] for key in work]


def _training(
    dataset: datasets.Dataset, backbone: str, seed: int, settings: dict[str, Any]
) -> tuple[recipes.Recipe, Splits, int]:
    """(recipe, images, number of classes) of a run."""
    recipe = recipes.override(
        recipes.load(settings["recipe"], "digits", backbone),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        limit=settings["limit"],
        seed=seed,
        volatility=None,
    )
    recipe = replace(recipe, seed=seed)
    parts = split(dataset, recipe.protocol, seed, recipe.limit)
    return recipe, parts, len(dataset.spec.class_names)


def _stepwise(
    dataset: datasets.Dataset,
    backbone: str,
    dtypes: Sequence[str],
    seed: int,
    settings: dict[str, Any],
    compiled: dict[Any, Any],
    fault: str | None,
) -> dict[str, dict[str, Any]]:
    """Train a root and judge each step; by type as `_one`.

    `suspected`: the steps that the floor was too low for.
    """
    recipe, parts, classes = _training(dataset, backbone, seed, settings)
    begins, types = settings["fault_from"], tuple(dtypes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = stepwise.tried(recipe, parts, classes, types, folder, compiled, fault, begins)
    return {dtype: _row(found, dtype) for dtype in types}


def _row(found: dict[str, Any], dtype: str) -> dict[str, Any]:
    one, rows = found["types"][dtype], [row[dtype] for row in found["rows"]]
    kept = ("step", "kind", "tensor", "error", "allowed", "framework", "cause", "first")
    worst = max(
        (share for shares in one["worst"].values() for share in shares.values()),
        key=lambda share: float("inf") if share is None else share,
    )
    return {
        "steps": found["judged"],
        "found": {key: one["first"].get(key) for key in kept} if one["first"] else None,
        "beyond": one["beyond"],
        "worst": worst,
        "suspected": [row["step"] for row in found["rows"] if row[dtype]["by"] == "model"],
        "sides": [row["sides"] for row in rows if any(row["sides"].values())],
        "open": one["open"],
        "jumps": 0,
    }


def _one(
    dataset: datasets.Dataset,
    backbone: str,
    dtype: str,
    seed: int,
    settings: dict[str, Any],
    compiled: dict[Any, Any],
) -> dict[str, Any]:
    """Train a root; what was found, and how often the float64 step had to decide.

    `suspected`: whether float32 alone looked like a difference of the frameworks.
    """
    recipe, parts, classes = _training(dataset, backbone, seed, settings)
    found = coupled(recipe, parts, classes, dtype, "root", settings["controls"], compiled=compiled)
    (stage,) = found["stages"]
    finding = found["finding"]
    kept = ("step", "kind", "tensor", "difference", "allowed", "framework", "cause", "first")
    return {
        "steps": stage["steps"],
        "found": {key: finding[key] for key in kept} if finding else None,
        "suspected": [one["step"] for one in stage["jumps"] if "truth" in one],
        "sides": [one["truth"]["sides"] for one in stage["jumps"] if "truth" in one],
        "open": sum(one["truth"]["open"] for one in stage["jumps"] if "truth" in one),
        "jumps": len(stage["jumps"]),
    }


def counts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By fault and type, and of all types: runs, findings, the share's 95 % interval (exact).

    `suspected`: runs in which float32 alone would have said so, rightly or not.
    """
    table = []
    for fault in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == fault]
        kinds = {kind: [row for row in mine if row["dtype"] == kind] for kind in DTYPES}
        for dtype, group in (kinds | {"both": mine}).items():
            if not group or (dtype == "both" and len(group) in map(len, kinds.values())):
                continue
            found = sum(bool(row["found"]) for row in group)
            interval = binomtest(found, len(group)).proportion_ci(method="exact")
            # of no events in n runs the one-sided bound, 1 - 0.05^(1/n), is the usual one
            high = 1 - 0.05 ** (1 / len(group)) if not found else float(interval.high)
            table.append(
                {
                    "fault": fault,
                    "dtype": dtype,
                    "runs": len(group),
                    "steps": sum(row["steps"] for row in group),
                    "found": found,
                    "interval": [float(interval.low), high],
                    "suspected": sum(bool(row["suspected"]) for row in group),
                    "open": sum(row["open"] for row in group),
                }
            )
    return table


def lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The counts in words."""
    made = []
    for row in table:
        low, high = (100 * share for share in row["interval"])
        share = f"below {high:.1f} %" if not row["found"] else f"{low:.1f} to {high:.1f} %"
        what = row["fault"] or "no fault"
        made.append(
            f"{what}, {row['dtype']}: {row['found']} of {row['runs']} runs with a finding ({share} "
            f"at 95 %), {row['steps']:,} steps; in {row['suspected']} runs a second look was needed"
        )
    return made


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
