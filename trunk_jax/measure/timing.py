"""How long a path takes for one image, how many images a second it does, and what they cost."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import UInt8

from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.model import Model
from data.tree.hierarchy import ROOT, Node
from trunk_jax.inference.microbatched import infer
from trunk_jax.measure.energy import Counter
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, dtype_of

BATCH = 256
_ENERGY_SECONDS = 2.0  # RAPL counts once a millisecond, NVML some ten times a second


@partial(jax.jit, static_argnames=("mean", "std", "dtype"))
def _inputs(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: str) -> Array:
    return prepare(images, {}, Augmentation(), mean, std, dtype)


@jax.jit
def _decide(network: Network, x: Array) -> tuple[Array, Array]:
    """(features, chosen output) of a node."""
    features, scores = infer(network, x)
    return features, scores.argmax(1)


def walk(model: Model, path: Sequence[Node], images: UInt8[np.ndarray, "b h w c"]) -> np.ndarray:
    """Take images from pixels through all nodes of one path; the last node's choices.

    Each node's choice is fetched, as it must be to know which node comes next, but the path is
    followed whatever it is.
    """
    recipe, dtype = model.recipe, str(dtype_of(model.networks[ROOT]))
    x = _inputs(images, recipe.mean, recipe.std, dtype)
    for node in path:
        x, chosen = _decide(model.networks[node], x)
        chosen = np.asarray(chosen)
    return chosen


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """The time of each of `repeats` calls, after two that do not count: they compile and warm."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def percentiles(taken: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    median, low, high = np.percentile(taken, (50, 10, 90))
    return float(median), float(low), float(high)


def path_times(
    model: Model,
    path: Sequence[Node],
    images: Images,
    repeats: int,
) -> dict[str, float]:
    """`latency_ms` of one image (the median; `_p10`, `_p90`), `images_per_second` in batches."""
    one = images[:1]
    batch = images[np.arange(BATCH) % len(images)]
    alone = seconds(lambda: walk(model, path, one), repeats)
    together = seconds(lambda: walk(model, path, batch), max(3, repeats // 10))
    median, low, high = (1e3 * value for value in percentiles(alone))
    return {
        "latency_ms": median,
        "latency_ms_p10": low,
        "latency_ms_p90": high,
        "images_per_second": BATCH / percentiles(together)[0],
    }


def joules(work: Callable[[], int], counters: Sequence[Counter]) -> dict[str, float]:
    """Energy of an image by counter. `work` does some images, and is repeated for two seconds.

    It is called once beforehand, to compile.
    """
    work()
    before = [counter.read() for counter in counters]
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < _ENERGY_SECONDS:
        images += work()
    return {
        counter.name: counter.since(start) / images
        for counter, start in zip(counters, before, strict=True)
    }
