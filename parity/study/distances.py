"""How far apart two sets of tensors are: whole, and tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Distance:
    """Between two sets of tensors, taken as one long vector each.

    Attributes:
      absolute: Euclidean length of the difference.
      relative: the same as a share of the longer vector; 0 if both are 0.
      cosine: 1 minus the cosine of the angle between them, without cancellation.

    """

    absolute: float
    relative: float
    cosine: float


def whole(a: Arrays, b: Arrays) -> Distance:
    """The distance of all tensors together, in float64."""
    x, y = vector(a), vector(b)
    difference, lengths = norm(x - y), (norm(x), norm(y))
    relative = difference / max(lengths) if max(lengths) else 0.0
    if not min(lengths):
        return Distance(difference, relative, 0.0 if not max(lengths) else 1.0)
    # |x/|x| - y/|y||^2 / 2: 1 - x.y would lose everything below 1e-16
    cosine = norm(x / lengths[0] - y / lengths[1]) ** 2 / 2
    return Distance(difference, relative, cosine)


def each(a: Arrays, b: Arrays) -> dict[str, float]:
    """The relative distance of each tensor: the length of the difference over its scale.

    The scale is the tensor's own length, but not less than it would have with values of the
    size that is usual in the set (root mean square). A bias in front of batch norm has the
    gradient 0, up to rounding; compared with itself it would always differ by everything.
    """
    longest = scales(a, b)
    return {key: _share(norm(_flat(a[key]) - _flat(b[key])), longest[key]) for key in b}


def scales(a: Arrays, b: Arrays) -> dict[str, float]:
    """The scale of each tensor: see `each`."""
    values = vector(b)
    usual = norm(values) / np.sqrt(max(1, values.size))
    return {
        key: max(norm(_flat(a[key])), norm(_flat(b[key])), usual * np.sqrt(b[key].size))
        for key in b
    }


def gap(a: float, b: float) -> float:
    """The relative difference of two numbers; infinite if either is not finite."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return float("inf")
    return _share(abs(a - b), max(abs(a), abs(b)))


def norm(x: np.ndarray) -> float:
    """Euclidean length; infinite if a value is not finite."""
    length = float(np.sqrt(np.dot(x, x)))
    return length if np.isfinite(length) else float("inf")


def vector(arrays: Arrays) -> np.ndarray:
    """All values in the order of the keys, float64."""
    return np.concatenate([_flat(arrays[key]) for key in sorted(arrays)] or [np.zeros(0)])


def _flat(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64).ravel()


def _share(part: float, total: float) -> float:
    if not np.isfinite(part) or not np.isfinite(total):
        return float("inf")
    return part / total if total else 0.0
