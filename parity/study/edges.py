"""Units that may be on either side of an edge: of a ReLU's kink, or of a max pool's choice.

The layers here are PyTorch's, with the side of every unit held fast: so a step can be taken with
some units on their other side, and what that makes of each gradient can be found (`jumps`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Unit:
    """An undecided one: place `index` of the flat map of `layer`, and the side it may be on."""

    layer: str
    index: int
    side: int
    margin: float


@dataclass(frozen=True)
class Kept:
    """Of an edge, with their graph: what it decided on, and what it gave.

    `given`: of a pool, the map that it was given; its windows are what it decides on.
    """

    decided: Tensor
    out: Tensor
    given: Tensor


@dataclass
class Sides:
    """`taken`: by layer, the side of every unit, forced if given. `seen`: what was decided on.

    `moved`: by max pool, places and sides of the windows that are forced where `taken` is not.
    `kept`: filled in, by layer, if it is there.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    moved: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    kept: dict[str, Kept] | None = None


class Edge(nn.Module):
    """A piecewise linear activation: side 0 is 0, side 1 the value, side 2 (ReLU6) the cap."""

    def __init__(self, name: str, cap: float, sides: Sides):
        super().__init__()
        self._name, self.cap, self._sides = name, cap, sides

    def forward(self, x: Tensor) -> Tensor:
        """The map of `x`, on its sides."""
        self._sides.seen[self._name] = x.detach()
        if self._name not in self._sides.taken:
            self._sides.taken[self._name] = (x > 0).long() + (x >= self.cap).long()
        side = self._sides.taken[self._name]
        cap = torch.where(side == 2, self.cap if np.isfinite(self.cap) else 0.0, 0.0).to(x)
        # one that lies below 0, but is passed: float32 has it above, so that a pool may choose it
        value = torch.where(x < 0, x - 2 * x.detach(), x)
        out = torch.where(side == 1, value, cap)
        if self._sides.kept is not None:
            self._sides.kept[self._name] = Kept(x, out, x)
        return out


class Pool(nn.Module):
    """MaxPool2d(2): the side is which of a window's four values is passed."""

    def __init__(self, name: str, sides: Sides):
        super().__init__()
        self._name, self._sides = name, sides

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] to [b, c, h // 2, w // 2]."""
        four = windows(x)
        self._sides.seen[self._name] = four.detach()
        if self._name not in self._sides.taken:
            side = four.argmax(-1)
            for place, other in self._sides.moved.get(self._name, ()):
                side.view(-1)[place] = other
            self._sides.taken[self._name] = side
        out = four.gather(-1, self._sides.taken[self._name][..., None])[..., 0]
        if self._sides.kept is not None:
            self._sides.kept[self._name] = Kept(four, out, x)
        return out


def windows(x: Tensor) -> Tensor:
    """[b, c, h, w] to [b, c, h // 2, w // 2, 4]: the values of each window of two by two."""
    b, c, h, w = x.shape
    four = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2)
    return four.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h // 2, w // 2, 4)


def passed_by_dead(kept: Mapping[str, Kept], slopes: dict[str, Tensor]) -> None:
    """Correct `slopes`, of the loss in each edge's output, where all of a pool's window are zeros.

    It passes one of them; but a unit that were on its other side, above 0, it would choose.
    """
    for name, one in kept.items():
        if one.decided.ndim != 5:
            continue
        for before, other in kept.items():
            if other.out is one.given:
                h, w = (size // 2 * 2 for size in one.given.shape[-2:])
                dead = (one.decided.detach() == 0).all(-1)
                there = dead.repeat_interleave(2, 2).repeat_interleave(2, 3)
                would = slopes[name].repeat_interleave(2, 2).repeat_interleave(2, 3)
                inner = slopes[before][:, :, :h, :w]
                slopes[before] = slopes[before].clone()
                slopes[before][:, :, :h, :w] = torch.where(there, would, inner)
