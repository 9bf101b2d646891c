"""Stages that several runs have in common are trained once.

What a stage computes follows from the recipe, its name, its classes and outputs, and the
stages of the nodes above it. Where two recipes differ in volatility alone, stages that agree
in all of these end in the same bits: the root's class phase always, others as far as the trees
are alike. A new run is grown on paper as far as finished runs reach, and is given their
checkpoints and likelihoods; it then finds them as it would its own.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from data.base.streams import stream
from data.base.writing import copy_folder, new_folder
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.training import growth
from data.training.stages import Stage, checkpoint_folder, row_of
from data.tree import grouping, hierarchy
from data.tree.hierarchy import Groups, Path, Tree

Key = tuple[Any, ...]  # a stage, by all that decides it but the recipe


class _Unknown(Exception):
    """No finished run has trained this stage."""


def share(
    folder: FilePath, recipe: Recipe, classes: int, finished: Iterable[FilePath]
) -> list[str]:
    """Give a run folder what `finished` runs have trained of it. The names of those stages.

    The finished runs must be of the same framework, dataset and recipe, volatility aside.
    """
    pool: dict[Key, FilePath] = {}
    for run in finished:
        _walk(classes, lambda key, _, run=run: pool.setdefault(key, run), _recorded(run))
    shared: list[str] = []

    def take(key: Key, stage: Stage) -> None:
        if key not in pool:
            raise _Unknown
        if not checkpoint_folder(folder, stage).exists():
            _copy(pool[key], folder, stage)
        shared.append(str(stage))
        sources[stage.node] = pool[key]

    def decide(tree: Tree, node: Path) -> Groups:
        name, count = tree.names[node], len(hierarchy.members(tree, node))
        mine = runfolder.read_asl(folder, name, count)
        if mine is not None:
            return mine[1]
        asl, _ = runfolder.read_asl(sources[node], name, count)
        volatility = row_of(recipe, node).volatility
        draws = stream(recipe.seed, name, "grouping") if recipe.grouping == "sampled" else None
        groups = grouping.group(asl, volatility, draws)
        runfolder.write_asl(folder, name, asl, volatility, groups)
        return groups

    sources: dict[Path, FilePath] = {}
    with suppress(_Unknown):  # from there on it is trained
        _walk(classes, take, decide)
    return shared


def _walk(
    classes: int, visit: Callable[[Key, Stage], Any], decide: Callable[[Tree, Path], Groups]
) -> None:
    """Go through the stages of a tree in the order in which it is grown."""
    keys: dict[Path, Key] = {}

    def fit(tree: Tree, node: Path, phase: str) -> None:
        stage = Stage(tree, node, phase)
        targets = tuple(stage.targets(np.arange(classes)).tolist())
        keys[node] = (str(stage), targets, tuple(keys[up] for up in hierarchy.ancestors(node)))
        visit(keys[node], stage)

    growth.grow(
        classes,
        fit=fit,
        likelihood=lambda tree, node: np.empty(0),  # `decide` knows where to look for it
        decide=lambda tree, node, take: decide(tree, node),
        finish=lambda tree, node: None,
    )


def _recorded(run: FilePath) -> Callable[[Tree, Path], Groups]:
    def decide(tree: Tree, node: Path) -> Groups:
        found = runfolder.read_asl(run, tree.names[node], len(hierarchy.members(tree, node)))
        if found is None:
            raise FileNotFoundError(run / "asl" / f"{tree.names[node]}.json")
        return found[1]

    return decide


def _copy(source: FilePath, folder: FilePath, stage: Stage) -> None:
    """A stage's metrics and checkpoint; the latter last, whole or not at all."""
    runfolder.forget_metrics(folder, stage.name, stage.phase, 0)
    for row in runfolder.read_metrics(source):
        if (row.get("node"), row.get("phase")) == (stage.name, stage.phase):
            runfolder.append_metrics(folder, row)
    with new_folder(checkpoint_folder(folder, stage)) as aside:
        copy_folder(checkpoint_folder(source, stage), aside)
