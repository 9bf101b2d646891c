"""Two models as they are compared: what is run on either side, and with what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flax import nnx

from data.base.errors import UserError
from parity.comparing import jax_side, torch_side
from parity.comparing.carrying import Carried
from parity.comparing.diagnosis import Search, Trial

Loss = tuple[Callable[[Any], Any], Callable[[Any], Any]]


@dataclass(frozen=True)
class Pair:
    """Two models, their inputs and their weights.

    Attributes:
      theirs: PyTorch's, a copy in float64; `given`: its inputs; `first`: its first run.
      jax_model: JAX's, as the caller gave it; `ours`: how it is run; `arrays`: its inputs.
      turned: of each of these, whether it is PyTorch's with channels last.
      half: whether PyTorch's model computes in 16 bits, so that JAX's may; both then run in
        float64.
      carried: which layers are the same; `weights`: JAX's, PyTorch's where they were carried.

    """

    theirs: torch.nn.Module
    given: Sequence[torch.Tensor]
    first: torch_side.Run
    jax_model: Any
    ours: jax_side.Model
    arrays: Sequence[np.ndarray]
    turned: Sequence[bool]
    half: bool
    carried: Carried
    weights: Mapping[str, np.ndarray]

    def in_full_width(self) -> "Pair":
        """The same, where JAX's model does not compute in 16 bits."""
        return replace(self, ours=model_of(self.jax_model, half=False))

    def run_torch(self, trial: Trial, **how: Any) -> torch_side.Run:
        """PyTorch's model with the changes of a trial. `how`: as for `torch_side.run`."""
        return torch_side.run(
            self.theirs, self.given, changes=trial.changes, buffers=trial.buffers, **how
        )

    def run_jax(self, program: jax_side.Program) -> jax_side.Run:
        """A program of JAX's model on these weights and inputs."""
        return program.run(self.weights, self.arrays)

    def search(self, run: jax_side.Run, *, train: bool = False, **how: Any) -> Search:
        """What looks for the first difference between a run of JAX's model and PyTorch's.

        `how`: of PyTorch's runs, as for `run_torch`.
        """
        run_torch = partial(self.run_torch, train=train, **how)
        return Search(run_torch, run, epsilon(self.ours), train=train)


def told(error: Exception) -> str:
    """An error of a user's model in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def model_of(given: Any, *, dropout: bool = True, half: bool = True) -> jax_side.Model:
    """How a JAX model is run, as `compare` takes one. UserError if it is something else.

    `dropout`, `half`: whether it drops values, and computes in 16 bits, where it says so.
    """
    if isinstance(given, nnx.Module):
        return jax_side.from_nnx(given, dropout=dropout, half=half)
    if isinstance(given, tuple) and len(given) == 2 and callable(given[0]):
        return jax_side.from_function(*given)
    raise UserError(
        f"the JAX model is a {type(given).__name__}; give a Flax NNX module (a Linen one through "
        "nnx.bridge.ToNNX, initialised) or (function, parameters)"
    )


def epsilon(model: jax_side.Model) -> Callable[[str], float | None]:
    """Gives the epsilon of a JAX model's layer at a path; None if it has none."""
    return lambda path: getattr(model.layers.get(path), "epsilon", None)
