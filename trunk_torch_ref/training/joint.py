"""Training all nodes of a grown tree together, with gradients through their ancestors."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.images.splits import Splits
from data.recipes.recipe import DISTIL_TEMPERATURE, Phase, Recipe
from data.training import epochs
from data.training import joint as plans
from data.training.course import epochs_left, finish
from data.training.epochs import Pass, Position
from data.training.joint import Layout
from data.tree import metrics
from data.tree.hierarchy import Node, Tree
from trunk_torch_ref.inference import route
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.network.network import channels_last, location, seeded
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training.objective import each_step, loss, optimizer, scheduler
from trunk_torch_ref.training.pixels import Pixels, size_of, with_images
from trunk_torch_ref.training.state import TrainingState


@dataclass(frozen=True)
class State(TrainingState):
    """What training changes, in place; `networks` by node name."""

    networks: nn.ModuleDict
    optimizer: Optimizer
    scheduler: LRScheduler


def objective(
    recipe: Recipe,
    phase: Phase,
    layout: Layout,
    networks: nn.ModuleDict,
    x: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """(loss, number of images that no node on their true path gets wrong).

    The loss of an image is the sum of the losses of the nodes on its true path: with cross
    entropy, minus the log-probability of that path. In a tree with exits these are weighed, nodes
    learn from their children besides (`data.recipes.recipe.Exits`), and an image is right if the
    last node on its true path is. `x`: [B, C, H, W]; `labels`: int64 [B], in the order of `layout`.
    """
    total = x.new_zeros(())
    seen: list[Tensor] = []
    answers: list[Tensor] = []
    right = torch.ones(len(labels), dtype=torch.bool, device=x.device)
    for share in layout.shares:
        if share.parent >= 0:
            above = layout.shares[share.parent]
            x = seen[share.parent][share.start - above.start : share.stop - above.start]
        features, scores = networks[share.name](x)
        seen.append(features)
        answers.append(scores)
        mine = slice(share.start, share.stop)
        targets = torch.tensor(share.targets, device=x.device)[labels[mine]]
        mean = loss(scores, targets, recipe.loss, phase.label_smoothing)
        total = total + mean * (share.weight * len(targets) / layout.width)
        hit = scores.argmax(1) == targets
        if share.above:
            right[mine] = hit
            own = answers[share.parent][share.start - above.start : share.stop - above.start]
            taught = distilled(own[:, list(share.above)], scores)
            total = total + taught * (layout.distil * len(targets) / layout.width)
        else:
            right[mine] &= hit
    return total, right.sum()


def distilled(scores: Tensor, better: Tensor) -> Tensor:
    """Mean cross entropy of scores [B, classes] against a child's for the same classes.

    Both at `DISTIL_TEMPERATURE`, times its square, which keeps the gradient's scale. The child's
    are taken as they are: no gradient flows to it.
    """
    wanted = (better.detach() / DISTIL_TEMPERATURE).softmax(1)
    return DISTIL_TEMPERATURE**2 * functional.cross_entropy(scores / DISTIL_TEMPERATURE, wanted)


def train_step(
    recipe: Recipe, phase: Phase, layout: Layout, state: State, x: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """One step on one batch, in place: (loss, number of right answers), without gradients."""
    state.networks.train()
    state.optimizer.zero_grad()
    lower = phase.precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=lower):
        value, right = objective(recipe, phase, layout, state.networks, x, labels)
    value.backward()
    state.optimizer.step()
    if each_step(phase):
        state.scheduler.step()
    return value.detach(), right


def fit_tree(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    tree: Tree,
    networks: dict[Node, NodeNetwork],
    images: Pixels,
    splits: Splits,
    *,
    restore: Callable[[State, nn.Module], Position | None],
    save: Callable[[State, nn.Module, Position, bool], None],
    report: Callable[..., None],
) -> dict[Node, NodeNetwork]:
    """Train all networks of a tree together, in place, and return those of the best epoch.

    An epoch is chosen by the tree's accuracy on the validation images, each following its
    own decisions to a leaf. `images`: the training images, uint8 [N, C, H, W]. `restore`,
    `save`, `report`: as in `training.fit.fit`; the validation loss is not taken (NaN),
    since it belongs to true paths, not to these.
    """
    names = {tree.names[node]: node for node in networks}
    modules = nn.ModuleDict({name: networks[node] for name, node in names.items()})
    modules = channels_last(modules)
    labels = splits.train.labels
    layout = plans.layout(tree, labels, recipe.batch_size, recipe.balanced, recipe.exits)
    steps = max(1, len(labels) // layout.width)

    moments = optimizer(phase, modules.parameters())
    state = State(modules, moments, scheduler(phase, moments, steps))
    best = copy.deepcopy(modules)
    position = restore(state, best) or Position()
    size = size_of(images)
    for epoch in epochs_left(position, phase.epochs, report):
        rate = float(state.scheduler.get_last_lr()[0])
        batches = plans.batches(recipe, stage, epoch.number, tree, layout, labels)
        run = epochs.training(recipe, stage, epoch.number, batches, len(labels), size)
        trained = _train_epoch(recipe, phase, layout, state, images, labels, run, epoch.report)
        accuracy = _accuracy(Model(recipe, tree, _by_path(modules, names)), splits)
        position = finish(epoch, position, recipe.ties, rate, trained, (accuracy, math.nan))
        if position.improved:
            best = copy.deepcopy(modules)
        if not each_step(phase):
            state.scheduler.step()
        save(state, best, position, epoch.last)
    return _by_path(channels_last(best, False).eval(), names)


def _by_path(modules: nn.ModuleDict, names: dict[str, Node]) -> dict[Node, NodeNetwork]:
    found = {}
    for name, module in modules.items():
        assert isinstance(module, NodeNetwork)  # a ModuleDict's types do not say of what it is
        found[names[name]] = module
    return found


def _train_epoch(
    recipe: Recipe,
    phase: Phase,
    layout: Layout,
    state: State,
    images: Pixels,
    labels: np.ndarray,
    run: Pass,
    report: Callable[..., None],
) -> tuple[float, int, int]:
    """A training pass: (sum of loss times images, right answers, images)."""
    device, dtype = location(state.networks)
    total, right = 0.0, 0
    with seeded(run.seed):
        for step, (index, rows) in enumerate(with_images(images, run), 1):
            mine = {
                name: torch.tensor(values[index], device=device)
                for name, values in run.draws.items()
            }
            x = prepare(rows, mine, run.policy, recipe.mean, recipe.std, dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            truth = torch.tensor(labels[index], dtype=torch.int64, device=device)
            value, correct = train_step(recipe, phase, layout, state, x, truth)
            total += value.item() * len(index)
            right += int(correct)
            report(share=step / len(run.batches.index))
    return total, right, run.batches.images


def _accuracy(model: Model, splits: Splits) -> float:
    """The share of validation images that reach their own leaf, as the recipe counts them."""
    found = route.predict(model, splits.validation.images).labels
    return metrics.accuracy(splits.validation.labels, found, model.recipe.balanced)
