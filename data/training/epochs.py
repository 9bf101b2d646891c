"""The epochs of a stage: their batches and random choices, and which of them is the best.

All of it follows from the seed and the stage's name, so both frameworks, and a resumed run,
see the same images in the same batches with the same augmentation.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from data.base.errors import UserError
from data.base.streams import integer, stream
from data.images.augmentation import Augmentation, draw
from data.recipes.recipe import Recipe
from data.training.batches import Plan, plan

Targets = Int[np.ndarray, " n"]  # a node's output for each image, -1 for images not its own


@dataclass(frozen=True)
class Pass:
    """A pass over images, its random choices made.

    `policy` and `draws`: the augmentation, drawn for all images. `seed`: of dropout masks.
    `train`: whether the node is in train mode.
    """

    batches: Plan
    policy: Augmentation
    draws: dict[str, np.ndarray]
    seed: int
    train: bool


def training_batches(recipe: Recipe, stage: str, epochs: int, targets: Targets) -> list[Plan]:
    """The batches of each epoch. UserError if there is an epoch without any."""
    plans = []
    for epoch in range(1, epochs + 1):
        batches = plan(
            stream(recipe.seed, stage, epoch, "order").permutation(len(targets)),
            targets >= 0,
            recipe.batch_size,
            subset="subset_batches" in recipe.faults,
            drop_last=True,
        )
        if not batches.images:
            raise UserError(
                f"{stage}: no batch can be filled in epoch {epoch}; lower --batch-size or raise "
                "--limit"
            )
        plans.append(batches)
    return plans


def validation_batches(recipe: Recipe, stage: str, targets: Targets) -> Plan:
    """The batches of every validation, in stored order. UserError if there are none."""
    batches = plan(
        np.arange(len(targets)),
        targets >= 0,
        recipe.eval_batch_size,
        subset="subset_batches" in recipe.faults,
        drop_last="drop_last_validation" in recipe.faults,
    )
    if not batches.images:
        raise UserError(f"{stage}: no validation images; raise --limit")
    return batches


def training(
    recipe: Recipe, stage: str, epoch: int, batches: Plan, count: int, size: tuple[int, int]
) -> Pass:
    """The training pass of an epoch over batches of `count` images of `size` pixels."""
    generator = stream(recipe.seed, stage, epoch, "train", "augmentation")
    draws = draw(recipe.augment, generator, count, *size)
    seed = integer(recipe.seed, stage, epoch, "dropout")
    return Pass(batches, recipe.augment, draws, seed, train=True)


def validation(
    recipe: Recipe, stage: str, epoch: int, batches: Plan, count: int, size: tuple[int, int]
) -> Pass:
    """The validation pass of an epoch, with the release's fault in train mode."""
    generator = stream(recipe.seed, stage, epoch, "check", "augmentation")
    draws = draw(recipe.eval_augment, generator, count, *size)
    seed = integer(recipe.seed, stage, epoch, "check dropout")
    train = "train_mode_validation" in recipe.faults
    return Pass(batches, recipe.eval_augment, draws, seed, train)


def likelihood_part(recipe: Recipe) -> str:
    """The split whose images a node's ASL is taken on.

    `validation`: a node that was trained well no longer confuses its training images. `train`
    with the release's fault `train_mode_asl`.
    """
    return "train" if "train_mode_asl" in recipe.faults else "validation"


def likelihood(recipe: Recipe, node: str, targets: Targets, size: tuple[int, int]) -> Pass:
    """The pass over a node's images of `likelihood_part` that its ASL is taken in.

    In eval mode, without augmentation, over all images; with the release's fault
    `train_mode_asl` in train mode over shuffled, augmented batches, the last partial one
    dropped.
    """
    faulty = "train_mode_asl" in recipe.faults
    order, policy = np.arange(len(targets)), Augmentation()
    if faulty:
        order = stream(recipe.seed, node, "asl order").permutation(len(targets))
        policy = recipe.augment
    batches = plan(
        order,
        targets >= 0,
        recipe.batch_size if faulty else recipe.eval_batch_size,
        subset=faulty and "subset_batches" in recipe.faults,
        drop_last=faulty,
    )
    draws = draw(policy, stream(recipe.seed, node, "asl augmentation"), len(targets), *size)
    return Pass(batches, policy, draws, integer(recipe.seed, node, "asl dropout"), faulty)


def held_out(recipe: Recipe, node: str, targets: Targets, size: tuple[int, int]) -> Pass:
    """The pass over a node's validation images that its groups are chosen by: in eval mode."""
    faults = tuple(fault for fault in recipe.faults if fault != "train_mode_asl")
    return likelihood(dataclasses.replace(recipe, faults=faults), node, targets, size)


@dataclass(frozen=True)
class Position:
    """Where a stage stands: epochs done, and the best of them (0 before the first)."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = 0.0

    def after(self, accuracy: float, ties: str) -> "Position":
        """The position one epoch on.

        Of equally good epochs `ties` (first, last) is the best; with `final` any last one is.
        """
        epoch = self.epoch + 1
        better = accuracy > self.best_accuracy or self.best_epoch == 0 or ties == "final"
        if better or (ties == "last" and accuracy == self.best_accuracy):
            return Position(epoch, epoch, accuracy)
        return dataclasses.replace(self, epoch=epoch)

    @property
    def improved(self) -> bool:
        """Whether the epoch that was just done is the best."""
        return self.best_epoch == self.epoch


def position_from_json(value: Any) -> Position:
    """Read what `dataclasses.asdict` made of a position. ValueError if it is none."""
    try:
        position = Position(**value)
    except TypeError:
        raise ValueError("its position is incomplete") from None
    whole = type(position.epoch) is int and type(position.best_epoch) is int
    if not (whole and 1 <= position.best_epoch <= position.epoch):
        raise ValueError("its position makes no sense")
    if not (type(position.best_accuracy) is float and 0 <= position.best_accuracy <= 1):
        raise ValueError("its position makes no sense")
    return position


def metrics_row(
    epoch: int,
    rate: float,
    train: tuple[float, int, int],
    validation: tuple[float, float],
    seconds: float,
) -> dict[str, Any]:
    """An epoch's numbers as `metrics.jsonl` has them.

    `train`: loss summed over images, right answers, images; `validation`: (accuracy, loss).
    UserError if the training has diverged: what is not a number stays none.
    """
    loss, right, images = train
    if math.isnan(loss):
        raise UserError(
            f"training diverged in epoch {epoch}: the loss is not a number; take a lower learning "
            "rate (a recipe of your own) or another --precision"
        )
    return {
        "epoch": epoch,
        "lr": rate,
        "train_loss": loss / images,
        "train_accuracy": right / images,
        "validation_loss": validation[1],
        "validation_accuracy": validation[0],
        "seconds": round(seconds, 3),
    }
