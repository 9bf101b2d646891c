"""`train --seeds N`: the same training with several seeds, and what can be said of all."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.base import tables, writing
from data.base.errors import UserError
from data.run import results
from data.run.options import TrainOptions, train_options

FILE = "seeds.json"
LEVEL = 0.95


def runs(framework: str, arguments: Sequence[str] | None) -> list[TrainOptions]:
    """The trainings that the flags of `train` ask for: one, or one for each seed.

    With `--seeds N` they are the N seeds from `--seed` on, in folders `seed<number>` of `--out`.
    UserError for flags that make no sense, or if those folders are there without `--resume`.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = train_options(framework, arguments)
    if first.seeds is None:
        return [first]
    if first.seeds < 2:
        raise UserError(f"--seeds {first.seeds} must be 2 or more; --seed chooses one")
    if first.source is not None:
        raise UserError("--seeds is not for --from, which takes one run's")
    if first.distributed:
        raise UserError(
            "--seeds is for one process; with --distributed start each --seed by itself"
        )
    seed = first.recipe.seed
    out = first.out
    if "--out" not in [word.split("=")[0] for word in arguments]:
        out = out.with_name(
            out.name.replace(f"-seed{seed}-", f"-seeds{seed}-{seed + first.seeds - 1}-")
        )
    result = []
    for each in range(seed, seed + first.seeds):
        folder = out / f"seed{each}"
        if folder.exists() and not first.resume:
            raise UserError(f"{folder} exists; add --resume, or choose another --out")
        options = train_options(framework, [*arguments, f"--seed={each}", f"--out={folder}"])
        result.append(options)
    return result


def train_all(
    options: Sequence[TrainOptions],
    train: Callable[[TrainOptions], None],
) -> None:
    """Train them one after the other; of several, write and print what all of them say.

    It goes to `seeds.json` in their common folder, and to the file of `--json`.
    """
    if len(options) == 1:
        train(options[0])
        return
    report = options[0].json
    for each in options:
        train(replace(each, json=None))
    value = summary([each.out for each in options])
    folder = options[0].out.parent
    writing.write_json(folder / FILE, value)
    print("", *lines(value), f"  written: {folder / FILE}", sep="\n")
    if report:
        writing.save_json(report, value)


def summary(folders: Sequence[Path]) -> dict[str, Any]:
    """Mean and Student's 95 % interval of what finished runs have reached, and their values.

    Of test accuracies 0.90, 0.92 and 0.91 the mean is 0.91, the interval 0.885 to 0.935.
    """
    found = [results.read_summary(folder) for folder in folders]
    values = {
        f"{part} accuracy": [each["accuracy"][part]["accuracy"] for each in found]
        for part in found[0]["accuracy"]
    }
    values["test accuracy, balanced"] = [each["balanced_accuracy"]["test"] for each in found]
    values["multiply-adds, mean path"] = [each["paths"]["mean"]["multiply_adds"] for each in found]
    values["nodes"] = [len(each["nodes"]) for each in found]
    return {
        "dataset_title": found[0]["dataset_title"],
        "backbone": found[0]["backbone"],
        "recipe": found[0]["recipe"],
        "seeds": [each["seed"] for each in found],
        "level": LEVEL,
        "values": {
            what: possible(what, interval(row)) | {"each": row} for what, row in values.items()
        },
    }


def possible(what: str, row: dict[str, float]) -> dict[str, Any]:
    """An interval cut to what can be, and `cut`: which of its ends were.

    An accuracy is 0 to 1, a count 0 or more; Student's interval of two or three values knows
    neither.
    """
    most = 1.0 if _is_share(what) else math.inf
    ends = {"low": max(row["low"], 0.0), "high": min(row["high"], most)}
    return row | ends | {"cut": [end for end, value in ends.items() if value != row[end]]}


def interval(values: Sequence[float]) -> dict[str, float]:
    """`mean`, `low` and `high`: Student's interval of the mean, of two values or more."""
    from scipy import stats  # takes a second to load, which one training need not pay

    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}


def lines(value: dict[str, Any]) -> list[str]:
    """The summary for people."""
    rows = []
    for what, row in value["values"].items():
        shown = _percent if _is_share(what) else _count
        ends = [
            shown(row[key]) + (" (cut)" if key in row["cut"] else "") for key in ("low", "high")
        ]
        rows.append((what, shown(row["mean"]), *ends, ", ".join(map(shown, row["each"]))))
    seeds = value["seeds"]
    columns = ("", "mean", "95 % from", "to", "each run")
    table = tables.text(columns, rows, left=(0, 4), width=98)
    head = (
        f"{value['dataset_title']}, {value['backbone']} nodes, recipe {value['recipe']}, "
        f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    )
    result = [head, *(f"  {line}" for line in table.splitlines())]
    if any(row["cut"] for row in value["values"].values()):
        result.append("  cut: the interval would pass what can be; more seeds make it narrower")
    return result


def _is_share(what: str) -> bool:
    return "accuracy" in what


def _percent(share: float) -> str:
    return tables.percent(share)


def _count(number: float) -> str:
    return f"{number:,.1f}"
