"""JAX's side of a coupled training: the trainer's own step, compiled alone."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data.images.on_disk import Images
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training.batches import pad
from data.training.epochs import Pass, likelihood_part
from data.training.stages import Stage
from data.tree.hierarchy import Node, Tree, ancestors
from data.tree.selection import HeldOut
from parity.pairs.passes import by_stream, cast
from parity.study.step import Arrays, Step, weights
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.layers.basic import Mode
from trunk_jax.network import exchange
from trunk_jax.network.network import Network, apply
from trunk_jax.training import fit, grow, objective


def _recorded(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that also keeps, in its state, the gradients that it was given."""

    def init(params):
        return optax.tree.zeros_like(params), inner.init(params)

    def update(gradients, state, params=None):
        steps, rest = inner.update(gradients, state[1], params)
        return steps, (gradients, rest)

    return optax.GradientTransformation(init, update)


@contextmanager
def recording():
    """Inside, `fit.train_step` leaves the gradients of its step in the optimiser's state."""
    # objective.optimizer is looked up at each call: a planted fault stands there
    with patch.object(fit, "optimizer", lambda phase: _recorded(objective.optimizer(phase))):
        yield


def images_of(parts: Splits) -> dict[str, jax.Array]:
    """The images of each split, for all runners of a study."""
    return {part: jnp.asarray(getattr(parts, part).images) for part in vars(parts)}


def _step(program, policy, padded, more, state, source, rows, real, draws, keep, rate):
    x = fit.inputs(program, source, policy, rows, draws)
    targets = jnp.maximum(source.targets[rows], 0)
    mode = Mode(True, real if padded else None, masks=keep)
    scores = apply(state.network, x, mode)[0][1] if more else None
    state, loss, _ = fit.train_step(program, state, x, targets, mode, rate)
    return state, loss, (x, scores) if more else None


class JaxRunner:
    """One tree in JAX, called as `TorchRunner` is. Use it inside `recording()`.

    `compiled`: shared by the runners of a study, so that a step is compiled once for all.
    """

    framework = "jax"

    def __init__(
        self,
        recipe: Recipe,
        parts: Splits,
        dtype: str,
        images: dict[str, jax.Array],
        compiled: dict[Any, Callable[..., Any]],
    ):
        self.recipe, self.parts, self.dtype = recipe, parts, dtype
        self.images, self.compiled = images, compiled
        self.networks: dict[Node, Network] = {}

    def begin(self, stage: Stage, state: Arrays, steps: int) -> None:
        """Start a stage from these weights; its longest epoch has `steps` batches."""
        self.stage, self.phase = stage, stage.settings(self.recipe)
        shape = self.parts.train.image_shape
        template = grow.initial_network(
            self.recipe, stage.tree, stage.node, stage.phase, self.networks, shape
        )
        network = exchange.from_state_dict(cast(template, self.dtype), state)
        self.program = fit.program_of(self.recipe, self.phase, network)
        self.optimizer = fit.optimizer(self.phase)
        self.state = fit.State(network, self.optimizer.init(network.params))
        self.followed = self.state.moments
        self.best, self.steps, self.done = network, steps, 0
        rates = objective.learning_rates(self.phase, steps)
        self.rates = rates.reshape(self.phase.epochs, steps)
        self.source = {part: self._source(part, stage) for part in self.images}

    def epoch(self, run: Pass, width: int) -> None:
        """Start an epoch; batches are padded to `width` images where they are fewer."""
        self.run, self.width = run, width
        self.batches = pad(run.batches, self.steps, width)
        self.padded = not run.batches.valid.all() or run.batches.index.shape[1] < width
        self.policy, self.draws = run.policy, jax.tree.map(jnp.asarray, run.draws)
        self.done += 1

    def step(self, number: int, masks: Arrays) -> Step:
        """Train on a batch with the given dropout masks."""
        self.state, made = self._step(number, masks, self.state, self.source["train"])
        return made

    def follow(self, state: Arrays, gradients: Arrays) -> None:
        """Lead a second set of moments along PyTorch's: its state before a step, its gradients."""
        network = exchange.from_state_dict(self.state.network, state)
        taken = exchange.from_state_dict(self.state.network, state | gradients)
        _, self.followed = self.optimizer.update(taken.params, self.followed, network.params)

    def replay(self, number: int, masks: Arrays, state: Arrays, above: list[Arrays]) -> Step:
        """The step that this framework takes from PyTorch's state; its own stays as it is.

        `state`: PyTorch's before the step; `above`: its finished ancestors', root first. The
        moments are those of `follow`.
        """
        nodes = ancestors(self.stage.node)
        theirs = tuple(
            exchange.from_state_dict(self.networks[node], weights)
            for node, weights in zip(nodes, above, strict=True)
        )
        network = exchange.from_state_dict(self.state.network, state)
        source = replace(self.source["train"], above=theirs)
        return self._step(number, masks, fit.State(network, self.followed), source)[1]

    def taken(
        self, number: int, masks: Arrays, state: fit.State
    ) -> tuple[fit.State, Step, tuple[jax.Array, jax.Array]]:
        """A step from any state: the state after it, and the node's input and scores in it.

        The runner's own state stays as it is.
        """
        return self._taken(number, masks, state, self.source["train"], more=True)

    def _step(
        self, number: int, masks: Arrays, state: fit.State, source: fit.Source
    ) -> tuple[fit.State, Step]:
        return self._taken(number, masks, state, source, more=False)[:2]

    def _taken(
        self, number: int, masks: Arrays, state: fit.State, source: fit.Source, more: bool
    ) -> tuple[fit.State, Step, Any]:
        rows, real = self.batches.index[number], self.batches.valid[number]
        keep = by_stream(state.network, {k: _padded(m, len(rows)) for k, m in masks.items()})
        rate = jnp.asarray(self.rates[self.done - 1, number], self.dtype)
        step = self._compiled(more)
        state, loss, seen = step(state, source, rows, real, self.draws, keep, rate)
        gradients, network = state.moments[0], state.network
        taken = exchange.to_state_dict(replace(network, params=gradients))
        return state, Step(float(loss), weights(taken), exchange.to_state_dict(network)), seen

    def _compiled(self, more: bool) -> Callable[..., Any]:
        key = (self.program, self.policy, self.padded, more)
        if key not in self.compiled:
            self.compiled[key] = jax.jit(partial(_step, *key))
        return self.compiled[key]

    def after_epoch(self, improved: bool) -> None:
        """Keep this epoch's network if it is the best."""
        if improved:
            self.best = self.state.network

    def scores(self, part: str, run: Pass) -> tuple[np.ndarray, np.ndarray]:
        """(scores, targets) of the node as it stands, over its images of a split."""
        scores, targets, network = fit.evaluate(
            self.program, self.state.network, self.source[part], run
        )
        self.state = replace(self.state, network=network)
        return scores, targets

    def end(self) -> None:
        """The stage is over: its best epoch is the node's network."""
        self.networks[self.stage.node] = self.best

    def likelihood(self, stage: Stage) -> np.ndarray:
        """The node's ASL."""
        network = self.networks[stage.node]
        program = fit.program_of(self.recipe, stage.settings(self.recipe), network)
        source = self._source(likelihood_part(self.recipe), stage)
        return grow.average_likelihood(self.recipe, program, network, source, stage.name)

    def held_out(self, stage: Stage) -> HeldOut:
        """What the node says of its validation images."""
        network = self.networks[stage.node]
        program = fit.program_of(self.recipe, stage.settings(self.recipe), network)
        source = self._source("validation", stage)
        return grow.held_out(self.recipe, program, network, source, stage.name)

    def multiply_adds(self, tree: Tree, node: Node) -> int:
        """Of one image in a node's network of a tree that is thought of."""
        shape = self.parts.train.image_shape
        return grow.multiply_adds(self.recipe, tree, node, self.networks, shape)

    def predict(self, tree: Tree, images: Images) -> np.ndarray:
        """The labels that the whole tree predicts."""
        return route.predict(Model(self.recipe, tree, self.networks), images).labels

    def weights(self, node: Node) -> Arrays:
        """A finished node's state_dict."""
        return exchange.to_state_dict(self.networks[node])

    def network(self, state: Arrays) -> Network:
        """A network of the current stage with these weights."""
        return exchange.from_state_dict(self.state.network, state)

    def _source(self, part: str, stage: Stage) -> fit.Source:
        targets = jnp.asarray(stage.targets(getattr(self.parts, part).labels))
        above = tuple(self.networks[node] for node in ancestors(stage.node))
        return fit.Source(self.images[part], targets, above)


def _padded(mask: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(mask, ((0, rows - len(mask)), *((0, 0),) * (mask.ndim - 1)))
