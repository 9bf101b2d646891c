"""Comparing what two frameworks computed, with tolerances that have a reason.

float64: both frameworks' results may differ by rounding alone, so by at most a small
multiple of 2^-53 of a tensor's scale: 1e-12 for values, 1e-10 for a node's gradients.

float32: comparing two float32 results with each other would say little, for either may be
the bad one. Each is measured against the float64 truth instead. Two conditions:

1. *model*: the error is at most `CONSTANT * u * scale * growth`, where u = 2^-24 is the unit
   roundoff and `growth` the sum over layers of the square root of the accumulation length
   (rounding errors of a sum of k terms add up like a random walk of k steps);
2. *fairness*: neither framework is more than 4 times further from the truth than the other
   (root mean square over the tensor). A lossy kernel, or an epsilon in the wrong place,
   shows here. A ratio can be luck, so it is taken of tensors of at least 100 values, and
   errors below one unit roundoff of the scale count as one.

Gradients in float32 are compared layer by layer, each layer given the truth's input and the
truth's gradient of its output. Through a whole node they cannot be: where an activation lies
within rounding of a ReLU's kink the two frameworks take different sides, rightly, and the
gradient jumps.

`CONSTANT` and u are those of `data.base.rounding`, which says what they come from. Each run states
its own largest quotient, `x rounding`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.base.rounding import CONSTANT, UNIT

FAIR = 4.0
FEWEST = 100  # values in a tensor for which a ratio of errors means something
VALUE_64 = 1e-12
GRADIENT_64 = 1e-10


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
      name: what was checked, e.g. a node network.
      what: the tensor or decision.
      dtype: the type it was computed in.
      max_abs: the largest difference between the frameworks; of decisions, how many differ.
      max_rel: the same as a share of the tensor's scale.
      tolerance: in words.
      passed: the verdict.
      detail: what else a reader wants to know.
      share: for float32, the larger error as a share of the rounding model without `CONSTANT`.
      part: checks of one name and part are shown as one line on the terminal.
      errors: JAX's and PyTorch's largest error against the float64 truth, in units in the last
        place of the scale, where both are judged against it.
      limits: what each is allowed, in the same units.

    """

    name: str
    what: str
    dtype: str
    max_abs: float
    max_rel: float
    tolerance: str
    passed: bool
    detail: str = ""
    share: float | None = None
    part: str = ""
    errors: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None


def close(
    name: str,
    what: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    bound: float,
    *,
    scale: float | None = None,
    dtype: str = "float64",
) -> Check:
    """The largest difference is at most `bound` of the scale (by default `theirs`' largest)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    tolerance = f"{bound:.0e} of scale"
    if ours.shape != theirs.shape:
        shapes = f"shapes {ours.shape} and {theirs.shape}"
        return Check(name, what, dtype, np.inf, np.inf, tolerance, False, shapes)
    scale = _scale(theirs) if scale is None else scale
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        detail = "values that are not finite"
        return Check(name, what, dtype, np.inf, np.inf, tolerance, False, detail)
    worst = float(np.abs(ours - theirs).max(initial=0.0))
    return Check(name, what, dtype, worst, worst / scale, tolerance, worst <= bound * scale)


def equal(name: str, what: str, ours: Any, theirs: Any, dtype: str = "-", note: str = "") -> Check:
    """Whole numbers and decisions: identical, every one."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        detail = f"shapes {ours.shape} and {theirs.shape}"
        return Check(name, what, dtype, np.inf, np.inf, "identical", False, detail)
    different = int((ours != theirs).sum())
    detail = f"{different} of {ours.size} differ" if different else note
    return Check(name, what, dtype, different, different, "identical", different == 0, detail)


def fair(
    name: str,
    what: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    truth: np.ndarray,
    growth: float,
    *,
    scale: float | None = None,
    known: tuple[str, float] | None = None,
) -> Check:
    """Both float32 results against the float64 truth: within the model, and neither worse.

    `known`: why PyTorch may be the worse one here, and the growth that it is then held to;
    JAX never may.
    """
    truth = np.asarray(truth, np.float64)
    if ours.shape != truth.shape or theirs.shape != truth.shape:
        shapes = f"shapes {ours.shape}, {theirs.shape}, {truth.shape}"
        return Check(name, what, "float32", np.inf, np.inf, "-", False, shapes)
    scale = _scale(truth) if scale is None else scale
    errors = [np.abs(np.asarray(x, np.float64) - truth) for x in (ours, theirs)]
    finite = np.isfinite(errors[0]).all() and np.isfinite(errors[1]).all()
    worst = [float(e.max(initial=0.0)) / (UNIT * scale) for e in errors]
    rms = [max(float(np.sqrt(np.mean(e**2))) / scale, UNIT) for e in errors]
    ratio = rms[0] / rms[1]
    limit = CONSTANT * growth
    worse = worst[1] > limit or (truth.size >= FEWEST and ratio < 1 / FAIR)
    reason, most = known or ("", 0.0)
    excused = worse and worst[1] <= most
    passed = bool(
        finite
        and worst[0] <= limit
        and (worst[1] <= limit or excused)
        and (truth.size < FEWEST or (ratio <= FAIR and (ratio >= 1 / FAIR or excused)))
    )
    detail = f"error of JAX / of PyTorch {ratio:.2f}" if truth.size >= FEWEST else ""
    if excused:
        detail = f"{detail}; PyTorch {worst[1]:.0f} u: {reason}".lstrip("; ")
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0))
    return Check(
        name,
        what,
        "float32",
        difference,
        difference / scale,
        f"{CONSTANT * UNIT * growth:.0e} of scale, ratio {FAIR:.0f}",
        passed,
        detail,
        (worst[0] if excused else max(worst)) / growth,
        errors=(worst[0], worst[1]),
        limits=(limit, max(limit, most)),
    )


def _scale(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0)) or 1.0
