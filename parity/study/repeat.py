"""A step of PyTorch's training, taken by both frameworks in both types from one state.

The state is PyTorch's from before the step: weights, statistics, finished ancestors, the
optimiser's moments and number of steps. The batch, its augmentation and the dropout masks are the
step's. In float64 both start from the same float32 numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch

from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training import epochs
from data.training.stages import Stage
from data.tree.hierarchy import ancestors
from parity.pairs.passes import channel_first
from parity.study import jax_runner, lead, moments, torch_runner
from parity.study.jax_runner import JaxRunner
from parity.study.moments import Moments
from parity.study.shadow import double
from parity.study.step import Arrays, Step
from parity.study.torch_runner import TorchRunner
from trunk_jax.network.network import Network, apply


@dataclass(frozen=True)
class Taken:
    """A step and what else came of it: `x`, [b, c, h, w], the node's input; its scores, [b, n].

    `moments`: the optimiser's after the step. `rate`: the learning rate. `evaluated`: scores of the
    same batch in eval mode before the step, where they were asked for.
    """

    step: Step
    x: np.ndarray
    scores: np.ndarray
    moments: Moments
    rate: float
    evaluated: np.ndarray | None = None


@dataclass(frozen=True)
class Start:
    """What a step started from, in float32: the state_dict and the optimiser's moments."""

    state: Arrays
    moments: Moments


@dataclass(frozen=True)
class Repeated:
    """`taken`: by type and framework. `masks`: dropout's, by layer."""

    before: Start
    taken: Mapping[str, Mapping[str, Taken]]
    masks: Arrays
    targets: np.ndarray


class Repeater:
    """Both frameworks, in the types asked for, in one stage of a training.

    Use it inside `jax_runner.recording()`. `above`: the stages of the node's ancestors with their
    finished weights, root first. `compiled`: kept by the caller, for all stages.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: Splits,
        stage: Stage,
        above: Sequence[tuple[Stage, Arrays]],
        dtypes: Sequence[str],
        compiled: dict[Any, Any],
    ):
        self.recipe, self.parts, self.stage, self.dtypes = recipe, parts, stage, tuple(dtypes)
        self.course = lead.course(recipe, parts, stage)
        images = torch_runner.images_of(parts)
        self.torch = {
            dtype: TorchRunner(recipe, parts, dtype, images) for dtype in ("float32", "float64")
        }
        self.jax: dict[str, JaxRunner] = {}
        for dtype in self.dtypes:
            with jax.enable_x64(dtype == "float64"):
                shared = compiled.setdefault(dtype, {})
                ours = jax_runner.images_of(parts)
                self.jax[dtype] = JaxRunner(recipe, parts, dtype, ours, shared)
        for each, weights in above:
            self._begin(each, weights, 1)
            runners: list[JaxRunner | TorchRunner] = [*self.torch.values(), *self.jax.values()]
            for runner in runners:
                runner.end()
        self._begin(stage, self.torch["float32"].initial(stage), self.course.steps)
        self.depth = len(ancestors(stage.node))

    def _begin(self, stage: Stage, state: Arrays, steps: int) -> None:
        wide = double(state)
        for dtype, runner in self.torch.items():
            runner.begin(stage, state if dtype == "float32" else wide, steps)
        for dtype, ours in self.jax.items():
            with jax.enable_x64(dtype == "float64"):
                ours.begin(stage, state if dtype == "float32" else wide, steps)

    def start(self, epoch: int, snapshot: dict[str, Any]) -> None:
        """Go to a snapshot of the training, in this epoch (from 1)."""
        plan, size = self.course, self.parts.train.images.shape[1:3]
        batches = plan.plans[epoch - 1]
        run = epochs.training(self.recipe, str(self.stage), epoch, batches, len(plan.targets), size)
        for runner in self.torch.values():
            runner.epoch(run, plan.width)
        for dtype, ours in self.jax.items():
            with jax.enable_x64(dtype == "float64"):
                ours.done = epoch - 1
                ours.epoch(run, plan.width)
        lead.restore(self.torch["float32"], snapshot)

    def step(self, number: int, evaluate: bool = False) -> Repeated:
        """Train PyTorch by a step of the epoch, and repeat it.

        `evaluate`: also give the batch to the network in eval mode, before the step.
        """
        theirs = self.torch["float32"]
        before = lead.snapshot(theirs)
        start = Start(
            {key: value.numpy() for key, value in before["network"].items()},
            moments.of_torch(theirs.optimizer, theirs.network),
        )
        taken: dict[str, dict[str, Taken]] = {dtype: {} for dtype in self.dtypes}
        found = _torch_step(theirs, number, evaluate)
        masks = theirs.masks
        if "float32" in taken:
            taken["float32"]["torch"] = found
        wide = self.torch["float64"]
        lead.restore(wide, before)  # into float64, PyTorch's way
        truth = _torch_step(wide, number, evaluate)
        for name, mask in wide.masks.items():
            if not np.array_equal(mask, masks[name]):
                raise AssertionError(f"{name}: float64 drew other dropout masks than float32")
        if "float64" in taken:
            taken["float64"]["torch"] = truth
        for dtype, ours in self.jax.items():
            narrow = dtype == "float32"
            with jax.enable_x64(not narrow):
                state = start.state if narrow else double(start.state)
                known = start.moments if narrow else moments.double(start.moments)
                taken[dtype]["jax"] = _jax_step(ours, number, masks, state, known, evaluate)
        if "float64" not in taken:
            taken["float64"] = {"torch": truth}
        self._before = before
        return Repeated(start, taken, masks, theirs.targets(number).numpy())

    def updated(self, gradients: Arrays) -> tuple[Arrays, Moments]:
        """What PyTorch's float64 optimiser makes of the last step's start with these gradients."""
        wide = self.torch["float64"]
        lead.restore(wide, self._before)
        state = wide.update(double(lead_state(self._before)), double(gradients))
        return state, moments.of_torch(wide.optimizer, wide.network)

    def module(self) -> torch.nn.Module:
        """The network at the last step's beginning, in float64."""
        return self.torch["float64"].module(double(lead_state(self._before)))

    def above(self) -> list[torch.nn.Module]:
        """The node's finished ancestors in float64, root first."""
        wide = self.torch["float64"]
        return [wide.networks[node] for node in ancestors(self.stage.node)]


def lead_state(before: dict[str, Any]) -> Arrays:
    """A snapshot's state_dict in NumPy."""
    return {key: value.numpy() for key, value in before["network"].items()}


def _torch_step(runner: TorchRunner, number: int, evaluate: bool) -> Taken:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    evaluated = None
    if evaluate:
        with torch.no_grad():
            evaluated = runner.network.eval()(runner.inputs(number))[1].numpy()
    hook = runner.network.register_forward_hook(
        lambda module, given, out: kept.append((given[0].detach(), out[1].detach()))
    )
    try:
        step = runner.step(number)
    finally:
        hook.remove()
    ((x, scores),) = kept
    return Taken(
        step,
        x.numpy(),
        scores.numpy(),
        moments.of_torch(runner.optimizer, runner.network),
        runner.before.rate,
        evaluated,
    )


def _jax_step(
    runner: JaxRunner,
    number: int,
    masks: Arrays,
    state: Arrays,
    known: Moments,
    evaluate: bool,
) -> Taken:
    network = runner.network(state)
    started = moments.to_optax(runner.state.moments, known, network)
    state_now = replace(runner.state, network=network, moments=started)
    after, step, (x, scores) = runner.taken(number, masks, state_now)
    real = np.asarray(runner.batches.valid[number])
    evaluated = np.asarray(_evaluate(network, x))[real] if evaluate else None
    return Taken(
        step,
        channel_first(np.asarray(x))[real],
        np.asarray(scores)[real],
        moments.of_optax(after.moments, after.network),
        float(runner.rates[runner.done - 1, number]),
        evaluated,
    )


@jax.jit
def _evaluate(network: Network, x: jax.Array) -> jax.Array:
    return apply(network, x)[0][1]
