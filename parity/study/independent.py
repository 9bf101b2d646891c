"""The independent design: each framework trained as it is, with seeds of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import trunk_jax.framework
import trunk_torch_ref.framework
from data.images.splits import Splits
from data.recipes import recipe
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.training.framework import Framework
from data.training.stages import row_of
from data.tree import grouping
from data.tree.hierarchy import ROOT
from parity.study import trees
from parity.study.trace import digits

FRAMEWORKS: dict[str, Framework] = {
    "jax": trunk_jax.framework.FRAMEWORK,
    "torch": trunk_torch_ref.framework.FRAMEWORK,
}
UNSPLIT = 1e-30  # a volatility below any likelihood: all classes are alike, the root stays alone


def seed_of(framework: str, place: int, seeds: int) -> int:
    """The seed of a framework's run number `place`; no two runs of a study share one."""
    return place + (seeds if framework == "torch" else 0)


def independent(
    chosen: Recipe, parts: Splits, classes: int, framework: str, seed: int, nodes: str, out: Path
) -> dict[str, Any]:
    """Train once, with native initial weights and random streams from `seed`, and test.

    `out`: the run's folder, in which an interrupted training goes on. The splits are given: the
    spread over seeds is of weights, order, augmentation and dropout, not of the choice of images.
    """
    mine = replace(chosen, seed=seed)
    if nodes == "root":
        mine = recipe.override(replace(mine, joint=None, balanced=False), volatility=UNSPLIT,
                               grouping="threshold")  # fmt: skip
    run = FRAMEWORKS[framework]
    with run.exact():
        grown = run.grow(mine, parts, classes, out, _silent)
        found = run.predict(mine, grown.tree, grown.networks, parts.test.images).labels
    asl, groups = runfolder.read_asl(out, "root", classes)
    if nodes == "root":
        groups = grouping.group(asl, row_of(chosen, ROOT).volatility)
    return {
        "framework": framework,
        "seed": seed,
        "right": int((found == parts.test.labels).sum()),
        "images": len(found),
        "predictions": np.asarray(found).tolist(),
        "groups": [list(group) for group in groups],
        "margin": digits(trees.margin(asl, row_of(chosen, ROOT).volatility)),
        "paths": [list(path) for path in grown.tree.paths],
        "nodes": len(grown.networks),
    }


def _silent(**progress: Any) -> None:
    pass
