"""Loss, optimisers and schedules: PyTorch's own, as a recipe names them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from data.recipe import Phase

_LOSSES = {"nll": nn.NLLLoss(), "cross_entropy": nn.CrossEntropyLoss()}


def loss(scores: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean loss of scores [B, outputs] against int64 targets [B].

    `nll`: scores are log-probabilities; `cross_entropy`: raw scores.
    """
    return _LOSSES[kind](scores, targets)


def optimizer(phase: Phase, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam or SGD with coupled weight decay."""
    if phase.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=phase.lr, betas=phase.betas, weight_decay=phase.weight_decay
        )
    return torch.optim.SGD(
        parameters, lr=phase.lr, momentum=phase.momentum, weight_decay=phase.weight_decay
    )


def scheduler(phase: Phase, optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """The phase's schedule, to be stepped after each epoch."""
    if phase.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=phase.period or phase.epochs)
    if phase.schedule == "step":
        return lr_scheduler.StepLR(optimizer, phase.period, gamma=phase.factor)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def learning_rates(phase: Phase) -> np.ndarray:
    """The learning rate of each epoch, float64 [epochs]."""
    walk = optimizer(phase, [nn.Parameter(torch.zeros(()))])
    schedule = scheduler(phase, walk)
    rates = []
    for _ in range(phase.epochs):
        rates += schedule.get_last_lr()
        walk.step()  # nothing has a gradient, so nothing moves
        schedule.step()
    return np.array(rates, np.float64)
