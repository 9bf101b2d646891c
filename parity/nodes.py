"""Checks of node networks: whole in float64, forward and layer by layer in float32."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from parity import compare, layerwise
from parity.compare import Check
from parity.families import Family, build
from parity.passes import STATISTICS, Arrays, Pair, activations, jax_pass, torch_pass

BATCH = 4


class Subject(Protocol):
    """What is checked: its name in the report, and the loss it is trained with."""

    name: str
    loss: str


def check_node(family: Family, seed: int) -> list[Check]:
    """Everything that a pass through a node computes, in both frameworks and both types."""
    return check_pair(*_case(family, seed))


def check_pair(
    family: Subject,
    both: Pair,
    x: np.ndarray,
    targets: np.ndarray,
    seed: int,
    truth: Arrays,
    masks: Arrays,
) -> list[Check]:
    """As `check_node`, of a pair that is already built; `truth` and `masks` from `torch_pass`."""
    case = (family, both, x, targets, seed, truth, masks)
    checks = _in_float64(*case) + _forward_in_float32(*case)
    layers = check_layers(*case)
    return checks + [replace(check, part="each layer, forward and backward") for check in layers]


def check_in_float64(family: Family, seed: int) -> list[Check]:
    """The float64 part of `check_node`."""
    return _in_float64(*_case(family, seed))


def check_in_float32(family: Family, seed: int) -> list[Check]:
    """The forward float32 part of `check_node`."""
    return _forward_in_float32(*_case(family, seed))


def _case(family: Family, seed: int):
    """(family, network, images, targets, seed, the float64 truth, dropout masks)."""
    both = build(family, seed)
    x, targets = inputs(family, seed)
    truth = torch_pass(both, "float64", x, targets, seed, family.loss)
    return family, both, x, targets, seed, *truth


def inputs(family: Family, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (normal), or features (not negative), float64 [b, c, h, w] of float32 values."""
    rng = np.random.default_rng([seed, 1])
    height, width, channels = family.shape
    x = rng.normal(size=(BATCH, channels, height, width)).astype(np.float32).astype(np.float64)
    targets = rng.integers(0, family.outputs, BATCH)
    return (x if family.node == "root" else np.abs(x)), targets


def _in_float64(
    family: Subject,
    both: Pair,
    x: np.ndarray,
    targets: np.ndarray,
    seed: int,
    truth: Arrays,
    masks: Arrays,
) -> list[Check]:
    ours = jax_pass(both, "float64", x, targets, masks, family.loss)
    if ours.keys() != truth.keys():
        odd = sorted(ours.keys() ^ truth.keys())
        return [compare.equal(family.name, "names", odd, [])]
    groups = {
        "eval": ("features and scores in eval mode", compare.VALUE_64),
        "train": ("features and scores in train mode", compare.VALUE_64),
        "loss": ("loss", compare.VALUE_64),
        "after": ("batch-norm statistics afterwards", compare.VALUE_64),
        "gradient": ("gradients of all parameters and the input", compare.GRADIENT_64),
    }
    checks = []
    for prefix, (what, bound) in groups.items():
        rows = [
            compare.close(family.name, key, ours[key], truth[key], bound, scale=_scale(truth, key))
            for key in truth
            if key.startswith(prefix)
        ]
        if not rows:  # a network without batch norm has no statistics
            continue
        worst = max(rows, key=lambda row: row.max_rel)
        detail = f"worst: {worst.what}"
        failed = not all(row.passed for row in rows)
        if failed and prefix in ("eval", "train"):
            detail = f"first at {first_difference(both, x, seed, prefix == 'train')}"
        elif failed and prefix == "gradient":
            # the backward pass meets the last layer first
            order = [row.what for row in rows if not row.passed and "input" not in row.what]
            detail = f"first at {order[-1].removeprefix('gradient of ')}" if order else detail
        checks.append(
            Check(
                family.name, what, "float64", worst.max_abs, worst.max_rel, worst.tolerance,
                not failed, detail,
            )
        )  # fmt: skip
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
        if not compare.close(name, "", ours, theirs, compare.VALUE_64).passed:
            return name
    return "no single layer"


def _forward_in_float32(
    family: Subject,
    both: Pair,
    x: np.ndarray,
    targets: np.ndarray,
    seed: int,
    truth: Arrays,
    masks: Arrays,
) -> list[Check]:
    theirs, same = torch_pass(both, "float32", x, targets, seed, family.loss)
    ours = jax_pass(both, "float32", x, targets, masks, family.loss, gradients=False)
    given, _ = layerwise.truth(both, x, targets, seed, family.loss)
    modules = layerwise.leaves(both.torch)
    growth = sum(
        np.sqrt(layerwise.accumulated(modules[name], values).get("output", 1))
        for name, values in given.items()
    )
    checks = [
        compare.equal(family.name, f"dropout mask of {name}", same[name], masks[name], "float32")
        for name in masks
    ]
    for key in ours:
        if key.endswith("num_batches_tracked"):
            continue
        checks.append(compare.fair(family.name, key, ours[key], theirs[key], truth[key], growth))
    return [replace(check, part="whole node, forward") for check in checks]


def _is_plain_sum(layer: torch.nn.Module, key: str) -> bool:
    """Whether PyTorch's CPU kernel adds up these float32 values one after the other.

    For sums of like values (the gradient above an average pool is constant) errors then grow
    with the number of terms, not its root: that is the bound they are held to. Seen for both
    parameters of convolutions, dense and depthwise, of batch norm and of layer norm.
    """
    summed = torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.LayerNorm
    return isinstance(layer, summed) and key in ("gradient of bias", "gradient of weight")


def check_layers(
    family: Subject, both: Pair, x: np.ndarray, targets: np.ndarray, seed: int, *_: Arrays
) -> list[Check]:
    """Each layer alone, forward and backward, in float32 against the float64 truth."""
    given, masks = layerwise.truth(both, x, targets, seed, family.loss)
    truth = layerwise.torch_passes(both, "float64", given, masks)
    theirs = layerwise.torch_passes(both, "float32", given, masks)
    ours = layerwise.jax_passes(both, "float32", given, masks)
    modules = layerwise.leaves(both.torch)
    checks = []
    for name in truth:
        terms = layerwise.accumulated(modules[name], given[name])
        for key in truth[name]:
            if key.endswith(STATISTICS[2]):
                checks.append(
                    compare.equal(family.name, f"{name}: {key}", ours[name][key], theirs[name][key])
                )
                continue
            known = None
            if _is_plain_sum(modules[name], key):
                known = ("its kernel is a plain float32 sum", terms[key])
            checks.append(
                compare.fair(
                    family.name,
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
