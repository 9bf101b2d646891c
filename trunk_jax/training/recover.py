"""Training a tree further once channels were taken out of it, to win back what that cost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.base import interrupts
from data.images.splits import Splits
from data.inference.model import Model
from data.recipes.recipe import Phase, Recipe
from data.tree.hierarchy import Node
from trunk_jax.network.network import Network
from trunk_jax.training import joint
from trunk_jax.training.checkpoint import Checkpoints

STAGE = "tree/recovery"
RATE = 0.2  # of the recipe's learning rate: the weights are nearly right already


def phase_of(recipe: Recipe, epochs: int) -> Phase:
    """How a tree of this recipe is trained further: as it was trained last, more gently."""
    last = recipe.joint or recipe.root.group_phase
    schedule = last.schedule if last.schedule == "onecycle" else "cosine"
    return replace(last, epochs=epochs, lr=RATE * last.lr, schedule=schedule, period=0)


def recover(
    model: Model, epochs: int, splits: Splits, folder: Path, report: Callable[..., None]
) -> dict[Node, Network]:
    """The networks of a tree after so many epochs of training all of them together.

    The epoch with the best validation accuracy is kept. `folder`: for checkpoints; what it holds
    of the same training is gone on with. `report`: told the numbers of each epoch and how far it
    is, as `data.base.progress.Reporter`.

    Example: `recover(load(Path("runs/demo-prune20")), 10, splits, Path("state"), report)`

    """

    def tell(**progress: Any) -> None:
        interrupts.check()
        report(stage=STAGE, **progress)

    with Checkpoints(folder) as checkpoints:
        return joint.fit_tree(
            model.recipe,
            phase_of(model.recipe, epochs),
            STAGE,
            model.tree,
            dict(model.networks),
            splits,
            restore=checkpoints.restore,
            save=checkpoints.save,
            report=tell,
        )
