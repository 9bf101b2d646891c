"""A step of a float32 training taken again in float64, in both frameworks, from one state.

Everything is PyTorch's from before the step: weights, statistics and finished ancestors. The
optimisers' moments are float64 too: each framework's optimiser is led along the gradients and
weights of PyTorch's training, step by step. The batch, its augmentation and its dropout masks are
those of the step.
"""

import copy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data.training.stages import Stage
from data.tree.hierarchy import ancestors
from parity.pairs.passes import cast
from parity.study.jax_runner import JaxRunner
from parity.study.jax_runner import images_of as jax_images
from parity.study.step import Arrays, Step
from parity.study.torch_runner import TorchRunner


@dataclass(frozen=True)
class Shadow:
    """Both frameworks' float64 step from `before`, and what the node was given.

    `x`: [b, c, h, w]; `masks`: dropout's, by layer.
    """

    jax: Step
    torch: Step
    before: Arrays
    x: np.ndarray
    targets: np.ndarray
    masks: Arrays


class Shadows:
    """Both frameworks in float64 beside a stage of a float32 training; they follow PyTorch's.

    `compiled`: kept by the caller, so that JAX's step is compiled once for all seeds.
    """

    def __init__(
        self,
        stage: Stage,
        state: Arrays,
        ours: JaxRunner,
        theirs: TorchRunner,
        compiled: dict[Any, Any],
    ):
        self._ours, self._theirs = ours, theirs
        nodes, state = ancestors(stage.node), double(state)
        self._above = [double(theirs.weights(node)) for node in nodes]
        self.torch = TorchRunner(theirs.recipe, theirs.parts, "float64", theirs.images)
        self.torch.networks = {
            node: theirs.converted(node, weights)
            for node, weights in zip(nodes, self._above, strict=True)
        }
        self.torch.begin(stage, state, theirs.steps)
        with jax.enable_x64(True):
            self.jax = JaxRunner(
                ours.recipe, ours.parts, "float64", jax_images(ours.parts), compiled
            )
            self.jax.networks = {node: cast(ours.networks[node], "float64") for node in nodes}
            self.jax.begin(stage, state, ours.steps)

    def follow(self, state: Arrays, gradients: Arrays) -> None:
        """Lead both optimisers along a step: PyTorch's state before it, its gradients."""
        state, gradients = double(state), double(gradients)
        self.torch.update(state, gradients)
        with jax.enable_x64(True):
            self.jax.follow(state, gradients)

    def moments(self) -> optax.OptState:
        """Those of JAX's optimiser, in float32."""

        def narrow(leaf: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jnp.asarray(np.asarray(leaf, np.float32) if floating else np.asarray(leaf))

        return jax.tree.map(narrow, self.jax.followed)

    def step(self, number: int, state: Arrays) -> Shadow:
        """The step that PyTorch has just taken from `state` on the epoch's batch `number`."""
        self._to_step()
        before = double(state)
        x, targets = self.torch.inputs(number), self.torch.targets(number)
        moments = copy.deepcopy(self.torch.optimizer.state_dict())
        self.torch.restore(before)
        taken = self.torch.step(number)
        self.torch.optimizer.load_state_dict(moments)
        again = self.replay(number, before)
        masks = self.torch.masks
        return Shadow(again, taken, before, x.numpy(), targets.numpy(), masks)

    def replay(self, number: int, state: Arrays) -> Step:
        """JAX's float64 step from a state, on the masks of `step`."""
        with jax.enable_x64(True):
            return self.jax.replay(number, self.torch.masks, state, self._above)

    def updated(self, state: Arrays, gradients: Arrays) -> Arrays:
        """What PyTorch's optimiser, in float64, makes of a state with these gradients."""
        moments = copy.deepcopy(self.torch.optimizer.state_dict())
        made = self.torch.update(state, double(gradients))
        self.torch.optimizer.load_state_dict(moments)
        return made

    def _to_step(self) -> None:
        """To the epoch, learning rate and generator of the runners that are followed."""
        ours, theirs = self._ours, self._theirs
        self.torch.run, self.torch.generator = theirs.run, theirs.before.generator
        for group in self.torch.optimizer.param_groups:
            group["lr"] = theirs.before.rate
        with jax.enable_x64(True):
            self.jax.done = ours.done - 1
            self.jax.epoch(ours.run, ours.width)


def double(state: Arrays) -> Arrays:
    """Arrays in float64; counters stay as they are."""
    return {
        key: array.astype(np.float64) if array.dtype.kind == "f" else array
        for key, array in state.items()
    }
