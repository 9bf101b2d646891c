"""Loss, optimisers and schedules: PyTorch's own, as a recipe names them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer, lr_scheduler

from data.recipes.recipe import Phase


def loss(scores: Tensor, targets: Tensor, kind: str, smoothing: float = 0.0) -> Tensor:
    """Mean loss of scores [B, outputs] against int64 targets [B].

    `nll`: scores are log-probabilities; `cross_entropy`: raw scores. `smoothing`: the share of
    each target that is spread evenly over all outputs.
    """
    if kind == "nll":
        return functional.nll_loss(scores, targets)
    return functional.cross_entropy(scores, targets, label_smoothing=smoothing)


def optimizer(phase: Phase, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam or SGD with coupled weight decay."""
    if phase.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=phase.lr, betas=phase.betas, weight_decay=phase.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=phase.lr,
        momentum=phase.momentum,
        weight_decay=phase.weight_decay,
        nesterov=phase.nesterov,
    )


def each_step(phase: Phase) -> bool:
    """Whether the phase's schedule is stepped after each batch, not after each epoch."""
    return phase.schedule == "onecycle"


def scheduler(phase: Phase, optimizer: Optimizer, steps: int = 1) -> lr_scheduler.LRScheduler:
    """The phase's schedule, for epochs of `steps` batches; `each_step` says when to step it."""
    if phase.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            phase.lr,
            total_steps=phase.epochs * steps,
            pct_start=phase.warmup,
            cycle_momentum=False,
        )
    if phase.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=phase.period or phase.epochs)
    if phase.milestones:
        return lr_scheduler.MultiStepLR(optimizer, list(phase.milestones), gamma=phase.factor)
    if phase.schedule == "step":
        return lr_scheduler.StepLR(optimizer, phase.period, gamma=phase.factor)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def learning_rates(phase: Phase, steps: int = 1) -> np.ndarray:
    """The learning rate of each step, float64 [epochs * steps]."""
    walk = optimizer(phase, [nn.Parameter(torch.zeros(()))])
    schedule = scheduler(phase, walk, steps)
    rates = []
    for step in range(1, phase.epochs * steps + 1):
        rates += schedule.get_last_lr()
        walk.step()  # nothing has a gradient, so nothing moves
        if each_step(phase) or step % steps == 0:
            schedule.step()
    return np.array(rates, np.float64)
