"""How far rounding alone may take a float32 step from its float64 truth, and to which side.

Two things part a right float32 step from the truth:

*Rounding.* Every layer adds to its output, and to the gradient of its input, errors of the size
that the rounding model of `parity.checks.tolerance` gives (u sqrt(k), as a share of the tensor's
root mean square; k: the terms of a sum). The float64 step is repeated with random errors of this
size in every layer, and what they make of each gradient and statistic is its *reach*.

*Sides.* A ReLU passes a gradient or does not; a max pool passes it to one of four. Where the truth
lies within rounding of the edge, float32 may rightly take the other side, and the gradient jumps.
Such units are *undecided*. A float32 gradient is right if it is within reach of the float64
gradient for some choice of their sides, and of theirs alone. Where they are more than 200, the
random errors may move them too, and what that makes of the gradients is part of the reach.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from parity.checks import layerwise
from parity.checks.nodes import is_plain_sum
from parity.checks.tolerance import CONSTANT, UNIT
from parity.pairs.passes import leaves
from parity.study import distances
from parity.study.edges import Edge, Pool, Sides, Unit
from parity.study.jumps import Derivatives, Jumps
from parity.study.step import Arrays

SAMPLES = 8  # steps with random errors; lengths of long vectors of errors hardly vary
# A unit is undecided within so many standard deviations of its layer's errors: CONSTANT is what
# the model may be too small by, and of 10^8 normal values the largest is at 5.6.
EDGE = 6 * CONSTANT
SMALL = 0.1  # of what is allowed: a jump that does not matter
LIKELIEST = 32  # of all undecided units, those that promise most, are looked at together
LIKELY = 4  # of these, are tried by themselves
PATIENCE = 3  # rounds without a gain after which no further units are looked at
MOST = 200  # undecided units: of more, a choice that fits may be missed, and nothing follows


@dataclass(frozen=True)
class Sample:
    """What a pass gives: gradients of all parameters, batch statistics afterwards, the loss.

    `scores`: [b, outputs]; None where they are not judged.
    """

    gradients: Arrays
    state: Arrays
    loss: float
    scores: np.ndarray | None = None


Allowed = dict[str, dict[str, float]]


class _Masked(nn.Module):
    """Dropout with the mask of the step, [b, h, w, c] as it was recorded."""

    def __init__(self, mask: np.ndarray, rate: float):
        super().__init__()
        last = torch.tensor(mask)
        self._mask, self._rate = last.permute(0, 3, 1, 2) if last.ndim == 4 else last, rate

    def forward(self, x: Tensor) -> Tensor:
        return x * self._mask.to(x) / (1 - self._rate)


class _Noise(torch.autograd.Function):
    """Random errors on the way forward, on the way back, or both; sizes are shares of the rms."""

    @staticmethod
    def forward(ctx, x, ahead, back, generator):
        ctx.back, ctx.generator = back, generator
        return _noisy(x, ahead, generator)

    @staticmethod
    def backward(ctx, gradient):
        return _noisy(gradient, ctx.back, ctx.generator), None, None, None


class _Lost(torch.autograd.Function):
    """What a loss's own backward pass loses: of p - 1 the digits that p's rounding has taken.

    The gradient of the score of an image's own class is (p - 1) / b: where p is nearly 1 an error
    of u in p is all of it that counts. It is the one that is below 0.
    """

    @staticmethod
    def forward(ctx, scores, generator):
        ctx.generator = generator
        return scores.clone()

    @staticmethod
    def backward(ctx, gradient):
        noise = torch.randn(gradient.shape, generator=ctx.generator, dtype=gradient.dtype)
        return gradient + UNIT / len(gradient) * noise * (gradient < 0), None


def _noisy(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    if not size:
        return x.clone()
    noise = torch.randn(x.shape, generator=generator).to(x.dtype)  # drawn in float32: faster
    return noise.mul_(size * torch.linalg.vector_norm(x) / x.numel() ** 0.5).add_(x)


class Truth:
    """A training step's float64 pass: on other sides, or with random errors.

    `module`: the node at the step's beginning, float64. `x`: [b, c, h, w]; `masks`: dropout's, by
    layer. `loss`: scores to a scalar. `error`: of `x` itself, as a share of its rms. `unit`: the
    unit roundoff of the type that is judged; errors are put in at float32's and their effect taken
    in proportion, for float64's own would be lost in the pass's.
    """

    def __init__(
        self,
        module: nn.Module,
        x: np.ndarray,
        masks: Arrays,
        loss: Callable[[Tensor], Tensor],
        error: float = UNIT,
        seed: int = 0,
        unit: float = UNIT,
    ):
        self._unit = unit
        self._loss, self._x, self._error = loss, torch.tensor(x), error
        self._generator = torch.Generator().manual_seed(seed)
        self._sides, self._noise = Sides(), False
        self._derivatives: Derivatives | None = None
        self._jumped: dict[Unit, Arrays] = {}
        self._start = {key: value.clone() for key, value in module.state_dict().items()}
        self._module = module.train()
        layers = leaves(module)
        self._terms = terms_of(module, layers, self._x)
        self._plain = plain_sums(layers, self._terms)
        for name, layer in layers.items():
            other = _replacement(name, layer, masks, self._sides)
            if other is not None:
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, other)
                layer = other
            layer.register_forward_pre_hook(self._before(name))
            layer.register_forward_hook(self._after(name))
        self.sample = self._pass({})
        self._natural = {name: side.contiguous() for name, side in self._sides.taken.items()}
        self._seen = dict(self._sides.seen)
        self._pools = {n for n, layer in module.named_modules() if isinstance(layer, Pool)}
        self._reach()

    def on(self, units: list[Unit]) -> Sample:
        """The step with these units on their other side.

        All other activations stay on theirs. Pools choose anew, for a window whose largest values
        were all 0 passes a unit that is on the other side of it.
        """
        pools = {unit.layer for unit in units if unit.layer in self._pools}
        sides = {n: side.clone() for n, side in self._natural.items() if n not in self._pools}
        moved: dict[str, list[tuple[int, int]]] = {name: [] for name in pools}
        for unit in units:
            if unit.layer in pools:
                moved[unit.layer].append((unit.index, unit.side))
            else:
                sides[unit.layer].view(-1)[unit.index] = unit.side
        self._sides.moved = moved
        try:
            return self._pass(sides)
        finally:
            self._sides.moved = {}

    def allowances(self, plain: bool) -> Allowed:
        """How far rounding may take a float32 step: relative distances by kind and tensor.

        `plain`: for PyTorch, whose kernels sum some gradients one value after the other; errors
        then grow with the number of terms (`parity.checks.nodes.is_plain_sum`).
        """
        table = dict(self.allowed)
        if plain:
            table["gradient"] = {
                key: max(value, self._unit * self._plain.get(key, 0.0))
                for key, value in table["gradient"].items()
            }
        return table

    def fitted(self, gradients: Arrays, allowed: Mapping[str, float]) -> tuple[list[Unit], Sample]:
        """(the undecided units on whose other side these gradients are, the truth there).

        `allowed`: by tensor; units that no gradient needs to be within it stay where they are.
        """

        def excess(truth: Sample) -> float:
            """By how much all tensors together are further off than is allowed; 0 if none is."""
            found = distances.each(gradients, truth.gradients)
            return sum(max(0.0, value / allowed[key] - 1) ** 2 for key, value in found.items())

        best: tuple[float, list[Unit], Sample] = (excess(self.sample), [], self.sample)
        if not self.units or not np.isfinite(best[0]):  # no side explains what is no number
            return best[1], best[2]

        def attempt(units: list[Unit]) -> None:
            nonlocal best
            found = self.on(units)
            if (now := excess(found)) < best[0]:
                best = (now, units, found)

        known: dict[Unit, None] = {}
        waited = 0
        while best[0] and waited < PATIENCE:
            before = best[0]
            ranked = self._likeliest(gradients, allowed, best[2], best[1])
            known |= dict.fromkeys(ranked)
            jumps = self._jumps(gradients, allowed, list(known))
            attempt(jumps.pursued() if jumps.units else [])
            for unit in ranked[:LIKELY]:  # a jump leaves out what a unit changes forward
                if best[0]:
                    attempt([*best[1], unit])
            waited = 0 if best[0] < before else waited + 1
        if best[0]:
            shares = jumps.shares() if jumps.units else []
            attempt([unit for unit, share in shares if share > 0.5])
            # the jumps of two units are not quite the sum of theirs: try each, the doubtful first
            for unit, _ in sorted(shares, key=lambda one: abs(one[1] - 0.5)):
                if best[0]:
                    attempt(_toggled(best[1], unit))
        if not best[0]:  # those that need not be on their other side go back
            for unit in best[1]:
                found = self.on(_toggled(best[1], unit))
                if not excess(found):
                    best = (0.0, _toggled(best[1], unit), found)
        return best[1], best[2]

    def _derived(self) -> Derivatives:
        """Made once: it holds a whole pass with its graph."""
        if self._derivatives is None:
            self._module.load_state_dict(self._start)
            self._derivatives = Derivatives(
                self._module, self._x, self._loss, self._sides, self._natural
            )
        return self._derivatives

    def _likeliest(
        self, gradients: Arrays, allowed: Mapping[str, float], at: Sample, taken: Sequence[Unit]
    ) -> list[Unit]:
        """Of the units that are not `taken`, those that promise to explain most of what is off.

        To first order, by the slope of the excess along each unit's jump; `at`: the sides so far.
        """
        scales = distances.scales(gradients, at.gradients)
        direction = {}
        for key, there in at.gradients.items():
            size = scales[key] * allowed[key]
            off = (there - gradients[key]) / size
            length = distances.norm(off.ravel())
            direction[key] = off / length * (length - 1) / size if length > 1 else 0 * off
        gone = set(taken)
        left = [unit for unit in self.units if unit not in gone]
        gain = -self._derived().along(direction, left)
        best = np.argsort(-gain, kind="stable")[:LIKELIEST]
        return [left[place] for place in best if gain[place] > 0]

    def _jumps(
        self, gradients: Arrays, allowed: Mapping[str, float], units: Sequence[Unit]
    ) -> Jumps:
        """What each unit's other side makes of the gradients, and how far these are off."""
        scales = distances.scales(gradients, self.sample.gradients)

        def scaled(of: Arrays) -> np.ndarray:
            rows = [of[key].ravel() / (scales[key] * allowed[key]) for key in self.sample.gradients]
            return np.concatenate(rows)

        for unit in units:
            if unit not in self._jumped:
                self._jumped[unit] = self._derived().jump(unit)
        jumps = [(unit, scaled(self._jumped[unit])) for unit in units]
        jumps = [(unit, jump) for unit, jump in jumps if distances.norm(jump) > SMALL]
        right = self.sample.gradients
        sizes = [value.size for value in right.values()]
        return Jumps(
            [unit for unit, _ in jumps],
            [jump for _, jump in jumps],
            scaled({key: gradients[key] - value for key, value in right.items()}),
            np.concatenate([[0], np.cumsum(sizes)[:-1]]),
        )

    def _reach(self) -> None:
        """`allowed`: by kind and tensor, a relative distance. `units`: the undecided ones.

        Where more units are undecided than can be told one by one, the draws have sides of their
        own: what many units of their other sides make together is then an error like others.
        """
        self._noise = True
        most: dict[str, dict[str, float]] = {}
        spread: dict[str, list[Tensor]] = {}
        share, sides = self._unit / UNIT, self._natural
        for number in range(SAMPLES):
            one = self._pass(sides)
            for kind, table in apart(one, self.sample).items():
                row = most.setdefault(kind, {})
                for key, value in table.items():
                    row[key] = max(row.get(key, 0.0), value)
            for name, seen in self._sides.seen.items():
                error = (seen - self._seen[name]).square().transpose(0, 1).flatten(1).mean(1)
                spread.setdefault(name, []).append(error)
            self.deviation = {
                name: share * torch.stack(rows).mean(0).sqrt() for name, rows in spread.items()
            }
            if number == 0 and self._count() > MOST:
                sides = {}
        self._noise = False
        self.allowed: Allowed = {
            kind: {key: CONSTANT * share * max(value, UNIT) for key, value in table.items()}
            for kind, table in most.items()
        }
        units = [unit for name in self._seen for unit in self._undecided(name)]
        self.undecided = len(units)
        self.units = sorted(units, key=lambda unit: unit.margin)

    def _count(self) -> int:
        """How many units are undecided."""
        return sum(int((self._margins(name)[0] <= EDGE).sum()) for name in self._seen)

    def _margins(self, name: str) -> tuple[Tensor, Tensor]:
        """How far each unit is from its edge, in standard deviations; the side beyond it."""
        seen, side = self._seen[name], self._natural[name]
        edge = self.deviation[name].reshape(1, -1, *[1] * (seen.ndim - 2))
        layer = dict(self._module.named_modules())[name]
        if name in self._pools:
            values, order = seen.topk(2, dim=-1)
            margin = (values[..., 0] - values[..., 1]) / edge[..., 0].clamp_min(1e-300)
            # of two equal ones, both 0 say, either framework takes the first (where one of them is
            # near 0, that is the unit of its ReLU)
            margin = torch.where(values[..., 0] == values[..., 1], torch.inf, margin)
            other = torch.where(order[..., 0] == side, order[..., 1], order[..., 0])
        else:
            cap = layer.cap
            low, high = seen.abs(), (seen - cap).abs()
            margin = torch.minimum(low, high) / edge.clamp_min(1e-300)
            upper = 3 - side  # between 1 and 2
            other = torch.where(low <= high, 1 - side.clamp(max=1), upper)
        return margin, other

    def _undecided(self, name: str) -> list[Unit]:
        margin, other = self._margins(name)
        places = (margin.reshape(-1) <= EDGE).nonzero()[:, 0].tolist()
        flat, sides = margin.reshape(-1), other.reshape(-1)
        return [Unit(name, place, int(sides[place]), float(flat[place])) for place in places]

    def _pass(self, sides: Mapping[str, Tensor]) -> Sample:
        self._module.load_state_dict(self._start)
        self._module.zero_grad()
        self._sides.taken, self._sides.seen = dict(sides), {}
        x = self._x
        if self._noise:
            x = _noisy(x, self._error, self._generator)
        _, scores = self._module(x)
        value = self._loss(_Lost.apply(scores, self._generator) if self._noise else scores)
        value.backward()
        gradients, state = {}, {}
        for key, parameter in self._module.named_parameters():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients[key] = self._summed(key, found).numpy().copy()
        for key, buffer in self._module.named_buffers():
            floating = buffer.is_floating_point()
            state[key] = (self._summed(key, buffer) if floating else buffer).numpy().copy()
        return Sample(gradients, state, value.item(), scores.detach().numpy())

    def _summed(self, key: str, value: Tensor) -> Tensor:
        """The errors of the sum that made a parameter's gradient, or a statistic."""
        name, _, what = key.rpartition(".")
        if not self._noise:
            return value
        terms = self._terms[name]
        k = terms.get(f"gradient of {what}", terms.get(f"after {what}", 1.0))
        return _noisy(value, UNIT * k**0.5, self._generator)

    def _before(self, name: str):
        def hook(layer, inputs):
            if not self._noise:
                return None
            size = UNIT * self._terms[name].get("gradient of input", 1.0) ** 0.5
            given = inputs[0]
            if isinstance(layer, nn.LogSoftmax):
                given = _Lost.apply(given, self._generator)
            return (_Noise.apply(given, 0.0, size, self._generator), *inputs[1:])

        return hook

    def _after(self, name: str):
        def hook(layer, inputs, output):
            if not self._noise:
                return None
            size = UNIT * self._terms[name].get("output", 1.0) ** 0.5
            return _Noise.apply(output, size, 0.0, self._generator)

        return hook


def _toggled(units: list[Unit], unit: Unit) -> list[Unit]:
    rest = [one for one in units if one != unit]
    return rest if len(rest) < len(units) else [*units, unit]


def apart(a: Sample, b: Sample) -> dict[str, dict[str, float]]:
    """Relative distances by kind and tensor, as `parity.study.trace.compare` takes them."""
    kinds = {"mean": "running_mean", "variance": "running_var"}
    found = {
        kind: distances.each(
            {k: v for k, v in a.state.items() if k.endswith(name)},
            {k: v for k, v in b.state.items() if k.endswith(name)},
        )
        for kind, name in kinds.items()
    }
    found["loss"] = {"*": distances.gap(a.loss, b.loss)}
    if a.scores is not None and b.scores is not None:
        found["scores"] = distances.each({"*": a.scores}, {"*": b.scores})
    return found | {"gradient": distances.each(a.gradients, b.gradients)}


def _replacement(name: str, layer: nn.Module, masks: Arrays, sides: Sides) -> nn.Module | None:
    if name in masks:
        assert isinstance(layer.p, float)
        return _Masked(masks[name], layer.p)
    if isinstance(layer, nn.ReLU6):
        return Edge(name, 6.0, sides)
    if isinstance(layer, nn.ReLU):
        return Edge(name, float("inf"), sides)
    if isinstance(layer, nn.MaxPool2d):
        return Pool(name, sides)
    return None


def plain_sums(
    layers: Mapping[str, nn.Module], terms: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The terms of each gradient that PyTorch sums one after the other, by parameter."""
    return {
        f"{name}.{what}": terms[name][f"gradient of {what}"]
        for name, layer in layers.items()
        for what in ("weight", "bias")
        if is_plain_sum(layer, f"gradient of {what}")
    }


def terms_of(
    module: nn.Module, layers: Mapping[str, nn.Module], x: Tensor
) -> dict[str, dict[str, float]]:
    """By layer, how many terms each of its values is summed from: `layerwise.accumulated`."""
    shapes: dict[str, Arrays] = {}

    def note(name):
        def hook(layer, inputs, output):
            # shapes alone are looked at, but for attention, which trees do not have
            found = {"x": inputs[0].detach().numpy(), "dy": output.detach().numpy()}
            shapes[name] = found

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad(), torch.random.fork_rng([]):
        module(x)
    for hook in hooks:
        hook.remove()
    return {name: layerwise.accumulated(layers[name], shapes[name]) for name in shapes}
