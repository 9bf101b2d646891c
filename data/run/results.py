"""The numbers of a finished run: its summary, predictions and confusion matrix."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.base import reading, tables, writing
from data.base.errors import UserError
from data.images.datasets import Dataset, Examples
from data.inference import stopping
from data.recipes.recipe import Recipe
from data.run import derived
from data.tree import metrics
from data.tree.hierarchy import Tree

Costs = dict[str, dict[str, int]]

_MOST_PREDICTIONS = 64 * 2**20  # bytes; 2 million images

_COUNTS: reading.Form = {"accuracy": float, "correct": int, "total": int}
_COST: reading.Form = {"parameters": float, "multiply_adds": float}
_STANDING = ("correct", "total", "multiply_adds", "parameters")
_STOPPED: reading.Form = _COUNTS | _COST | {"last": {str: float}}
SUMMARY: reading.Form = {
    "framework": str,
    "dataset": str,
    "dataset_title": str,
    "backbone": str,
    "recipe": str,
    "protocol": str,
    "selected_on": str,
    "seed": int,
    "accuracy": {"test": _COUNTS, "validation?": _COUNTS, "train?": _COUNTS},
    "nodes": {
        str: {
            "parameters": int,
            "multiply_adds": int,
            "test": {"accuracy": (float, None), "correct": int, "total": int},
        }
    },
    "depth": int,
    "paths": {"shortest": _COST, "longest": _COST, "mean": _COST},
    "int8?": {"bytes": int, "test": _COUNTS},
    "balanced_accuracy?": {str: float},
    "recall?": {str: {"recall": (float, None), "correct": int, "total": int}},
}


def read_summary(folder: Path) -> dict[str, Any]:
    """The `summary.json` of a finished run. UserError if it is missing or something else."""
    file = folder / "summary.json"
    value = reading.json_of_form(file, SUMMARY, "a run's summary")
    try:
        reading.need(value["accuracy"], {str: _COUNTS}, "accuracy")
        reading.need(value["paths"], {str: _COST}, "paths")
        for part, counts in value["accuracy"].items():
            if not 0 <= counts["correct"] <= counts["total"] or counts["total"] < 1:
                raise ValueError(f"accuracy.{part} counts what cannot be")
    except ValueError as error:
        raise UserError(f"{file} is not a run's summary ({error})") from None
    return value


def summary(
    framework: str,
    recipe: Recipe,
    dataset: Dataset,
    tree: Tree,
    costs: Costs,
    parts: dict[str, tuple[Examples, np.ndarray]],
) -> dict[str, Any]:
    """The content of `summary.json`. `parts`: by split, its examples and predicted labels."""
    examples, predicted = parts["test"]
    return {
        "framework": framework,
        "dataset": dataset.spec.name,
        "dataset_title": dataset.title,
        "backbone": recipe.backbone,
        "recipe": recipe.name,
        "protocol": recipe.protocol,
        "selected_on": selected_on(recipe),
        "own_validation": dataset.spec.validation > 0,
        "seed": recipe.seed,
        "accuracy": {
            part: accuracy_of(examples.labels, labels) for part, (examples, labels) in parts.items()
        },
        "balanced_accuracy": {
            part: metrics.accuracy(examples.labels, labels, balanced=True)
            for part, (examples, labels) in parts.items()
        },
        "recall": metrics.recall(examples.labels, predicted, dataset.spec.class_names),
        "nodes": {
            name: costs[name] | {"test": accuracy}
            for name, accuracy in metrics.node_accuracy(tree, examples.labels, predicted).items()
        },
        "depth": tree.depth,
        "paths": metrics.path_costs(tree, costs, examples.labels),
    }


def selected_on(recipe: Recipe) -> str:
    """What chooses epochs: `validation`, `test`, or `nothing` (the last is kept)."""
    if recipe.ties == "final":
        return "nothing"
    return "test" if recipe.protocol == "published" else "validation"


def evaluation(
    split: str, recipe: Recipe, dataset: Dataset, tree: Tree, examples: Examples, labels: np.ndarray
) -> dict[str, Any]:
    """What `evaluate` prints: `accuracy` (0 to 1), `correct`, `total`, `split` and more."""
    return accuracy_of(examples.labels, labels) | {
        "balanced_accuracy": metrics.accuracy(examples.labels, labels, balanced=True),
        "recall": metrics.recall(examples.labels, labels, dataset.spec.class_names),
        "split": split,
        "dataset": dataset.spec.name,
        "dataset_title": dataset.title,
        "protocol": recipe.protocol,
        "nodes": metrics.node_accuracy(tree, examples.labels, labels),
    }


def int8(examples: Examples, labels: np.ndarray, size: int) -> dict[str, Any]:
    """What the int8 form of a model does on test, and how many bytes its numbers take."""
    return {"bytes": size, "test": accuracy_of(examples.labels, labels)}


def write_predictions(
    folder: Path,
    split: str,
    dataset: Dataset,
    examples: Examples,
    labels: np.ndarray,
    confidence: np.ndarray,
) -> None:
    """`predictions-<split>.csv` (a row an image) and `confusion-<split>.csv` (true x predicted)."""
    rows = ["index,label,predicted,confidence"]
    rows += [
        f"{index},{true},{guess},{sure:.6f}"
        for index, (true, guess, sure) in enumerate(
            zip(examples.labels, labels, confidence, strict=True)
        )
    ]
    text = "\n".join(rows) + "\n"
    writing.write_bytes(folder / f"predictions-{split}.csv", text.encode())
    names = dataset.spec.class_names
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")  # names may hold commas
    writer.writerow(("true \\ predicted", *names))
    counts = metrics.confusion(examples.labels, labels, len(names))
    writer.writerows((name, *row) for name, row in zip(names, counts.tolist(), strict=True))
    writing.write_bytes(folder / f"confusion-{split}.csv", table.getvalue().encode())


def write_stopped(folder: Path, split: str, stopped: dict[str, Any] | None) -> None:
    """`stopped-<split>.json`: what the predictions beside it cost where images stopped early.

    `stopped`: accuracy's counts, and `multiply_adds`, `parameters` and `last` of
    `data.inference.curve.of`; None where images went on to a leaf: then no such file stays.
    """
    file = folder / f"stopped-{split}.json"
    if stopped is None:
        file.unlink(missing_ok=True)
    else:
        writing.write_json(file, stopped)


def forget_predictions(folder: Path) -> None:
    """Remove a run's predictions of every split, and what they cost: they are true no more."""
    for split in ("train", "validation", "test"):
        for name in (f"predictions-{split}.csv", f"confusion-{split}.csv", f"stopped-{split}.json"):
            (folder / name).unlink(missing_ok=True)


def standing(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What a finished run is compared by: `correct` and `total` on test, and what an image costs.

    `multiply_adds` and `parameters` of the mean image, and `stopped`: whether these are of images
    that stopped early, by the rule of `evaluate --stop-at`, as the predictions are; else of
    `summary.json`, over the true paths. UserError for a damaged file, and for one of a rule that
    was taken out of the folder.
    """
    file = derived.find(folder, "predictions-test.csv").with_name("stopped-test.json")
    if file.exists():
        if not (folder / stopping.FILE).exists():
            raise UserError(
                f"{folder} has no {stopping.FILE} any more, but predictions that were made by it; "
                "make them anew with evaluate"
            )
        value = reading.json_of_form(file, _STOPPED, "what evaluate writes")
        return {key: value[key] for key in _STANDING} | {"stopped": True}
    counts, mean = summary["accuracy"]["test"], summary["paths"]["mean"]
    both = counts | mean
    return {key: both[key] for key in _STANDING} | {"stopped": False}


def read_predictions(folder: Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predicted) of `predictions-<split>.csv`. UserError if missing or damaged."""
    file = derived.find(folder, f"predictions-{split}.csv")
    if not file.exists():
        raise UserError(f"{file} is missing; write it with evaluate --split {split}")
    text = reading.content(file, _MOST_PREDICTIONS)
    try:
        rows: list[dict[str, Any]] = list(
            csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""))
        )
        labels = np.array([int(row["label"]) for row in rows])
        predicted = np.array([int(row["predicted"]) for row in rows])
        both = np.concatenate([labels, predicted])
        if not len(both) or both.min() < 0 or both.max() >= classes:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error):
        raise UserError(f"{file} does not hold predictions of {classes} classes") from None
    return labels, predicted


def lines(value: dict[str, Any], titles: Mapping[str, str] | None = None) -> list[str]:
    """A summary for people. `titles`: what each node is called (`Tree.titles`)."""
    titles = titles or {}
    how = "selected on TEST (protocol published)"
    if value["selected_on"] == "nothing":
        how = "the last epoch, nothing selected"
    elif value["protocol"] == "holdout":
        images = "held-out training images"
        if value.get("own_validation"):
            images = "the dataset's own validation images"
        how = f"selected on {images}; test used once"
    result = [
        f"{value['dataset_title']}, {value['backbone']} nodes, recipe {value['recipe']}, {how}"
    ]
    even = value.get("balanced_accuracy", {})
    rows = [
        (
            part,
            tables.percent(counts["accuracy"]),
            tables.percent(even.get(part)),
            f"{counts['correct']:,} of {counts['total']:,}",
        )
        for part, counts in value["accuracy"].items()
    ]
    blocks = [tables.text(("split", "accuracy", "balanced", "right"), rows, width=98)]
    nodes = [
        (
            titles.get(name, name),
            tables.percent(node["test"]["accuracy"]),
            f"{node['parameters']:,}",
            f"{node['multiply_adds']:,}",
        )
        for name, node in value["nodes"].items()
    ]
    nodes += [
        (f"{name} path", "", f"{path['parameters']:,.0f}", f"{path['multiply_adds']:,.0f}")
        for name, path in value["paths"].items()
    ]
    blocks.append(tables.text(("node", "accuracy", "parameters", "multiply-adds"), nodes, width=98))
    result += [f"  {line}" for block in blocks for line in block.splitlines()]
    if "recall" in value:
        result.append(f"  {weakest(value['recall'])}")
    if "int8" in value:
        counts, size = value["int8"]["test"], value["int8"]["bytes"]
        result.append(
            f"  as int8: test {100 * counts['accuracy']:.2f} %  ({counts['correct']:,} of "
            f"{counts['total']:,}), {size / 1e6:.2f} MB"
        )
    return result


def weakest(recall: dict[str, dict[str, Any]], most: int = 3) -> str:
    """The classes of which the smallest share is right, in words."""
    known = [(row["recall"], name) for name, row in recall.items() if row["recall"] is not None]
    low = [f"{name} {tables.percent(share)}" for share, name in sorted(known)[:most]]
    return f"least often right: {', '.join(low)}"


def accuracy_of(true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """`accuracy` (0 to 1), `correct` and `total` of predicted labels."""
    correct = int((true == predicted).sum())
    return {"accuracy": correct / len(true), "correct": correct, "total": len(true)}


# --- classifiers that others have published

PUBLISHED, TREE, SINGLE = KINDS = "published tree", "tree of ours", "one network"
_PUBLISHED: reading.Form = {
    "data": str,
    "network": str,
    "correct": int,
    "total": int,
    "multiply_adds": float,
    "parameters": float,
}


def read_published(file: Path) -> list[dict[str, Any]]:
    """The classifiers of a JSON list such as docs/published.json. UserError for another form.

    An entry: `{"data": "CIFAR-10", "network": "published tree (vgg)", "correct": 8153, "total":
    10000, "multiply_adds": 101e6, "parameters": 310e3}`. `kind` may say what pictures draw it as:
    "published tree" (where none is said), "tree of ours" or "one network".
    """
    found = reading.json_file(file)
    try:
        reading.need(found, [_PUBLISHED])
        for row in found:
            if not 0 <= row["correct"] <= row["total"] or row["total"] < 1:
                raise ValueError(f"{row['data']} counts what cannot be")
            if row.get("kind", KINDS[0]) not in KINDS:
                raise ValueError(f"its kind is {row['kind']!r}, none of {', '.join(KINDS)}")
    except ValueError as error:
        raise UserError(f"{file} has another form than docs/published.json ({error})") from None
    return found
