"""A stage: one training of one node. A run folder has its checkpoints and metrics by stage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from data.base import interrupts
from data.recipes.recipe import NodeRecipe, Phase, Recipe
from data.run import runfolder
from data.tree import hierarchy
from data.tree.hierarchy import Node, Tree


@dataclass(frozen=True)
class Stage:
    """A node of a tree and the phase it is trained for.

    `class`: one output a class; `group`: one a group; `joint`: all nodes of the tree together,
    then the node is the root and the stage is called `tree/joint`.
    """

    tree: Tree
    node: Node
    phase: str

    def __str__(self) -> str:
        """What it is called in reports and random streams, e.g. `sg1/class`."""
        return f"{self.name}/{self.phase}"

    @property
    def name(self) -> str:
        """The node's name."""
        return "tree" if self.phase == "joint" else self.tree.names[self.node]

    @property
    def outputs(self) -> int:
        """The number of the node's outputs."""
        if self.phase == "class":
            return len(self.tree.members(self.node))
        return self.tree.width(self.node)

    def targets(self, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The right output for images of these labels; -1 for those that are not the node's."""
        of = self.tree.class_targets if self.phase == "class" else self.tree.targets
        return of(self.node)[labels]

    def settings(self, recipe: Recipe) -> Phase:
        """How a recipe trains it."""
        if self.phase == "joint":
            assert recipe.joint is not None  # or there would be no such stage
            return recipe.joint
        row = row_of(recipe, self.node)
        return row.class_phase if self.phase == "class" else row.group_phase


def stages_of(tree: Tree) -> Iterator[Stage]:
    """The one stage of each node of a tree that is there already, from the root down."""
    for node in sorted(tree.nodes, key=lambda node: (len(node), node)):
        yield Stage(tree, node, "group" if tree.children(node) and not tree.exits else "class")


def row_of(recipe: Recipe, node: Node) -> NodeRecipe:
    """The row of a recipe that applies to a node."""
    return recipe.node(node == hierarchy.ROOT)


def checkpoint_folder(folder: Path, stage: Stage) -> Path:
    """Where a run keeps the stage's checkpoints."""
    return folder / "checkpoints" / stage.name / stage.phase


def reporter(folder: Path, stage: Stage, report: Callable[..., None]) -> Callable[..., None]:
    """`report` for one stage, which also keeps the numbers of each epoch in `metrics.jsonl`.

    The first epoch after an interruption replaces its old line, and drops later ones.
    """
    resumed = False

    def call(row: dict[str, Any] | None = None, **progress: Any) -> None:
        nonlocal resumed
        interrupts.check()
        if row is not None:
            if not resumed:
                runfolder.forget_metrics(folder, stage.name, stage.phase, row["epoch"] - 1)
                resumed = True
            row = {"node": stage.name, "phase": stage.phase, **row}
            runfolder.append_metrics(folder, row)
        report(stage=str(stage), row=row, **progress)

    return call
