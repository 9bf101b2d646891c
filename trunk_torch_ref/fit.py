"""Training one node, a batch at a time."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data import metrics, streams
from data.augmentation import Augmentation, draw
from data.batches import Plan, plan
from data.errors import UserError
from data.recipe import Phase, Recipe
from trunk_torch_ref.augment import prepare
from trunk_torch_ref.network import features, location, seeded
from trunk_torch_ref.nodes import Node
from trunk_torch_ref.objective import loss, optimizer, scheduler

Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Images on the device and how a node sees them.

    `images`: uint8 [N, C, H, W]. `targets`: int64 [N], the node's output for each image, -1
    for images that are not its own. `above`: the networks of its ancestors, root first;
    frozen, in eval mode.
    """

    images: Tensor
    targets: Tensor
    above: tuple[Node, ...]


@dataclass(frozen=True)
class State:
    """What training changes, in place."""

    network: Node
    optimizer: Optimizer
    scheduler: LRScheduler

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain values and tensors."""
        return {name: getattr(self, name).state_dict() for name in vars(self)}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Overwrite it with `state_dict`'s values."""
        for name in vars(self):
            getattr(self, name).load_state_dict(values[name])


@dataclass(frozen=True)
class Result:
    """A trained node: the best epoch's network, its validation accuracy and number."""

    network: Node
    accuracy: float
    epoch: int


@torch.no_grad()
def inputs(
    recipe: Recipe,
    source: Source,
    policy: Augmentation,
    index: np.ndarray,
    draws: Draws,
    dtype: torch.dtype,
) -> Tensor:
    """What the node is given for the images at `index`: augmented, normalised, through `above`.

    `index`: int [B]; `draws` for all images. Returns [B, C, H, W] of `dtype`.
    """
    device = source.images.device
    mine = {name: torch.tensor(values[index], device=device) for name, values in draws.items()}
    images = source.images[torch.tensor(index, dtype=torch.int64, device=device)]
    x = prepare(images, mine, policy, recipe.mean, recipe.std, dtype)
    for network in source.above:
        x = features(network, x)
    return x


def train_step(
    network: Node, optimizer: Optimizer, x: Tensor, targets: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """One step on one batch, in place: (loss, number of right answers), without gradients.

    `x`: [B, C, H, W]; `targets`: int64 [B]; `kind`: the loss.
    """
    network.train()
    optimizer.zero_grad()
    _, scores = network(x)
    value = loss(scores, targets, kind)
    value.backward()
    optimizer.step()
    return value.detach(), (scores.argmax(1) == targets).sum()


@torch.no_grad()
def evaluate(
    recipe: Recipe,
    policy: Augmentation,
    train: bool,
    network: Node,
    source: Source,
    batches: Plan,
    draws: Draws,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores [n, outputs], targets [n]) over the images of a plan, in its order.

    With `train` the release's fault: batch statistics, which the network's running ones
    absorb, and dropout, its masks drawn from `seed`.
    """
    _, dtype = location(network)
    scores, targets = [], []
    with seeded(seed):
        for row, valid in zip(batches.index, batches.valid, strict=True):
            x = inputs(recipe, source, policy, row[valid], draws, dtype)
            scores.append(network.train(train)(x)[1].cpu().numpy())
            targets.append(source.targets.cpu().numpy()[row[valid]])
    return np.concatenate(scores), np.concatenate(targets)


def fit(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    network: Node,
    train: Source,
    validation: Source,
    *,
    restore: Callable[[State, Node], dict[str, Any] | None],
    save: Callable[[State, Node, dict[str, Any], bool], None],
    report: Callable[..., None],
) -> Result:
    """Train `network`, in place, for a phase and return its best epoch.

    Args:
      stage: names the random streams, e.g. `sg1/class`.
      restore: fills in the state and best network of an interrupted run; its position.
      save: called after each epoch with the same; its last argument tells the final one.
      report: called with the epoch's numbers, and during it with how far it is.

    An epoch: train, validate, keep if strictly better, then the next learning rate.

    """
    faulty = "train_mode_validation" in recipe.faults
    subset = "subset_batches" in recipe.faults
    targets, validation_targets = train.targets.cpu().numpy(), validation.targets.cpu().numpy()
    checks = plan(
        np.arange(len(validation_targets)),
        validation_targets >= 0,
        recipe.eval_batch_size,
        subset=subset,
        drop_last="drop_last_validation" in recipe.faults,
    )
    if not checks.images:
        raise UserError(f"{stage}: no validation images; raise --limit")

    moments = optimizer(phase, network.parameters())
    state = State(network, moments, scheduler(phase, moments))
    best, position = copy.deepcopy(network), {"epoch": 0, "best_epoch": 0, "best_accuracy": 0.0}
    position = restore(state, best) or position
    for epoch in range(position["epoch"] + 1, phase.epochs + 1):
        began = time.perf_counter()
        rate = state.scheduler.get_last_lr()[0]
        order = streams.stream(recipe.seed, stage, epoch, "order").permutation(len(targets))
        batches = plan(order, targets >= 0, recipe.batch_size, subset=subset, drop_last=True)
        if not batches.images:
            raise UserError(f"{stage}: no batch can be filled; lower --batch-size or raise --limit")
        total, right = _train_epoch(recipe, state, train, batches, stage, epoch, phase, report)
        draws = _draws(recipe, recipe.eval_augment, validation, stage, epoch, "check")
        scores, truth = evaluate(
            recipe, recipe.eval_augment, faulty, network, validation, checks, draws,
            streams.integer(recipe.seed, stage, epoch, "check dropout"),
        )  # fmt: skip
        accuracy, check_loss = metrics.score_accuracy(scores, truth)
        position = position | {"epoch": epoch}
        if accuracy > position["best_accuracy"] or position["best_epoch"] == 0:
            best = copy.deepcopy(network)
            position |= {"best_epoch": epoch, "best_accuracy": accuracy}
        state.scheduler.step()
        row = {
            "epoch": epoch,
            "lr": rate,
            "train_loss": total / batches.images,
            "train_accuracy": right / batches.images,
            "validation_loss": check_loss,
            "validation_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 3),
        }
        report(epoch=epoch, epochs=phase.epochs, share=1.0, row=row)
        save(state, best, position, epoch == phase.epochs)
    return Result(best.eval(), position["best_accuracy"], position["best_epoch"])


def _train_epoch(
    recipe: Recipe,
    state: State,
    source: Source,
    batches: Plan,
    stage: str,
    epoch: int,
    phase: Phase,
    report: Callable[..., None],
) -> tuple[float, int]:
    """One pass over the batches: (sum of loss times images, right answers)."""
    _, dtype = location(state.network)
    draws = _draws(recipe, recipe.augment, source, stage, epoch, "train")
    total, right = 0.0, 0
    with seeded(streams.integer(recipe.seed, stage, epoch, "dropout")):
        for step, (row, valid) in enumerate(zip(batches.index, batches.valid, strict=True), 1):
            index = row[valid]
            x = inputs(recipe, source, recipe.augment, index, draws, dtype)
            targets = source.targets[torch.tensor(index, dtype=torch.int64, device=x.device)]
            value, correct = train_step(state.network, state.optimizer, x, targets, recipe.loss)
            total += value.item() * len(index)
            right += int(correct)
            report(epoch=epoch, epochs=phase.epochs, share=step / len(batches.index))
    return total, right


def _draws(
    recipe: Recipe, policy: Augmentation, source: Source, stage: str, epoch: int, name: str
) -> Draws:
    generator = streams.stream(recipe.seed, stage, epoch, name, "augmentation")
    count, _, height, width = source.images.shape
    return draw(policy, generator, count, height, width)
