"""Training one node, a batch at a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.images.augmentation import Augmentation
from data.recipes.recipe import Phase, Recipe
from data.training import epochs
from data.training.course import epochs_left, finish
from data.training.epochs import Pass, Position
from data.tree import metrics
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.network.network import channels_last, features, location, seeded
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training.objective import each_step, loss, optimizer, scheduler
from trunk_torch_ref.training.pixels import Pixels, batches, size_of, with_images
from trunk_torch_ref.training.state import TrainingState

Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Images, on the device or on disk, and how a node sees them.

    `images`: uint8 [N, C, H, W]. `targets`: int64 [N], the node's output for each image, -1
    for images that are not its own. `above`: the networks of its ancestors, root first;
    frozen, in eval mode.
    """

    images: Pixels
    targets: Tensor
    above: tuple[NodeNetwork, ...]


@dataclass(frozen=True)
class State(TrainingState):
    """What training changes, in place."""

    network: NodeNetwork
    optimizer: Optimizer
    scheduler: LRScheduler


@dataclass(frozen=True)
class Result:
    """A trained node: the best epoch's network, its validation accuracy and number."""

    network: NodeNetwork
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
    images: Tensor | None = None,
) -> Tensor:
    """What the node is given for the images at `index`: augmented, normalised, through `above`.

    `index`: int [B]; `draws` for all images; `images`: those at `index`, if they were read already.
    Returns [B, C, H, W] of `dtype`.
    """
    device = source.images.device
    mine = {name: torch.tensor(values[index], device=device) for name, values in draws.items()}
    if images is None:
        (images,) = batches(source.images, [index])
    x = prepare(images, mine, policy, recipe.mean, recipe.std, dtype)
    x = x.contiguous(memory_format=torch.channels_last)  # in which CPU convolutions are fast
    for network in source.above:
        x = features(network, x)
    return x


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    targets: Tensor,
    kind: str,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One step on one batch, in place: (loss, number of right answers), without gradients.

    `x`: [B, C, H, W]; `targets`: int64 [B]; `kind`, `smoothing`: the loss.
    """
    network.train()
    optimizer.zero_grad()
    _, scores = network(x)
    value = loss(scores, targets, kind, smoothing)
    value.backward()
    optimizer.step()
    return value.detach(), (scores.argmax(1) == targets).sum()


@torch.no_grad()
def evaluate(
    recipe: Recipe, network: NodeNetwork, source: Source, run: Pass
) -> tuple[np.ndarray, np.ndarray]:
    """(scores [n, outputs], targets [n]) over the images of a pass, in its order.

    With `run.train` the release's fault: batch statistics, which the network's running ones
    absorb, and dropout, its masks drawn from `run.seed`.
    """
    _, dtype = location(network)
    scores, targets = [], []
    with seeded(run.seed):
        for index, images in with_images(source.images, run):
            x = inputs(recipe, source, run.policy, index, run.draws, dtype, images)
            scores.append(network.train(run.train)(x)[1].cpu().numpy())
            targets.append(source.targets.cpu().numpy()[index])
    return np.concatenate(scores), np.concatenate(targets)


def fit(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    network: NodeNetwork,
    train: Source,
    validation: Source,
    *,
    restore: Callable[[State, NodeNetwork], Position | None],
    save: Callable[[State, NodeNetwork, Position, bool], None],
    report: Callable[..., None],
) -> Result:
    """Train `network`, in place, for a phase and return its best epoch.

    Args:
      stage: names the random streams, e.g. `sg1/class`.
      restore: fills in the state and best network of an interrupted run; its position.
      save: called after each epoch with the same; its last argument tells the final one.
      report: called with the epoch's numbers, and during it with how far it is.

    An epoch: train, validate, keep if best, then the next learning rate.

    """
    targets, check_targets = train.targets.cpu().numpy(), validation.targets.cpu().numpy()
    size = size_of(train.images)
    plans = epochs.training_batches(recipe, stage, phase.epochs, targets)
    checks = epochs.validation_batches(recipe, stage, check_targets)

    network = channels_last(network)
    moments = optimizer(phase, network.parameters())
    schedule = scheduler(phase, moments, max(len(batches.index) for batches in plans))
    state, best = State(network, moments, schedule), copy.deepcopy(network)
    position = restore(state, best) or Position()
    for epoch in epochs_left(position, phase.epochs, report):
        rate, batches = float(state.scheduler.get_last_lr()[0]), plans[epoch.number - 1]
        run = epochs.training(recipe, stage, epoch.number, batches, len(targets), size)
        trained = _train_epoch(recipe, phase, state, train, run, epoch.report)
        run = epochs.validation(recipe, stage, epoch.number, checks, len(check_targets), size)
        validated = metrics.score_accuracy(*evaluate(recipe, network, validation, run))
        position = finish(epoch, position, recipe.ties, rate, trained, validated)
        if position.improved:
            best = copy.deepcopy(network)
        if not each_step(phase):
            state.scheduler.step()
        save(state, best, position, epoch.last)
    return Result(best.eval(), position.best_accuracy, position.best_epoch)


def _train_epoch(
    recipe: Recipe,
    phase: Phase,
    state: State,
    source: Source,
    run: Pass,
    report: Callable[..., None],
) -> tuple[float, int, int]:
    """A training pass: (sum of loss times images, right answers, images)."""
    _, dtype = location(state.network)
    total, right = 0.0, 0
    with seeded(run.seed):
        for step, (index, images) in enumerate(with_images(source.images, run), 1):
            x = inputs(recipe, source, run.policy, index, run.draws, dtype, images)
            targets = source.targets[torch.tensor(index, dtype=torch.int64, device=x.device)]
            value, correct = train_step(
                state.network, state.optimizer, x, targets, recipe.loss, phase.label_smoothing
            )
            if each_step(phase):
                state.scheduler.step()
            total += value.item() * len(index)
            right += int(correct)
            report(share=step / len(run.batches.index))
    return total, right, run.batches.images
