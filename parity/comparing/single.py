"""In float32, what is rounding and what is a fault: each framework against the float64 truth.

Where both models compute the same in float64, that is the truth for either's float32. How far
rounding takes a value of this very model is measured: PyTorch's float64 model is run again with a
random error in the result of every call, u sqrt(k) of its root mean square, where k is the number
of terms that a value is summed from (`parity.checks.tolerance`). Allowed is 4 times what that
makes of a call's result. So a model that amplifies rounding is allowed more, and a kernel that
loses digits is seen at the first call that has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch.utils import _pytree

from parity.checks.tolerance import CONSTANT, UNIT
from parity.comparing import jax_side, torch_side
from parity.comparing.diagnosis import Trial
from parity.comparing.torch_side import Call

SAMPLES = 4  # runs with random errors; of each call's many values the largest error is taken
_SUMS = {
    "mean",
    "sum",
    "softmax",
    "log_softmax",
    "layer_norm",
    "batch_norm",
    "group_norm",
    "var",
    "rms_norm",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "avg_pool1d",
    "cumsum",
    "norm",
    "logsumexp",
    "adaptive_avg_pool1d",
    "instance_norm",
}


@dataclass(frozen=True)
class Errors:
    """Of a call's result, in units in the last place of its largest value.

    `jax` is None where JAX has no such value.
    """

    index: int
    jax: float | None
    torch: float
    allowed: float


def terms(call: Call, result: torch.Tensor) -> float:
    """How many terms each value of a call's result is summed from; 1 where nothing is summed."""
    inputs = [
        x
        for x in _pytree.tree_leaves((call.args, call.kwargs))
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    ]
    if not inputs:
        return 1.0
    if call.name.startswith("conv") and len(inputs) > 1:
        kernel = inputs[1]
        outputs = kernel.shape[1] if "transpose" in call.name else kernel.shape[0]
        return max(1.0, kernel.numel() / outputs)
    if call.name in ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "rmatmul"):
        return float(inputs[0].shape[-1])
    if call.name == "einsum":
        return max(1.0, max(x.numel() for x in inputs) / max(1, result.numel()))
    if call.name in ("lstm", "gru", "rnn_tanh", "multi_head_attention_forward"):
        # one sum after another: of a step's inputs, over all steps
        return float(sum(x.shape[-1] for x in inputs[:2]) * max(inputs[0].shape[:-1]))
    if call.name in _SUMS or call.name.startswith(("upsample", "interpolate")):
        return float(max(x.numel() for x in inputs) ** 0.5)
    return 1.0


def reach(
    theirs: torch.nn.Module, given: Sequence[torch.Tensor], truth: torch_side.Run, trial: Trial
) -> np.ndarray | None:
    """How far random errors of the model's size take each value of the truth; None if not told."""
    found = np.zeros(len(truth.values))
    generator = torch.Generator().manual_seed(0)

    def moved(x: torch.Tensor, size: float) -> torch.Tensor:
        finite = torch.where(torch.isfinite(x), x, torch.zeros_like(x))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + UNIT * size * finite.square().mean().sqrt() * noise

    def noisy(result: Any, call: Call) -> Any:
        def one(x: Any) -> Any:
            if not (isinstance(x, torch.Tensor) and x.is_floating_point()) or not x.numel():
                return x
            return x if call.name in _MOVES else moved(x, terms(call, x) ** 0.5)

        with torch.no_grad():
            return _pytree.tree_map(one, result)

    changes = {
        index: lambda call, change=change: noisy(change(call), call)
        for index, change in trial.changes.items()
    }
    for _ in range(SAMPLES):
        inputs = [moved(x, 1.0) if _lost(x) else x for x in given]
        other = torch_side.run(
            theirs,
            inputs,
            changes=changes,
            buffers=trial.buffers,
            every=lambda call: noisy(call.plain(), call),
        )
        if len(other.values) != len(truth.values):
            return None
        for place, value in enumerate(truth.values):
            found[place] = max(found[place], _apart(other.values[place].array, value.array))
    return found


def _lost(x: torch.Tensor) -> bool:
    """Whether float32 cannot hold these numbers."""
    return x.is_floating_point() and bool((x.float().double() != x).any())


def errors(
    theirs: torch.nn.Module,
    given: Sequence[torch.Tensor],
    trial: Trial,
    matched: Sequence[int],
    ours: jax_side.Run,
    narrow: jax_side.Run,
) -> list[Errors] | None:
    """Of each call of PyTorch's that gives a value; None if float32 makes other calls.

    `trial`: with what PyTorch's float64 model agrees with JAX's. `matched`: by number of a value of
    PyTorch's, the number of JAX's. `ours`, `narrow`: JAX's float64 and float32 run.
    """
    more: dict[str, Any] = {"changes": trial.changes, "buffers": trial.buffers}
    truth = torch_side.run(theirs, given, **more)
    mine = torch_side.run(theirs, given, single=True, **more)
    far = reach(theirs, given, truth, trial)
    same = [call.name for call in mine.calls] == [call.name for call in truth.calls]
    if far is None or not same or len(narrow.values) != len(ours.values):
        return None
    found = []
    for call in truth.calls:
        if call.output < 0:
            continue
        exact, number = truth.values[call.output].array, matched[call.output]
        scale = UNIT * _scale(exact)
        off = None
        if number >= 0:
            right = ours.values[number].array
            off = _apart(narrow.values[number].array, right) / (UNIT * _scale(right))
        most = CONSTANT * max(far[call.output] / scale, 1.0)
        theirs_off = _apart(mine.values[call.output].array, exact) / scale
        found.append(Errors(call.index, off, theirs_off, most))
    return found


def first_beyond(found: Sequence[Errors]) -> tuple[Errors, str] | None:
    """The first call in which a framework is further off than is allowed, and which it is."""
    for one in found:
        shares = {"JAX": (one.jax or 0.0) / one.allowed, "PyTorch": one.torch / one.allowed}
        worst = max(shares, key=lambda name: shares[name])
        if not shares[worst] <= 1:
            return one, worst
    return None


def without_fast_variance(model: Any) -> nnx.Module | None:
    """A copy of an NNX model whose norms take the variance of differences; None if none has it."""
    if not isinstance(model, nnx.Module):
        return None
    other, changed = nnx.clone(model), False
    for _, layer in nnx.iter_modules(other):
        if getattr(layer, "use_fast_variance", False):
            setattr(layer, "use_fast_variance", False)  # noqa: B010  # of several classes' norms
            changed = True
    return other if changed else None


# What only moves values is exact.
_MOVES = {
    "view",
    "reshape",
    "transpose",
    "permute",
    "flatten",
    "contiguous",
    "getitem",
    "__getitem__",
    "unsqueeze",
    "squeeze",
    "expand",
    "chunk",
    "split",
    "cat",
    "stack",
    "clone",
    "double",
    "float",
    "to",
    "type_as",
    "t",
    "T",
    "narrow",
    "select",
    "unbind",
    "repeat_interleave",
    "expand_as",
    "masked_fill",
    "tril",
    "triu",
    "ones",
    "zeros",
    "movedim",
    "swapaxes",
    "repeat",
    "pad",
}


def _scale(x: np.ndarray) -> float:
    finite = x[np.isfinite(x) & (np.abs(x) < 1e30)]
    return float(np.abs(finite).max(initial=0.0)) or 1.0


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; of infinities and of what masks are filled with none."""
    if a.shape != b.shape:
        return float("inf")
    usual = np.isfinite(b) & (np.abs(b) < 1e30)
    if not np.isfinite(a[usual]).all():
        return float("inf")
    return float(np.abs(a[usual] - b[usual]).max(initial=0.0))
