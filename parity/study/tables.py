"""The CSV files of a study: every step, every tensor, every epoch, every run."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.base import writing
from parity.study import verdict
from parity.study.trace import ALL

STEPS = (
    "seed",
    "dtype",
    "stage",
    "step",
    "loss_jax",
    "loss_torch",
    "kind",
    "absolute",
    "relative",
    "cosine",
    "control_low",
    "control_high",
)
TENSORS = ("seed", "dtype", "stage", "step", "kind", "tensor", "difference", "control", "allowed")
EPOCHS = (
    "seed",
    "dtype",
    "stage",
    "epoch",
    "split",
    "images",
    "pair",
    "right_first",
    "right_second",
    "agree",
    "kappa",
)
JUDGED = (
    "seed",
    "stage",
    "epoch",
    "step",
    "loss",
    "type",
    "framework",
    "worst_kind",
    "share_of_bound",
    "by",
    "other_sides",
    "verdict",
)
RUNS = ("framework", "seed", "right", "images", "nodes", "groups")


def write(
    folder: Path, found: dict[Any, dict[str, Any]], trained: Sequence[dict[str, Any]] = ()
) -> list[Path]:
    """The files that the tasks have rows for. `trained`: see `stepwise.summary`."""
    coupled = [value for task, value in found.items() if task.design == "coupled"]
    independent = [value for task, value in found.items() if task.design == "independent"]
    written = []
    if trained:
        written.append(_write(folder / "stepwise-steps.csv", JUDGED, _judged(trained)))
    if coupled:
        written += [
            _write(folder / "coupled-steps.csv", STEPS, _steps(coupled)),
            _write(folder / "coupled-tensors.csv", TENSORS, _tensors(coupled)),
            _write(folder / "coupled-epochs.csv", EPOCHS, _epochs(coupled)),
        ]
    if independent:
        rows = (
            [
                v["framework"],
                v["seed"],
                v["right"],
                v["images"],
                v["nodes"],
                " ".join("+".join(map(str, group)) for group in v["groups"]),
            ]
            for v in independent
        )
        written.append(_write(folder / "independent.csv", RUNS, rows))
    return written


def _judged(trained: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    for one in trained:
        for row in one["rows"]:
            head = [one["seed"], row["stage"], row["epoch"], row["step"], row["loss"]]
            for dtype in one["types"]:
                found = row[dtype]
                for name, shares in found["shares"].items():
                    kind = max(shares, key=lambda kind: _number(shares[kind]))
                    verdict_ = "beyond" if found["excess"] else "open" if found["open"] else "agree"
                    sides = found["sides"].get(name, 0)
                    yield [*head, dtype, name, kind, shares[kind], found["by"], sides, verdict_]


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _write(file: Path, columns: Sequence[str], rows: Iterator[list[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    writing.write_bytes(file, text.getvalue().encode())
    return file


def _stages(values: list[dict[str, Any]]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    for value in values:
        for stage in value["stages"]:
            yield [value["seed"], value["dtype"], stage["stage"]], stage


def _steps(values: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for head, stage in _stages(values):
        trace = stage["trace"]
        for step in range(stage["steps"]):
            losses = [trace["loss"][name][step] for name in ("jax", "torch")]
            for kind, controls in trace["controls"].items():
                if kind in trace["whole"]:
                    whole = trace["whole"][kind]
                    sizes = [whole[name][step] for name in ("absolute", "relative", "cosine")]
                else:
                    sizes = [None, trace["tensors"][kind][ALL][step], None]
                yield [*head, step + 1, *losses, kind, *sizes, *controls[step]]


def _tensors(values: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for head, stage in _stages(values):
        trace = stage["trace"]
        for kind, tensors in trace["tensors"].items():
            for key, series in tensors.items():
                for step, difference in enumerate(series):
                    band = trace["bands"][kind][key][step]
                    most = None if band is None else verdict.allowed(kind, head[1], band)
                    yield [*head, step + 1, kind, key, difference, band, most]


def _epochs(values: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for head, stage in _stages(values):
        for row in stage["epochs"]:
            for split in ("validation", "test"):
                counts = row[split]
                for pair, value in counts["pairs"].items():
                    right = [counts["right"][name] for name in pair.split(", ")]
                    yield [
                        *head,
                        row["epoch"],
                        split,
                        counts["images"],
                        pair,
                        *right,
                        value["agree"],
                        value["kappa"],
                    ]
