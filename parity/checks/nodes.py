"""Checks of node networks: whole in float64, forward and layer by layer in float32."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from parity.checks import layerwise, tolerance
from parity.checks.tolerance import Check
from parity.pairs.families import Family, build
from parity.pairs.passes import STATISTICS, Arrays, Pair, activations, jax_pass, torch_pass

BATCH = 4


class Subject(Protocol):
    """What is checked: its name in the report, and the loss it is trained with."""

    @property
    def name(self) -> str: ...

    @property
    def loss(self) -> str: ...


@dataclass(frozen=True)
class Trial:
    """A network in both frameworks, one batch for it, and what PyTorch makes of it in float64.

    `x`: [b, c, h, w]; `truth` and the dropout `masks` are `torch_pass`'s.
    """

    name: str
    loss: str
    both: Pair
    x: np.ndarray
    targets: np.ndarray
    seed: int
    truth: Arrays
    masks: Arrays

    @cached_property
    def layers(self) -> layerwise.Passes:
        """What each layer is given in that pass: its input, and the gradient of its output."""
        return layerwise.truth(self.both, self.x, self.targets, self.seed, self.loss)[0]


def trial(subject: Subject, both: Pair, x: np.ndarray, targets: np.ndarray, seed: int) -> Trial:
    """The trial of a subject's networks on images `x` [b, c, h, w] and `targets` [b]."""
    truth, masks = torch_pass(both, "float64", x, targets, seed, subject.loss)
    return Trial(subject.name, subject.loss, both, x, targets, seed, truth, masks)


def check_node(family: Family, seed: int) -> list[Check]:
    """Everything that a pass through a node computes, in both frameworks and both types."""
    return check_trial(_trial_of(family, seed))


def check_trial(of: Trial) -> list[Check]:
    """As `check_node`, of any network."""
    layers = [replace(check, part="each layer, forward and backward") for check in _layers(of)]
    return _in_float64(of) + _forward_in_float32(of) + layers


def check_in_float64(family: Family, seed: int) -> list[Check]:
    """The float64 part of `check_node`."""
    return _in_float64(_trial_of(family, seed))


def check_in_float32(family: Family, seed: int) -> list[Check]:
    """The forward float32 part of `check_node`."""
    return _forward_in_float32(_trial_of(family, seed))


def _trial_of(family: Family, seed: int) -> Trial:
    return trial(family, build(family, seed), *inputs(family, seed), seed)


def inputs(family: Family, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (normal), or features (not negative), float64 [b, c, h, w] of float32 values."""
    rng = np.random.default_rng([seed, 1])
    height, width, channels = family.shape
    x = rng.normal(size=(BATCH, channels, height, width)).astype(np.float32).astype(np.float64)
    targets = rng.integers(0, family.outputs, BATCH)
    return (x if family.node == "root" else np.abs(x)), targets


def _in_float64(of: Trial) -> list[Check]:
    truth = of.truth
    ours = jax_pass(of.both, "float64", of.x, of.targets, of.masks, of.loss)
    if ours.keys() != truth.keys():
        odd = sorted(ours.keys() ^ truth.keys())
        return [tolerance.equal(of.name, "names", odd, [])]
    groups = {
        "eval": ("features and scores in eval mode", tolerance.VALUE_64),
        "train": ("features and scores in train mode", tolerance.VALUE_64),
        "loss": ("loss", tolerance.VALUE_64),
        "after": ("batch-norm statistics afterwards", tolerance.VALUE_64),
        "gradient": ("gradients of all parameters and the input", tolerance.GRADIENT_64),
    }
    checks = []
    for prefix, (what, bound) in groups.items():
        rows = [
            tolerance.close(of.name, key, ours[key], truth[key], bound, scale=_scale(truth, key))
            for key in truth
            if key.startswith(prefix)
        ]
        if not rows:  # a network without batch norm has no statistics
            continue
        worst = max(rows, key=lambda row: row.max_rel)
        detail = f"worst: {worst.what}"
        failed = not all(row.passed for row in rows)
        if failed and prefix in ("eval", "train"):
            detail = f"first at {first_difference(of.both, of.x, of.seed, prefix == 'train')}"
        elif failed and prefix == "gradient":
            # the backward pass meets the last layer first
            order = [row.what for row in rows if not row.passed and "input" not in row.what]
            detail = f"first at {order[-1].removeprefix('gradient of ')}" if order else detail
        checks.append(
            Check(
                of.name,
                what,
                "float64",
                worst.max_abs,
                worst.max_rel,
                worst.tolerance,
                not failed,
                detail,
            )
        )
    return checks


def _scale(arrays: Arrays, key: str) -> float:
    """The largest value of a tensor; for a bias's gradient, of its layer's gradients.

    A bias before batch norm has the gradient 0: what both frameworks give is rounding, to
    be measured against the sums that it is left over from.
    """
    largest = float(np.abs(arrays[key]).max(initial=0.0))
    weight = key.removesuffix("bias") + "weight"
    if key.startswith("gradient") and key.endswith("bias") and weight in arrays:
        largest = max(largest, float(np.abs(arrays[weight]).max()))
    return largest or 1.0


def first_difference(both: Pair, x: np.ndarray, seed: int, train: bool) -> str:
    """The first layer in order of execution whose float64 outputs differ beyond rounding."""
    for name, ours, theirs in activations(both, "float64", x, seed, train):
        if not tolerance.close(name, "", ours, theirs, tolerance.VALUE_64).passed:
            return name
    return "no single layer"


def _forward_in_float32(of: Trial) -> list[Check]:
    theirs, same = torch_pass(of.both, "float32", of.x, of.targets, of.seed, of.loss)
    ours = jax_pass(of.both, "float32", of.x, of.targets, of.masks, of.loss, gradients=False)
    modules = layerwise.leaves(of.both.torch)
    growth = sum(
        np.sqrt(layerwise.accumulated(modules[name], values).get("output", 1))
        for name, values in of.layers.items()
    )
    checks = [
        tolerance.equal(of.name, f"dropout mask of {name}", same[name], of.masks[name], "float32")
        for name in of.masks
    ]
    for key in ours:
        if key.endswith("num_batches_tracked"):
            continue
        checks.append(tolerance.fair(of.name, key, ours[key], theirs[key], of.truth[key], growth))
    return [replace(check, part="whole node, forward") for check in checks]


def is_plain_sum(layer: torch.nn.Module, key: str) -> bool:
    """Whether PyTorch's CPU kernel adds up these float32 values one after the other.

    For sums of like values (the gradient above an average pool is constant) errors then grow
    with the number of terms, not its root: that is the bound they are held to. Seen for both
    parameters of convolutions, dense and depthwise, of batch norm and of layer norm.
    """
    summed = torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.LayerNorm
    return isinstance(layer, summed) and key in ("gradient of bias", "gradient of weight")


def _layers(of: Trial) -> list[Check]:
    """Each layer alone, forward and backward, in float32 against the float64 truth."""
    given = of.layers
    truth = layerwise.torch_passes(of.both, "float64", given, of.masks)
    theirs = layerwise.torch_passes(of.both, "float32", given, of.masks)
    ours = layerwise.jax_passes(of.both, "float32", given, of.masks)
    modules = layerwise.leaves(of.both.torch)
    unused = sorted(modules.keys() - given.keys())
    checks = (
        [tolerance.equal(of.name, f"layers without a pass: {unused}", unused, [])] if unused else []
    )
    for name in truth:
        terms = layerwise.accumulated(modules[name], given[name])
        for key in truth[name]:
            if key.endswith(STATISTICS[2]):
                checks.append(
                    tolerance.equal(of.name, f"{name}: {key}", ours[name][key], theirs[name][key])
                )
                continue
            known = None
            if is_plain_sum(modules[name], key):
                known = ("its kernel is a plain float32 sum", terms[key])
            checks.append(
                tolerance.fair(
                    of.name,
                    f"{name}: {key}",
                    ours[name][key],
                    theirs[name][key],
                    truth[name][key],
                    float(np.sqrt(terms.get(key, 1))),
                    scale=_scale(truth[name], key),
                    known=known,
                )
            )
    return checks
