"""The independent design: each framework trained as it is, with seeds of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import trunk_jax.framework
import trunk_torch_ref.framework
from data.images.splits import Splits
from data.recipes import recipe
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.training import growth
from data.training.framework import Framework
from data.training.stages import Stage
from data.tree import hierarchy
from data.tree.hierarchy import ROOT, Node, Tree
from data.tree.selection import HeldOut
from parity.study import trees
from parity.study.trace import digits
from trunk_jax.training import fit as jax_fit
from trunk_jax.training import grow as jax_grow
from trunk_torch_ref.training import fit
from trunk_torch_ref.training import grow as torch_grow

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
        mine = recipe.override(
            replace(mine, joint=None, balanced=False), volatility=UNSPLIT, grouping="threshold"
        )
    run = FRAMEWORKS[framework]
    with run.exact():
        grown = run.grow(mine, parts, classes, out, _silent)
        found = run.predict(grown, parts.test.images).labels
    taken = runfolder.read_asl(out, "root", classes)
    assert taken is not None  # the run is finished
    asl, groups = taken
    volatility = runfolder.read_volatility(out, "root")
    if nodes == "root":  # the run itself was not to split
        decision = _decision(chosen, framework, grown.networks[ROOT], parts, asl)
        groups, volatility = decision.groups, decision.volatility
    return {
        "framework": framework,
        "seed": seed,
        "right": int((found == parts.test.labels).sum()),
        "images": len(found),
        "predictions": np.asarray(found).tolist(),
        "groups": [list(group) for group in groups],
        "margin": digits(trees.margin(asl, volatility)),
        "paths": [list(path) for path in grown.tree.paths],
        "nodes": len(grown.networks),
    }


def _decision(
    chosen: Recipe, framework: str, network: Any, parts: Splits, asl: np.ndarray
) -> growth.Decision:
    """The root's groups by a recipe's own rule, after its class phase."""
    stage = Stage(hierarchy.bare(len(asl)), ROOT, "class")
    targets = stage.targets(parts.validation.labels)
    images, known = parts.validation.images, {ROOT: network}

    def held_out() -> HeldOut:
        if framework == "jax":
            program = jax_fit.program_of(chosen, stage.settings(chosen), network)
            mine = jax_fit.Source(jnp.asarray(images), jnp.asarray(targets), ())
            return jax_grow.held_out(chosen, program, network, mine, "root")
        source = fit.Source(torch_grow.as_images(images), torch.tensor(targets).long(), ())
        return torch_grow.held_out(chosen, network, source, "root")

    def cost(tree: Tree, node: Node) -> int:
        height, width, channels = images.shape[1:]
        if framework == "jax":
            return jax_grow.multiply_adds(chosen, tree, node, known, (height, width, channels))
        return torch_grow.multiply_adds(chosen, tree, node, known, (channels, height, width))

    return growth.decision_of(chosen, stage.tree, ROOT, asl, held_out, cost)


def _silent(**progress: Any) -> None:
    pass
