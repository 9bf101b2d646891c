"""Public weights for another dataset: what of a state_dict is kept, and what starts anew.

A head for another number of classes, and a first convolution for another number of channels,
are drawn here, with NumPy, so that both frameworks fine-tune from the same numbers.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.base.errors import UserError
from data.base.weights import check_fit, read_safetensors, with_counters
from data.images.cache import cache_root
from data.recipes.baselines.architectures import Architecture, ConvNext, Deit, Vit

Shapes = Mapping[str, tuple[int, ...]]
Weights = dict[str, np.ndarray]


def file_of(name: str) -> Path:
    """Where `python -m parity.pretrained NAME` leaves a model's weights by default."""
    return cache_root() / "pretrained" / f"{name}.safetensors"


def read(name: str, file: Path | None = None) -> Weights:
    """A model's public weights. UserError, with the command that fetches them, if missing."""
    file = file or file_of(name)
    if not file.exists():
        raise UserError(
            f"no weights in {file}; get them with python -m parity.pretrained {name}, or start "
            "from random ones with --weights none"
        )
    return read_safetensors(file)


def adapt(
    weights: Mapping[str, np.ndarray],
    shapes: Shapes,
    spec: Architecture,
    rng: np.random.Generator,
) -> Weights:
    """The state_dict of `shapes` that starts from `weights`.

    A Linear layer for other outputs, or that is not in `weights`, and a convolution for other
    channels are new: PyTorch's default initialisation; ViT's convolution Xavier-uniform with a
    zero bias; DeiT's is the old one summed over its channels (as timm does it). ConvNeXt
    without its stem's norm leaves that out. UserError if anything else does not fit.
    """
    weights = with_counters(shapes, weights)
    if isinstance(spec, ConvNext) and not spec.stem_norm:
        for leaf in ("weight", "bias"):
            weights[f"features.0.{leaf}"] = weights.pop(f"features.0.0.{leaf}")
            del weights[f"features.0.1.{leaf}"]
    for key, shape in sorted(shapes.items()):
        module, _, leaf = key.rpartition(".")
        old = weights.get(key)
        if leaf != "weight" or (old is not None and old.shape == shape):
            continue
        linear = len(shape) == 2 and (old is None or old.shape[1:] == shape[1:])
        conv = len(shape) == 4 and old is not None and old.shape[::2] == shape[::2]
        if not (linear or conv):
            continue  # the check below says what is wrong
        weights[key], bias = _fresh(shape, old, spec, rng)
        if f"{module}.bias" in shapes and (linear or not isinstance(spec, Deit)):
            weights[f"{module}.bias"] = bias
    check_fit(shapes, weights)
    return weights


def _fresh(
    shape: tuple[int, ...], old: np.ndarray | None, spec: Architecture, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a new layer."""
    fan_in, window = math.prod(shape[1:]), math.prod(shape[2:])
    if old is not None and len(shape) == 4 and isinstance(spec, Deit):
        return old.sum(1, keepdims=True, dtype=np.float64).astype(old.dtype), np.zeros(0)
    if len(shape) == 4 and type(spec) is Vit:
        bound = math.sqrt(6 / (fan_in + shape[0] * window))
        return _uniform(rng, bound, shape), np.zeros(shape[0], np.float32)
    bound = 1 / math.sqrt(fan_in)
    return _uniform(rng, bound, shape), _uniform(rng, bound, shape[:1])


def _uniform(rng: np.random.Generator, bound: float, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-bound, bound, shape).astype(np.float32)
