"""What a unit's other side makes of a step's gradients, and which units explain gradients.

A unit near an edge hardly changes what is computed forward, so its other side adds to the gradients
what its own slope sends down, and no more: a *jump*, which a backward pass from its layer gives.
How well each of all units would explain an error comes from one forward pass with tangents
(forward-mode differentiation): the inner product of a jump with a direction of the parameters is
the slope times the change of the unit along that direction.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from parity.study.edges import Kept, Sides, Unit, passed_by_dead
from parity.study.step import Arrays


@dataclass(frozen=True)
class Jumps:
    """What units' other sides make of the gradients, in shares of what is allowed.

    `columns`: of each unit one, all tensors in a row; `off`: the gradients to be explained;
    `starts`: where each tensor begins.
    """

    units: list[Unit]
    columns: list[np.ndarray]
    off: np.ndarray
    starts: np.ndarray

    def shares(self) -> list[tuple[Unit, float]]:
        """How much of each jump these gradients have: 0 is none, 1 all; by least squares."""
        columns = np.stack(self.columns, axis=1)
        found = lsq_linear(columns, self.off, bounds=(0, 1), method="bvls").x
        return list(zip(self.units, found.tolist(), strict=True))

    def pursued(self) -> list[Unit]:
        """One by one, the unit whose jump explains most of what is still too far off."""

        def excess(off: np.ndarray) -> float:
            lengths = np.sqrt(np.add.reduceat(off * off, self.starts))
            return float((np.maximum(0.0, lengths - 1) ** 2).sum())

        off, chosen, best = self.off, [], excess(self.off)
        while best:
            left = [place for place in range(len(self.units)) if place not in chosen]
            tried = [(excess(off - self.columns[place]), place) for place in left]
            now, place = min(tried, default=(np.inf, -1))
            if now >= best:
                break
            best, off = now, off - self.columns[place]
            chosen.append(place)
        return [self.units[place] for place in chosen]


class Derivatives:
    """Of a step in float64, on the sides that it took.

    `module`: with `Edge` and `Pool` layers that share `sides`; `x`: [b, c, h, w]; `loss`: scores to
    a scalar; `taken`: the sides. The module's own parameters and statistics are left alone.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        sides: Sides,
        taken: Mapping[str, Tensor],
    ):
        self._module, self._x, self._sides, self._taken = module, x, sides, taken
        self._start = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self._parameters = {
            key: self._start[key].clone().requires_grad_() for key, _ in module.named_parameters()
        }
        scores, self._kept = self._run(self._parameters)
        outs = [one.out for one in self._kept.values()]
        found = torch.autograd.grad(loss(scores), outs, retain_graph=True, allow_unused=True)
        self._slopes = {
            name: torch.zeros_like(out) if slope is None else slope
            for name, out, slope in zip(self._kept, outs, found, strict=True)
        }
        passed_by_dead(self._kept, self._slopes)
        self._slopes = {name: slope.contiguous() for name, slope in self._slopes.items()}

    def _run(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Kept]]:
        state = {key: value.clone() for key, value in self._start.items()} | dict(parameters)
        self._sides.taken, self._sides.kept = dict(self._taken), {}
        try:
            _, scores = functional_call(self._module, state, (self._x,))
            return scores, self._sides.kept
        finally:
            self._sides.kept = None

    def _below(self, unit: Unit) -> list[tuple[int, float]]:
        """(place, value): what the other side adds to the slopes in what the layer decides on."""
        slope = float(self._slopes[unit.layer].view(-1)[unit.index])
        side = int(self._taken[unit.layer].view(-1)[unit.index])
        if self._kept[unit.layer].decided.ndim == 5:  # a window: other of its four values
            return [(4 * unit.index + unit.side, slope), (4 * unit.index + side, -slope)]
        return [(unit.index, slope * ((unit.side == 1) - (side == 1)))]

    def jump(self, unit: Unit) -> Arrays:
        """What the unit's other side adds to the gradient of each parameter."""
        decided = self._kept[unit.layer].decided
        given = torch.zeros(decided.shape, dtype=decided.dtype)
        for place, value in self._below(unit):
            given.view(-1)[place] += value
        found = torch.autograd.grad(
            decided, list(self._parameters.values()), given, retain_graph=True, allow_unused=True
        )
        return {
            key: np.zeros(value.shape) if one is None else one.numpy()
            for (key, value), one in zip(self._parameters.items(), found, strict=True)
        }

    def along(self, direction: Arrays, units: Sequence[Unit]) -> np.ndarray:
        """Of each unit, the inner product of its jump with `direction`, by parameter."""
        with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
            # PyTorch's own use of torch.jit, which it deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            duals = {
                key: forward_ad.make_dual(value.detach(), torch.tensor(direction[key]))
                for key, value in self._parameters.items()
            }
            _, kept = self._run(duals)
            moved = {
                name: forward_ad.unpack_dual(one.decided).tangent for name, one in kept.items()
            }
        flat = {
            name: None if tangent is None else tangent.reshape(-1).numpy()
            for name, tangent in moved.items()
        }

        def product(unit: Unit) -> float:
            here = flat[unit.layer]
            if here is None:  # no parameter lies before it
                return 0.0
            return float(sum(value * here[place] for place, value in self._below(unit)))

        return np.array([product(unit) for unit in units])
