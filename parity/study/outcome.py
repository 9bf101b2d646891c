"""From the tasks to `study.json`: what was seen, what follows, and how far it reaches."""

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np

from data.images.datasets import Dataset
from data.recipes.recipe import to_json
from parity.study import report, statistics, trees, verdict
from parity.study.coupled import kappa
from parity.study.options import Options
from parity.study.tasks import Task
from parity.study.trace import ALL, digits

SHOWN = 120  # steps of a stage that study.json keeps; the CSV files have them all


def outcome(
    options: Options, dataset: Dataset, found: dict[Task, Any], trained: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of `study.json`. It depends on the settings and the tasks alone.

    `trained`: of the stepwise design, what `stepwise.summary` made of each seed.
    """
    of = {
        design: [value for task, value in found.items() if task.design == design]
        for design in ("coupled", "independent", "devices")
    }
    recipe = options.settings.recipe
    return {
        "dataset": dataset.title,
        "dataset_sha256": dataset.fingerprint,
        "backbone": recipe.backbone,
        "recipe": to_json(recipe),
        "nodes": options.settings.nodes,
        "fault": options.settings.fault,
        "command": report.command(options.command),
        "versions": report.versions(),
        "rule": {"K": verdict.K, "floors": verdict.FLOORS, "units": verdict.UNITS},
        "coupled": [_coupled(value) for value in of["coupled"]],
        "independent": _independent(of["independent"], options) if of["independent"] else None,
        "devices": of["devices"][0] if of["devices"] else None,
        "stepwise": [{key: part for key, part in one.items() if key != "rows"} for one in trained],
    }


def _coupled(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"stages": [_stage(stage, value["dtype"]) for stage in value["stages"]]}


def _stage(stage: dict[str, Any], dtype: str) -> dict[str, Any]:
    trace = stage["trace"]
    steps = list(range(0, stage["steps"], -(-stage["steps"] // SHOWN)))
    if steps[-1] != stage["steps"] - 1:
        steps.append(stage["steps"] - 1)
    kept = {key: value for key, value in stage.items() if key not in ("trace", "order")}
    return kept | {
        "series": {
            "step": [step + 1 for step in steps],
            "loss": {name: [trace["loss"][name][s] for s in steps] for name in ("jax", "torch")},
            "distance": {
                kind: [_whole(trace, kind)[s] for s in steps] for kind in trace["controls"]
            },
            "control": {
                kind: [trace["controls"][kind][s] for s in steps] for kind in trace["controls"]
            },
            "cosine": {
                kind: [trace["whole"][kind]["cosine"][s] for s in steps]
                for kind in ("gradient", "weight")
            },
        },
        "layers": {
            key: {"distance": values[-1], "control": trace["bands"]["weight"][key][-1]}
            for key, values in trace["tensors"]["weight"].items()
        },
        "resolution": resolution(trace, dtype),
    }


def _whole(trace: dict[str, Any], kind: str) -> list[float | None]:
    """A kind's relative distance at each step."""
    if kind in trace["whole"]:
        return trace["whole"][kind]["relative"]
    return trace["tensors"][kind][ALL]


def resolution(trace: dict[str, Any], dtype: str) -> dict[str, float | None]:
    """By kind, the largest difference that would have gone unseen in any tensor, at the end."""
    return {
        kind: digits(
            max(
                verdict.allowed(kind, dtype, np.inf if band[-1] is None else band[-1])
                for band in bands.values()
            )
        )
        for kind, bands in trace["bands"].items()
        if bands
    }


def _independent(values: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    accuracies = {
        name: [100 * v["right"] / v["images"] for v in values if v["framework"] == name]
        for name in ("jax", "torch")
    }
    compared = statistics.compare(
        accuracies["jax"], accuracies["torch"], options.margin, options.power
    )
    return {
        "runs": [
            {
                key: v[key]
                for key in ("framework", "seed", "right", "images", "groups", "margin", "nodes")
            }
            for v in values
        ],
        "accuracies": {name: [digits(a) for a in row] for name, row in accuracies.items()},
        "comparison": {key: _rounded(value) for key, value in asdict(compared).items()}
        | {"equivalent": compared.equivalent, "different": compared.different},
        "agreement": _agreement(values),
        "trees": _trees(values, options.settings.nodes),
    }


def _pairs(values: list[dict[str, Any]]) -> dict[str, list[tuple[dict, dict]]]:
    """Every two runs: of JAX, of PyTorch, of both."""
    result: dict[str, list] = {"jax, jax": [], "torch, torch": [], "jax, torch": []}
    for a, b in itertools.combinations(values, 2):
        result[", ".join(sorted((a["framework"], b["framework"])))].append((a, b))
    return result


def _agreement(values: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind of pair: the mean share of equal predictions, and mean kappa."""
    rows = {}
    for name, pairs in _pairs(values).items():
        labels = [(np.array(a["predictions"]), np.array(b["predictions"])) for a, b in pairs]
        kappas = [k for a, b in labels if (k := kappa(a, b)) is not None]
        rows[name] = {
            "pairs": len(pairs),
            "agree": digits(float(np.mean([(a == b).mean() for a, b in labels]))),
            "kappa": digits(float(np.mean(kappas))) if kappas else None,
        }
    return rows


def _trees(values: list[dict[str, Any]], nodes: str) -> dict[str, Any]:
    """By kind of pair: how often the root's groups, and whole trees, are equal; mean ARI.

    `same_trees` is None where only roots were trained; `split`: in how many pairs both roots
    have more than one group.
    """
    rows = {}
    for name, pairs in _pairs(values).items():
        index = [trees.adjusted_rand(a["groups"], b["groups"]) for a, b in pairs]
        rows[name] = {
            "pairs": len(pairs),
            "same_groups": sum(a["groups"] == b["groups"] for a, b in pairs),
            "split": sum(min(len(a["groups"]), len(b["groups"])) > 1 for a, b in pairs),
            "same_trees": None
            if nodes == "root"
            else (sum(a["paths"] == b["paths"] for a, b in pairs)),
            "adjusted_rand": digits(float(np.mean(index))),
            "lowest": digits(float(np.min(index))),
        }
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return digits(value) if isinstance(value, float) else value
