"""Stages that several runs have in common are trained once.

What a stage computes follows from the recipe, its name, its classes and outputs, and the
stages of the nodes above it. Where two recipes differ in volatility alone, stages that agree
in all of these end in the same bits: the root's class phase always, others as far as the trees
are alike. A new run is grown on paper as far as finished runs reach, and is given their
checkpoints and likelihoods; it then finds them as it would its own.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.base.locking import need_free
from data.base.writing import copy_folder, new_folder
from data.recipes.recipe import AUTO, Recipe
from data.run import runfolder
from data.training import growth
from data.training.stages import Stage, checkpoint_folder, row_of
from data.tree import hierarchy
from data.tree.hierarchy import Groups, Node, Tree

Key = tuple[Any, ...]  # a stage, by all that decides it but the recipe


class _Unknown(Exception):
    """No finished run has trained this stage."""


def share(folder: Path, recipe: Recipe, classes: int, finished: Iterable[Path]) -> list[str]:
    """Give a run folder what `finished` runs have trained of it. The names of those stages.

    The runs stay as they are. Of one that was stopped, what it has is taken.

    The finished runs must be of the same framework, dataset and recipe, volatility aside.
    """
    pool: dict[Key, Path] = {}

    def own(run: Path, key: Key, stage: Stage) -> None:
        if checkpoint_folder(run, stage).is_dir():
            pool.setdefault(key, run)

    for run in finished:
        with suppress(_Unknown):  # it was stopped before its end
            _walk(classes, recipe, partial(own, run), _recorded(run))
    shared: list[str] = []

    def take(key: Key, stage: Stage) -> None:
        if key not in pool:
            raise _Unknown
        if not checkpoint_folder(folder, stage).exists():
            _copy(pool[key], folder, stage)
        shared.append(str(stage))
        sources[stage.node] = pool[key]

    def decide(tree: Tree, node: Node) -> Groups:
        name, count = tree.names[node], len(tree.members(node))
        mine = runfolder.read_asl(folder, name, count)
        if mine is not None:
            return mine[1]
        theirs = runfolder.read_asl(sources[node], name, count)
        if theirs is None:
            raise _Unknown
        asl, _ = theirs
        if row_of(recipe, node).volatility == AUTO:
            raise _Unknown  # it takes the network to choose
        decision = growth.decision_of(recipe, tree, node, asl, _not_here, _not_here)
        growth.record(folder, name, decision)
        return decision.groups

    sources: dict[Node, Path] = {}
    with suppress(_Unknown):  # from there on it is trained
        _walk(classes, recipe, take, decide)
    return shared


def _walk(
    classes: int,
    recipe: Recipe,
    visit: Callable[[Key, Stage], Any],
    decide: Callable[[Tree, Node], Groups],
) -> None:
    """Go through the stages of a tree in the order in which it is grown."""
    keys: dict[Node, Key] = {}

    def fit(tree: Tree, node: Node, phase: str) -> None:
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
        **growth.kind_of(recipe),
    )


def check_source(run: Path, classes: int, config: dict[str, Any]) -> None:
    """UserError if a run has no class phase of the root to take, or one of another kind.

    `config`: that of the run which is to take it; data and settings must be the same.
    """
    theirs = runfolder.read_config(run)
    stage = Stage(hierarchy.bare(classes), hierarchy.ROOT, "class")
    if theirs.get("dataset_sha256") != config["dataset_sha256"]:
        raise UserError(f"{run} was trained on other data; give the --data-dir that it had")
    different = runfolder.differences(
        config["settings"], theirs.get("settings", config["settings"])
    )
    if different:
        raise UserError(f"{run} was trained under other settings ({'; '.join(different)})")
    need_free(run)
    if (
        not checkpoint_folder(run, stage).is_dir()
        or runfolder.read_asl(run, "root", classes) is None
    ):
        raise UserError(
            f"{run} has no trained class phase of the root ({checkpoint_folder(run, stage)} and "
            f"{run / 'asl' / 'root.json'}); --from takes a run that trained here, with its "
            "checkpoints"
        )


def _not_here(*_: Any) -> Any:
    raise NotImplementedError("a volatility that is given needs no network")


def _recorded(run: Path) -> Callable[[Tree, Node], Groups]:
    def decide(tree: Tree, node: Node) -> Groups:
        found = runfolder.read_asl(run, tree.names[node], len(tree.members(node)))
        if found is None:
            raise _Unknown
        return found[1]

    return decide


def _copy(source: Path, folder: Path, stage: Stage) -> None:
    """A stage's metrics and checkpoint; the latter last, whole or not at all."""
    runfolder.forget_metrics(folder, stage.name, stage.phase, 0)
    for row in runfolder.read_metrics(source):
        if (row.get("node"), row.get("phase")) == (stage.name, stage.phase):
            runfolder.append_metrics(folder, row)
    with new_folder(checkpoint_folder(folder, stage)) as aside:
        copy_folder(checkpoint_folder(source, stage), aside)
