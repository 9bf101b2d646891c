"""Steps of two optimisers from the same weights along the same gradients, and why they part."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data.base.errors import UserError
from parity.comparing import values

Arrays = Mapping[str, np.ndarray]
STEPS = 5


def torch_maker(given: Any) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    """What makes the optimiser for a list of parameters, from an optimiser or such a function."""
    if isinstance(given, torch.optim.Optimizer):
        groups = given.param_groups
        if len(groups) != 1:
            raise UserError("optimizer: give one with a single group of parameters, or a function")
        settings = {key: x for key, x in groups[0].items() if key in given.defaults}
        return lambda parameters: type(given)(parameters, **settings)
    if callable(given):
        return given
    raise UserError("optimizer: the first is neither a torch.optim.Optimizer nor a function")


def torch_steps(maker: Any, start: Arrays, gradients: Sequence[Arrays]) -> list[Arrays]:
    """The weights after each step."""
    parameters = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    optimiser = maker(list(parameters.values()))
    result: list[Arrays] = []
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(step[name])
        optimiser.step()
        result.append({name: p.detach().numpy().copy() for name, p in parameters.items()})
    return result


def jax_steps(transform: Any, start: Arrays, gradients: Sequence[Arrays]) -> list[Arrays]:
    """The same with an optax transformation."""
    result: list[Arrays] = []
    with jax.enable_x64(True):
        weights = {name: jnp.asarray(x) for name, x in start.items()}
        state = transform.init(weights)
        for step in gradients:
            given = {name: jnp.asarray(x) for name, x in step.items()}
            updates, state = transform.update(given, state, weights)
            weights = {name: x + updates[name] for name, x in weights.items()}
            result.append({name: np.asarray(x) for name, x in weights.items()})
    return result


def apart(ours: Sequence[Arrays], theirs: Sequence[Arrays], start: Arrays) -> list[float]:
    """By step the largest difference, as a share of the largest change of a weight."""
    result = []
    for a, b in zip(ours, theirs, strict=True):
        worst = 0.0
        for name, x in b.items():
            moved = float(np.abs(x - start[name]).max(initial=0.0)) or 1.0
            worst = max(worst, float(np.abs(a[name] - x).max(initial=0.0)) / moved)
        result.append(worst)
    return result


def drawn(start: Arrays, gradients: Arrays, count: int = STEPS) -> list[Arrays]:
    """Gradients of several steps: the model's, made larger and smaller by known numbers."""
    rng = np.random.default_rng(0)
    return [
        {
            name: gradients[name] * (1 + rng.uniform(-0.5, 0.5, gradients[name].shape))
            for name in start
        }
        for _ in range(count)
    ]


def causes(
    maker: Any, start: Arrays, gradients: Sequence[Arrays]
) -> Iterator[tuple[str, str, Any]]:
    """Changes of PyTorch's optimiser: (cause, words, what gives its steps)."""
    sample = maker([torch.nn.Parameter(torch.zeros(1))])
    kind = type(sample)
    settings = {key: x for key, x in sample.param_groups[0].items() if key in sample.defaults}

    def other(new: type = kind, /, **changed: Any) -> Callable[[], list[Arrays]]:
        known = {
            key: x
            for key, x in {**settings, **changed}.items()
            if key in new([torch.nn.Parameter(torch.zeros(1))], lr=0.1).defaults
        }
        known.pop("decoupled_weight_decay", None)
        return lambda: torch_steps(lambda p: new(p, **known), start, gradients)

    decay = settings.get("weight_decay", 0)
    if kind in (torch.optim.AdamW, torch.optim.Adam):
        turned = torch.optim.Adam if kind is torch.optim.AdamW else torch.optim.AdamW
        if decay:
            words = (
                "JAX adds the decay to the gradient (L2), PyTorch decays the weights apart"
                if kind is torch.optim.AdamW
                else "JAX decays the weights apart (decoupled), PyTorch adds the decay to the "
                "gradient"
            )
            yield "decoupled weight decay", words, other(turned)
        for eps in (1e-8, 1e-4, 1e-6, 1e-7, 1e-3, 1e-5):
            yield (
                "place of epsilon",
                f"JAX has an epsilon of {eps:g} under the root, PyTorch "
                f"{settings['eps']:g} beside it",
                lambda e=eps: _adam(settings, start, gradients, e, kind),
            )
    for value in dict.fromkeys((1e-4, 0.0, 1e-2, 1e-3, 5e-4, 0.1, 0.05)):
        if value != decay and "weight_decay" in settings:
            yield (
                "weight decay",
                f"weight decay {value:g} in JAX, {decay:g} in PyTorch",
                other(weight_decay=value),
            )
    if "eps" in settings:
        for eps in (1e-8, 1e-6, 1e-7, 1e-5, 1e-4, 1e-3, 1e-10, 1e-15):
            if eps != settings["eps"]:
                yield (
                    "epsilon",
                    f"epsilon {eps:g} in JAX, {settings['eps']:g} in PyTorch",
                    other(eps=eps),
                )
    if "betas" in settings:
        for first in (0.9, 0.95, 0.5):
            for second in (0.999, 0.95, 0.98, 0.99, 0.9):
                yield (
                    "betas",
                    f"betas {first}, {second} in JAX, {settings['betas']} in PyTorch",
                    other(betas=(first, second)),
                )
    if settings.get("momentum"):
        turn = not settings.get("nesterov")
        yield (
            "nesterov",
            f"JAX has {'' if turn else 'no '}Nesterov momentum",
            other(nesterov=turn),
        )
        m = settings["momentum"]
        yield ("dampening", f"JAX's momentum takes {1 - m:g} of the gradient", other(dampening=m))
    for name in ("momentum", "alpha"):
        if name in settings:
            for value in (0.9, 0.99, 0.0, 0.95, 0.5):
                yield name, f"{name} {value} in JAX, {settings[name]}", other(**{name: value})
    for factor in (10.0, 0.1, 100.0, 0.01, 2.0, 0.5, -1.0):

        def scaled(f: float = factor) -> list[Arrays]:
            steps = torch_steps(maker, start, gradients)
            return [{n: start[n] + f * (x - start[n]) for n, x in s.items()} for s in steps]

        yield "learning rate", f"JAX's steps are {factor:g} times PyTorch's", scaled


def _adam(
    settings: Mapping[str, Any], start: Arrays, gradients: Sequence[Arrays], root: float, kind: type
) -> list[Arrays]:
    """Adam with its epsilon under the root."""
    (one, two), rate = settings["betas"], settings["lr"]
    decay = settings.get("weight_decay", 0)
    weights = dict(start)
    first = {name: np.zeros_like(x) for name, x in start.items()}
    second = {name: np.zeros_like(x) for name, x in start.items()}
    result: list[Arrays] = []
    for count, step in enumerate(gradients, 1):
        for name, gradient in step.items():
            if decay and kind is torch.optim.AdamW:
                weights[name] = weights[name] * (1 - rate * decay)
            elif decay:
                gradient = gradient + decay * weights[name]
            first[name] = one * first[name] + (1 - one) * gradient
            second[name] = two * second[name] + (1 - two) * gradient**2
            m, v = first[name] / (1 - one**count), second[name] / (1 - two**count)
            weights[name] = weights[name] - rate * m / np.sqrt(v + root)
        result.append(dict(weights))
    return result


def diagnosed(given: tuple[Any, Any], start: Arrays, gradients: Arrays):
    """(difference after one step, after all, cause, words, what is left with it; None without)."""
    maker = torch_maker(given[0])
    steps = drawn(start, gradients)
    ours = jax_steps(given[1], start, steps)
    before = apart(ours, torch_steps(maker, start, steps), start)
    if max(before) <= values.SAME:
        return before[0], max(before), "", "", None
    for cause, words, run in causes(maker, start, steps):
        try:
            after = max(apart(ours, run(), start))
        except (ValueError, TypeError):
            continue
        if math.isfinite(after) and after <= values.SAME:
            return before[0], max(before), cause, words, after
    return before[0], max(before), "", "", None
