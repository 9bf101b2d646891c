"""The pictures of a run, from the files in its folder."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data.base import reading
from data.base.errors import UserError
from data.images.datasets import Examples
from data.run import derived, results, runfolder
from data.run.dataset import load_of_run
from data.tree import metrics
from data.tree.hierarchy import ROOT, Tree
from trunk_jax.pictures.confusion import confusion_matrix
from trunk_jax.pictures.curves import training_curves
from trunk_jax.pictures.likelihood import likelihoods
from trunk_jax.pictures.tree import tree_picture

_EPOCH: reading.Form = {"node": str, "phase": str, "epoch": int} | {
    f"{part}_{what}?": (float, None)
    for part in ("train", "validation")
    for what in ("accuracy", "loss")
}


def drawings(
    folder: Path, split: str = "test", images: bool = True, data_dir: str | None = None
) -> dict[str, Figure]:
    """Pictures by file name: `tree`, `confusion-<split>`, `curves`, `asl-<node>` of each node.

    `images`: show one of each class at the leaves, which needs the dataset. UserError if the
    run is not finished.
    """
    recipe, tree = runfolder.read_recipe(folder), runfolder.read_tree(folder)
    about = recipe.spec
    names = about.class_names
    summary = results.read_summary(folder)
    what = f"{summary['dataset_title']}, {recipe.backbone} nodes"
    labels, predicted = results.read_predictions(folder, split, len(names))
    samples = None
    if images:
        data = load_of_run(folder, recipe, data_dir)
        samples = first_of_each(data.test, about.turned)
    counts = metrics.confusion(labels, predicted, len(names))
    result = {
        "tree": tree_picture(tree, names, labels, predicted, f"{what}: {split}", samples),
        f"confusion-{split}": confusion_matrix(counts, names, tree, f"{what}: {split}"),
    }
    rows = runfolder.read_metrics(folder)
    try:
        reading.need(rows, [_EPOCH])
    except ValueError as error:
        raise UserError(f"{folder / 'metrics.jsonl'} has other lines than ours ({error})") from None
    if rows:
        result["curves"] = training_curves(
            rows, recipe.ties, f"{what}: training", tree.titles(names, most=6)
        )
    return result | asl_pictures(folder, tree, names)


def asl_pictures(
    folder: Path, tree: Tree, names: tuple[str, ...], untrained: Any = None
) -> dict[str, Figure]:
    """A heat map for each node with an ASL; the root's beside its `untrained` one if measured."""
    result = {}
    titles = tree.titles(names, most=6)
    for node in tree.nodes:
        members = tree.members(node)
        name, title = tree.names[node], titles[tree.names[node]]
        recorded = runfolder.read_asl(folder, name, len(members))
        if recorded is None:
            continue
        matrices = {"after its class phase": recorded[0]}
        if node == ROOT and (before := _untrained(folder, len(names), untrained)) is not None:
            matrices = {"untrained": before} | matrices
        volatility = runfolder.read_volatility(folder, name)
        threshold = math.inf if volatility is None else volatility / len(members)
        result[f"asl-{name}"] = likelihoods(
            matrices,
            [names[label] for label in members],
            recorded[1],
            threshold,
            f"What {title} confuses",
        )
    return result


def _untrained(folder: Path, classes: int, given: Any) -> np.ndarray | None:
    """The untrained root's ASL: that which is given, or `trunk_jax.metrics` has left, if any."""
    if given is not None:
        return np.array(given, np.float64)
    file = derived.find(folder, "measurements.json")
    if not file.exists():
        return None
    value = runfolder.read_json(file)
    try:
        asl = np.array(value["root"]["untrained"], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return asl if asl.shape == (classes, classes) and np.isfinite(asl).all() else None


def first_of_each(examples: Examples, turned: bool) -> dict[int, np.ndarray]:
    """The first image of each class by label; `turned`: EMNIST's, which lie on their side."""
    labels, first = np.unique(examples.labels, return_index=True)
    images = examples.images[first]
    if turned:
        images = images.transpose(0, 2, 1, 3)
    return dict(zip(labels.tolist(), images, strict=True))
