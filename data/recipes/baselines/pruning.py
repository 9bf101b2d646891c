"""Structured pruning of VGG: whole channels, the same share of every layer, the weakest by L1.

The result is a smaller dense network: what follows a pruned convolution (its batch norm, the
next convolution, the first Linear layer) loses the same channels.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.recipes.baselines.architectures import Vgg

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def multiply_adds(spec: Vgg, image: int, channels: int = 3, outputs: int = 10) -> int:
    """Of convolutions and Linear layers, for one image of this side."""
    total, side = 0, image
    for stage, widths in enumerate(spec.stages):
        for width in widths:
            total += side**2 * 9 * channels * width
            channels = width
        side //= 2 if stage < spec.pools else 1
    features = [channels * spec.pool**2, *spec.hidden, outputs]
    return total + sum(a * b for a, b in pairwise(features))


def narrowed(spec: Vgg, speed_up: float, image: int) -> Vgg:
    """The widest network with one share of each layer's channels that is `speed_up` times cheaper.

    UserError if not even a channel a layer is.
    """
    if not (math.isfinite(speed_up) and speed_up >= 1):
        raise UserError(f"--speed-up {speed_up}: give a number of 1 or more")
    most = multiply_adds(spec, image) / speed_up
    widths = sorted({width for stage in spec.stages for width in stage})
    shares = sorted({kept / width for width in widths for kept in range(1, width + 1)})

    def of(share: float) -> Vgg:
        stages = (tuple(max(1, int(share * n + 1e-9)) for n in s) for s in spec.stages)
        return replace(spec, stages=tuple(stages))

    low, high = 0, len(shares)  # shares[:low] are known to fit
    while low < high:
        middle = (low + high) // 2
        if multiply_adds(of(shares[middle]), image) <= most:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise UserError(f"--speed-up {speed_up}: even a channel a layer is dearer")
    return of(shares[low - 1])


def prune(weights: Mapping[str, np.ndarray], spec: Vgg, narrow: Vgg) -> dict[str, np.ndarray]:
    """The weights of `narrow` out of those of `spec`: each layer's channels with the largest L1.

    Kept channels stay in their order; of equals the first are kept.
    """
    result = dict(weights)
    kept: Any = slice(None)
    place = 0
    for stage, fewer in enumerate(narrow.stages):
        for count in fewer:
            conv, norm = f"features.{place}", f"features.{place + 1}"
            strength = np.abs(weights[f"{conv}.weight"]).sum((1, 2, 3), dtype=np.float64)
            now = np.sort(np.argsort(-strength, kind="stable")[:count])
            result[f"{conv}.weight"] = weights[f"{conv}.weight"][now][:, kept]
            result[f"{conv}.bias"] = weights[f"{conv}.bias"][now]
            if spec.batch_norm:
                for leaf in STATISTICS:
                    result[f"{norm}.{leaf}"] = weights[f"{norm}.{leaf}"][now]
            kept = now
            place += 3 if spec.batch_norm else 2
        place += stage < spec.pools
    first = weights["classifier.0.weight"]
    maps = first.reshape(len(first), spec.stages[-1][-1], -1)[:, kept]
    result["classifier.0.weight"] = maps.reshape(len(first), -1)
    return result
