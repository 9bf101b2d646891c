"""Checks of optimisers and schedules: every phase of every recipe, step by step, to its end.

The recipes of trees and of the monolithic baselines.
"""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data.base.errors import UserError
from data.images import specs
from data.recipes import recipe as recipes
from data.recipes.baselines import models as baselines
from data.recipes.recipe import Phase
from parity.checks import tolerance
from parity.checks.tolerance import Check
from parity.pairs.passes import DTYPES
from trunk_jax.training import objective as ours
from trunk_torch_ref.training import objective as theirs

STEPS_AN_EPOCH = 2
SIZE = 128
FIRST = 5


def phases() -> dict[Phase, str]:
    """Every phase of every recipe, equal ones once, with the name of the first that has it."""
    found: dict[Phase, str] = {}
    for name in recipes.names():
        for dataset, backbone in recipes.combinations(name):
            recipe = recipes.load(name, dataset, backbone)
            for row, node in (("root", recipe.root), ("others", recipe.others)):
                for kind in ("class", "group"):
                    phase = getattr(node, f"{kind}_phase")
                    found.setdefault(phase, f"{name} {dataset} {backbone} {row} {kind}")
            if recipe.joint is not None:
                found.setdefault(recipe.joint, f"{name} {dataset} {backbone} joint")
    for model, name in itertools.product(baselines.MODELS, baselines.RECIPES):
        for dataset in specs.SPECS:
            with contextlib.suppress(UserError):  # not every model has a recipe for each
                recipe = baselines.load(model, dataset, name, weights=baselines.NO_WEIGHTS)
                found.setdefault(recipe.root.class_phase, f"{name} {dataset} {model}")
    return found


def check_phase(name: str, phase: Phase, seed: int) -> list[Check]:
    """The learning rate of each epoch, and parameters after each step of the whole phase."""
    rates = ours.learning_rates(phase, STEPS_AN_EPOCH)
    checks = [
        tolerance.close(
            name,
            f"learning rate, {phase.epochs} epochs",
            rates,
            theirs.learning_rates(phase, STEPS_AN_EPOCH),
            tolerance.VALUE_64,
            scale=phase.lr,
        )
    ]
    rng = np.random.default_rng([seed, 2])
    steps = STEPS_AN_EPOCH * phase.epochs
    # Parameters as large as a step: at their usual size they would hide an error of the step.
    start = (phase.lr * rng.normal(size=SIZE)).astype(np.float32).astype(np.float64)
    # magnitudes over eight decades, for the second moment and its epsilon to matter
    gradients = rng.normal(size=(steps, SIZE)) * 10.0 ** rng.uniform(-8, 0, (1, SIZE))
    gradients = gradients.astype(np.float32).astype(np.float64)
    truth = torch_walk(phase, start, gradients, "float64")
    ours64, ours32 = (jax_walk(phase, start, gradients, kind) for kind in ("float64", "float32"))
    theirs32 = torch_walk(phase, start, gradients, "float32")
    # Bias corrections matter most in the first steps; an error there is lost in a long walk.
    for count in sorted({min(FIRST, steps), steps}):
        what = f"parameters over {count} steps of {phase.optimizer}"
        part = slice(0, count)
        checks.append(tolerance.close(name, what, ours64[part], truth[part], tolerance.VALUE_64))
        growth = float(np.sqrt(count))
        checks.append(tolerance.fair(name, what, ours32[part], theirs32[part], truth[part], growth))
    return checks


def jax_walk(phase: Phase, start: np.ndarray, gradients: np.ndarray, dtype: str) -> np.ndarray:
    """Parameters after each step, [steps, size]."""
    with jax.enable_x64(dtype == "float64"):
        kind = DTYPES[dtype][0]
        transform = ours.optimizer(phase)
        rates = jnp.asarray(ours.learning_rates(phase, STEPS_AN_EPOCH), kind)

        def step(carry, now):
            params, moments = carry
            gradient, rate = now
            update, moments = transform.update(gradient, moments, params)
            params = ours.descend(params, update, rate)
            return (params, moments), params

        params = jnp.asarray(start, kind)
        carry = params, transform.init(params)
        walk = jax.jit(lambda carry, now: jax.lax.scan(step, carry, now)[1])
        return np.asarray(walk(carry, (jnp.asarray(gradients, kind), rates)))


def torch_walk(phase: Phase, start: np.ndarray, gradients: np.ndarray, dtype: str) -> np.ndarray:
    """Parameters after each step, [steps, size]."""
    kind = DTYPES[dtype][1]
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=kind))
    optimizer = theirs.optimizer(phase, [parameter])
    scheduler = theirs.scheduler(phase, optimizer, STEPS_AN_EPOCH)
    walk = []
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = torch.tensor(gradient, dtype=kind)
        optimizer.step()
        walk.append(parameter.detach().cpu().numpy().copy())
        if theirs.each_step(phase) or step % STEPS_AN_EPOCH == 0:
            scheduler.step()
    return np.array(walk)
