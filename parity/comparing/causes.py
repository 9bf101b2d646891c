"""What may be behind a difference at a call of PyTorch's: changes of it, to be tried.

A candidate computes the call as the JAX model may compute it. Nothing here says that it does:
`parity.comparing.diagnosis` makes each change and compares again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils import _pytree

from parity.comparing.torch_side import Call, Change, Run, again

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-4, 1e-7, 1e-9, 0.0)
BASES = (10000.0, 500000.0, 1000000.0, 100000.0, 100.0, 1000.0)
SLOPES = (0.01, 0.02, 0.1, 0.2, 0.3, 0.25)
ACTIVATIONS = {
    "relu": torch.relu,
    "exact GELU": functional.gelu,
    "tanh GELU": lambda x: functional.gelu(x, approximate="tanh"),
    "SiLU": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky ReLU": functional.leaky_relu,
    "ELU": functional.elu,
    "ReLU6": functional.relu6,
    "softplus": functional.softplus,
    "hard swish": functional.hardswish,
    "hard sigmoid": functional.hardsigmoid,
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "SELU": functional.selu,
    "Mish": functional.mish,
    "ReLU squared": lambda x: torch.relu(x) ** 2,
    "nothing": lambda x: x,
}
_NAMES = {
    "gelu": "exact GELU",
    "silu": "SiLU",
    "relu": "relu",
    "relu_": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "leaky_relu": "leaky ReLU",
    "elu": "ELU",
    "relu6": "ReLU6",
    "softplus": "softplus",
    "hardswish": "hard swish",
    "hardsigmoid": "hard sigmoid",
    "selu": "SELU",
    "mish": "Mish",
    "celu": "ELU",
}


@dataclass(frozen=True)
class Candidate:
    """A change: its cause in a word or two, the change in words, and what makes it.

    `changes` are by index of a call; those of `buffers` by name.
    """

    cause: str
    words: str
    changes: Mapping[int, Change]
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Around:
    """What is known around a call: the calls by index, who made a value, what uses it, buffers."""

    calls: Sequence[Call]
    maker: Mapping[int, int]  # value -> call
    leaves: Mapping[int, str]
    shapes: Mapping[int, tuple[int, ...]]
    train: bool
    buffers: Mapping[str, np.ndarray]
    epsilon: float | None = None


def candidates(call: Call, around: Around) -> Iterator[Candidate]:
    """Changes to try of a call, the likeliest first."""
    for cause, words, _ in _of(call, around):
        yield Candidate(cause, words, {call.index: partial(_made, around, cause, words)})
    yield from _rotary(call, around)


def _made(around: Around, cause: str, words: str, call: Call) -> Any:
    """The change of that name, made of a call as it is when it is made."""
    for other, told, change in _of(call, around):
        if (other, told) == (cause, words):
            return change(call)
    return call.plain()


def _of(call: Call, around: Around) -> Iterator[tuple[str, str, Change]]:
    name = call.name.rstrip("_")
    given = call.given
    if name.startswith("conv"):
        yield from _convolution(call)
    if name == "linear":
        yield from _linear(call, around)
    if name in ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm"):
        yield from _norm(call, around)
    if name in ("sub", "add", "mul", "div", "truediv"):
        yield from _image(call, around)
    if name in ("add", "radd", "iadd", "clamp", "clamp_min"):
        number = next(
            (
                x
                for x in (*call.args[1:], *call.kwargs.values())
                if isinstance(x, float) and 0 <= x <= 1e-2
            ),
            None,
        )
        if number is not None:
            known = () if around.epsilon is None else (around.epsilon,)
            for value in dict.fromkeys((*known, *EPSILONS)):
                if value != number:
                    yield (
                        "epsilon",
                        f"epsilon {value:g} in JAX, {number:g} in PyTorch",
                        _swapped(number, value),
                    )
        yield from _mask(call)
        yield from _terms(call)
    if name == "masked_fill" or name == "where":
        yield from _mask(call)
    if name in ("mul", "rmul", "imul", "div", "truediv", "itruediv"):
        number = next((x for x in call.args if isinstance(x, float | int)), None)
        if number is not None:
            yield "scale", f"no factor {number:.6g} in JAX", lambda c: _tensor(c).clone()
            for power, words in ((2, "squared"), (-1, "inverted"), (0.5, "its root")):
                factor = abs(number) ** power
                if math.isfinite(factor):
                    yield (
                        "scale",
                        f"factor {factor:.6g} ({words}) in JAX, {number:.6g} in PyTorch",
                        _swapped(number, factor),
                    )
    if name in _NAMES:
        yield from _activation(call, name)
    if name in ("softmax", "log_softmax"):
        x = call.args[0] if call.args else given["input"]
        dim = given.get("dim", given.get("1", -1))
        function = torch.softmax if name == "softmax" else torch.log_softmax
        for other in range(x.ndim):
            if other != dim % x.ndim:
                yield (
                    "softmax axis",
                    f"softmax over axis {other - x.ndim} in JAX, "
                    f"{dim % x.ndim - x.ndim} in PyTorch (its axes)",
                    _over_axis(function, other),
                )
        if x.ndim >= 3 and x.shape[-1] == x.shape[-2]:
            for lower, words in (
                (True, "JAX alone has a causal mask"),
                (False, "JAX masks what a causal mask shows"),
            ):
                cause = "causal mask" if lower else "mask polarity"
                yield cause, words, _masked(function, lower, dim)
    if "pool" in name:
        yield from _pool(call, name)
    if name in ("interpolate", "upsample"):
        yield from _resize(call)
    if name in ("var", "std", "var_mean", "std_mean"):
        yield from _variance(call)
    if name in ("gru", "gru_cell"):
        yield (
            "bias",
            "JAX's GRU has no hidden bias of its third gate beside that of the input",
            _without_hidden_bias,
        )
    if name in ("matmul", "rmatmul", "bmm", "einsum"):
        yield from _matmul(call)
    if name in ("flatten", "reshape", "view", "channel_shuffle", "pixel_shuffle"):
        yield from _order(call)
    if name == "cat" and call.args:
        tensors = call.args[0]
        yield (
            "order of parts",
            "parts joined in the other order in JAX",
            lambda c: torch.cat(tuple(tensors)[::-1], *c.args[1:], **c.kwargs),
        )


def _image(call: Call, around: Around) -> Iterator[tuple[str, str, Change]]:
    """Of what is first done with an image that is the model's input."""
    x = call.args[0] if call.args else None
    leaf = around.leaves.get(call.inputs[0], "") if call.inputs else ""
    if isinstance(x, torch.Tensor) and x.ndim in (4, 5) and leaf.startswith("input "):
        yield (
            "channel order",
            "channels in reverse (RGB for BGR)",
            lambda c: c.function(c.args[0].flip(1), *c.args[1:], **c.kwargs),
        )


def _terms(call: Call) -> Iterator[tuple[str, str, Change]]:
    """Of a sum of two values, as a shortcut or position makes: one of them alone."""
    tensors = [x for x in call.args if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if call.name.startswith("clamp") or len(tensors) != 2:
        return
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    for place, x in enumerate(tensors):
        if x.shape == shape:
            words = f"JAX has the {('first', 'second')[place]} of PyTorch's two terms alone"
            yield "missing term", words, _computed(torch.Tensor.clone, x)


def _tensor(call: Call) -> torch.Tensor:
    return next(x for x in (*call.args, *call.kwargs.values()) if isinstance(x, torch.Tensor))


def _swapped(old: float, new: float) -> Change:
    def change(call: Call) -> Any:
        args = tuple(
            new if isinstance(x, float | int) and not isinstance(x, bool) and x == old else x
            for x in call.args
        )
        kwargs = {
            key: new if isinstance(x, float) and x == old else x for key, x in call.kwargs.items()
        }
        return call.function(*args, **kwargs)

    return change


def _pair(x: Any, count: int) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,) * count


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """What SAME pads before and after."""
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _padded(x: torch.Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    return functional.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


def _convolution(call: Call) -> Iterator[tuple[str, str, Change]]:
    given = {"stride": 1, "padding": 0, "dilation": 1, "bias": None, "groups": 1, **call.given}
    x, weight = given["input"], given["weight"]
    dims = weight.ndim - 2
    stride, dilation = (_pair(given[key], dims) for key in ("stride", "dilation"))
    window, sizes = weight.shape[2:], x.shape[2:]
    padding = None if isinstance(given["padding"], str) else _pair(given["padding"], dims)
    if "transpose" not in call.name:
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        pads = [same_padding(s, r, t) for s, r, t in zip(sizes, reach, stride, strict=True)]
        where = "".join(f"({a}, {b})" for a, b in pads)
        yield (
            "padding",
            f"JAX pads {where} (SAME), PyTorch {padding} on both sides",
            lambda c: c.again(input=_padded(x, pads), padding=0),
        )
        for other in range(max(reach) // 2 + 2):
            if padding != (other,) * dims:
                yield (
                    "padding",
                    f"JAX pads {other}, PyTorch {padding}",
                    again(padding=other),
                )
        for other in (1, 2, 3, 4):
            if (other,) * dims != dilation:
                pad = tuple((w - 1) * other // 2 for w in window)
                yield (
                    "dilation",
                    f"dilation {other} in JAX, {dilation[0]} in PyTorch",
                    again(dilation=other, padding=pad),
                )
    if given["bias"] is not None:
        yield "bias", "JAX adds no bias here", again(bias=None)
    yield from _orders(x, 1, lambda c, y: c.again(input=y))
    spatial = tuple(range(2, weight.ndim))
    yield (
        "flipped kernel",
        "JAX's kernel is flipped",
        lambda c: c.again(weight=weight.flip(spatial)),
    )
    if dims == 2 and window[0] == window[1]:
        yield (
            "transposed kernel",
            "JAX's kernel has height and width exchanged",
            lambda c: c.again(weight=weight.transpose(2, 3)),
        )
    if weight.shape[0] == weight.shape[1]:
        yield (
            "transposed kernel",
            "JAX's kernel has inputs and outputs exchanged",
            lambda c: c.again(weight=weight.transpose(0, 1)),
        )


def _orders(x: torch.Tensor, axis: int, use: Any) -> Iterator[tuple[str, str, Change]]:
    """The channels of an input in other orders."""

    def given_in(order: torch.Tensor) -> Change:
        return lambda c: use(c, x.index_select(axis, order))

    size = x.shape[axis]
    yield ("channel order", "channels in reverse (RGB for BGR)", lambda c: use(c, x.flip(axis)))
    for groups in range(2, size):
        if size % groups == 0:
            order = torch.arange(size).reshape(groups, -1).T.reshape(-1)
            yield (
                "group order",
                f"channels shuffled as {groups} groups",
                given_in(order),
            )


def _linear(call: Call, around: Around) -> Iterator[tuple[str, str, Change]]:
    given = {"bias": None, **call.given}
    x, weight = given["input"], given["weight"]
    if given["bias"] is not None:
        yield "bias", "JAX adds no bias here", again(bias=None)
    if weight.shape[0] == weight.shape[1]:
        yield (
            "transposed kernel",
            "JAX's kernel has inputs and outputs exchanged",
            lambda c: c.again(weight=weight.T),
        )
    maker = around.maker.get(call.inputs[0]) if call.inputs else None
    before = None if maker is None else around.calls[maker]
    if before is not None and before.inputs and x.ndim == 2:
        shape = around.shapes[before.inputs[0]]
        if len(shape) in (4, 5) and math.prod(shape[1:]) == x.shape[1]:
            yield (
                "flatten order",
                f"JAX flattens {shape[1:]} with channels last, PyTorch with channels first",
                lambda c: c.again(
                    input=x.reshape(len(x), *shape[1:]).movedim(1, -1).reshape(x.shape)
                ),
            )
    yield from _orders(x, x.ndim - 1, lambda c, y: c.again(input=y))


def _norm(call: Call, around: Around) -> Iterator[tuple[str, str, Change]]:
    given = call.given
    epsilon = given.get("eps", 1e-5)
    known = () if around.epsilon is None else (around.epsilon,)
    for value in dict.fromkeys((*known, *EPSILONS)):
        if epsilon is not None and value != epsilon:
            yield (
                "epsilon",
                f"epsilon {value:g} in JAX, {epsilon:g} in PyTorch",
                again(eps=value),
            )
    if call.name == "batch_norm":
        if given["training"]:
            yield (
                "running statistics in training",
                "JAX normalises by running statistics",
                again(training=False),
            )
        else:
            yield (
                "batch statistics in evaluation",
                "JAX normalises by the batch's statistics",
                lambda c: c.again(training=True, running_mean=None, running_var=None),
            )
    if given.get("weight") is not None:
        yield "scale", "JAX has no scale here", again(weight=None)
    if given.get("bias") is not None:
        yield "bias", "JAX adds no bias here", again(bias=None)
    if call.name == "group_norm":
        channels = given["input"].shape[1]
        for groups in range(1, channels + 1):
            if channels % groups == 0 and groups != given["num_groups"]:
                yield (
                    "number of groups",
                    f"{groups} groups in JAX",
                    again(num_groups=groups),
                )


def _activation(call: Call, name: str) -> Iterator[tuple[str, str, Change]]:
    mine = _NAMES[name]
    x = _tensor(call)
    if name == "gelu":
        other = "tanh" if call.given.get("approximate", "none") == "none" else "none"
        words = {
            "tanh": "JAX approximates GELU by tanh, PyTorch is exact",
            "none": "JAX's GELU is exact, PyTorch approximates by tanh",
        }
        yield ("tanh GELU", words[other], lambda c: functional.gelu(_tensor(c), approximate=other))
    if name == "leaky_relu":
        for slope in SLOPES:
            yield (
                "slope",
                f"slope {slope} in JAX, {call.given.get('negative_slope')} in PyTorch",
                _computed(functional.leaky_relu, x, slope),
            )
    for other, function in ACTIVATIONS.items():
        if other != mine:
            yield (
                "activation",
                f"{other} in JAX, {mine} in PyTorch",
                _activated(function),
            )


def _computed(function: Callable[..., Any], *arguments: Any) -> Change:
    """The function of these arguments in place of the call."""
    return lambda _: function(*arguments)


def _activated(function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda c: function(_tensor(c).clone())


def _times(factor: float) -> Change:
    """The call's result, of several the first, times a factor."""

    def change(call: Call) -> Any:
        result = call.plain()
        if isinstance(result, tuple):
            return (result[0] * factor, *result[1:])
        return result * factor

    return change


def _selected(order: torch.Tensor) -> Change:
    """The call's result, its last axis in another order."""
    return lambda c: c.plain().index_select(-1, order)


def _over_axis(function: Callable[..., torch.Tensor], axis: int) -> Change:
    return lambda c: function(_tensor(c), axis)


def _masked(function: Callable[..., torch.Tensor], lower: bool, axis: int) -> Change:
    return lambda c: function(_causal(_tensor(c), lower), axis)


def _permuted(x: torch.Tensor, order: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    return x.permute(*order).reshape(*shape)


def _split_backwards(x: torch.Tensor, axis: int, a: int, b: int) -> torch.Tensor:
    """An axis of a * b split into (b, a), and these exchanged."""
    shape = (*x.shape[:axis], b, a, *x.shape[axis + 1 :])
    return x.reshape(shape).transpose(axis, axis + 1)


def _lower(x: torch.Tensor) -> torch.Tensor:
    """What a causal mask shows of scores."""
    return torch.ones(x.shape[-2:], dtype=torch.bool).tril()


def _causal(x: torch.Tensor, lower: bool) -> torch.Tensor:
    return torch.where(_lower(x) == lower, x, torch.finfo(x.dtype).min)


def _mask(call: Call) -> Iterator[tuple[str, str, Change]]:
    """Of calls that put a mask on scores."""
    if call.name == "masked_fill":
        x, hidden = _tensor(call), call.kwargs.get("mask", (*call.args, None, None)[1])
        if hidden is None:
            return
    elif call.name == "where":
        if len(call.args) != 3 or not isinstance(call.args[0], torch.Tensor):
            return
        hidden, one, other = call.args
        if _hides(one):
            x = other
        elif _hides(other):
            x, hidden = one, ~hidden
        else:
            return
        if not isinstance(x, torch.Tensor):
            return
    else:
        tensors = [x for x in call.args if isinstance(x, torch.Tensor)]
        if len(tensors) < 2:
            return
        x, other = tensors[:2]
        if not other.is_floating_point() or float(other.detach().min()) > -1e4:
            return
        hidden = other < -1e4
    hidden = hidden.expand(x.shape)
    causal = x.ndim > 1 and bool((hidden == ~_lower(x)).all())
    yield "causal mask" if causal else "mask", "JAX has no mask", lambda c: x.clone()
    yield (
        "mask polarity",
        "JAX hides what PyTorch shows, and shows what it hides",
        lambda c: torch.where(hidden, x, torch.finfo(x.dtype).min),
    )


def _hides(x: Any) -> bool:
    """Whether this is what scores are filled with that a mask hides."""
    if isinstance(x, torch.Tensor):
        return x.is_floating_point() and bool(x.numel()) and float(x.detach().max()) < -1e4
    return isinstance(x, float | int) and x < -1e4


def _pool(call: Call, name: str) -> Iterator[tuple[str, str, Change]]:
    given = call.given
    if "adaptive" in name or "kernel_size" not in given:
        return
    x = given["input"]
    dims = 1 if "1d" in name else 3 if "3d" in name else 2
    window = _pair(given["kernel_size"], dims)
    stride = _pair(given.get("stride") or window, dims)
    padding = _pair(given.get("padding", 0), dims)
    average = "avg" in name
    fill = 0.0 if average else -math.inf
    if average:
        counted = given.get("count_include_pad", True)
        words = "does not count padding" if counted else "counts padding"
        yield (
            "count_include_pad",
            f"JAX's mean {words}",
            lambda c: c.again(count_include_pad=not counted),
        )
    rounds = given.get("ceil_mode", False)
    yield (
        "ceil_mode",
        f"JAX rounds the size {'down' if rounds else 'up'}",
        lambda c: c.again(ceil_mode=not rounds),
    )
    yield (
        "ceil_mode",
        "JAX rounds the size up, by padding one more",
        lambda c: c.again(
            input=_padded(x, [(p, p + t - 1) for p, t in zip(padding, stride, strict=True)], fill),
            padding=0,
        ),
    )
    pads = [same_padding(s, w, t) for s, w, t in zip(x.shape[-dims:], window, stride, strict=True)]
    where = "".join(f"({a}, {b})" for a, b in pads)
    yield (
        "padding",
        f"JAX pads {where} (SAME), PyTorch {padding} on both sides",
        lambda c: c.again(input=_padded(x, pads, fill), padding=0),
    )
    if average:

        def uncounted(c: Call) -> Any:
            ones = c.again(input=_padded(torch.ones_like(x), pads), padding=0)
            return c.again(input=_padded(x, pads), padding=0) / ones

        yield "padding", f"JAX pads {where} (SAME) and does not count it", uncounted
    for other in range(max(window) // 2 + 1):
        if (other,) * dims != padding:
            yield (
                "padding",
                f"JAX pads {other}, PyTorch {padding}",
                again(padding=other),
            )


def _resize(call: Call) -> Iterator[tuple[str, str, Change]]:
    given = {"align_corners": None, "antialias": False, **call.given}
    given = {key: value for key, value in given.items() if key != "recompute_scale_factor"}
    corners, smooth = bool(given["align_corners"]), given["antialias"]
    size = given.get("size")

    def resized(**other: Any) -> Change:
        return lambda c: functional.interpolate(**{**given, "input": given["input"], **other})

    if size is None and given.get("scale_factor") is None:
        return
    linear = given["mode"] in ("bilinear", "bicubic", "linear", "trilinear")
    if linear:
        told = "aligns corners" if not corners else "does not align corners"
        yield "align_corners", f"JAX {told}", resized(align_corners=not corners)
        if given["mode"] in ("bilinear", "bicubic"):
            told = "antialiases" if not smooth else "does not antialias"
            yield "antialias", f"JAX {told}", resized(antialias=not smooth)
            yield (
                "align_corners",
                f"JAX aligns corners: {not corners}; antialiases: {not smooth}",
                resized(align_corners=not corners, antialias=not smooth),
            )
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        if mode != given["mode"] and given["input"].ndim == 4:
            more = {"align_corners": None, "antialias": False} if "nearest" in mode else {}
            yield "way of resizing", f"{mode} in JAX", resized(mode=mode, **more)


def _variance(call: Call) -> Iterator[tuple[str, str, Change]]:
    result = call.plain()
    both = isinstance(result, tuple)  # with the mean
    count = _tensor(call).numel() // (result[0] if both else result).numel()
    if count < 2:
        return
    power = 1.0 if call.name.startswith("var") else 0.5
    for factor, words in (
        ((count - 1) / count, "JAX's variance is biased, PyTorch's unbiased"),
        (count / (count - 1), "JAX's variance is unbiased, PyTorch's biased"),
    ):
        yield "biased variance", words, _times(factor**power)


def _without_hidden_bias(call: Call) -> Any:
    """A GRU whose hidden bias of the third gate is in the other: its vectors come in pairs."""
    given = (call.args, call.kwargs)
    vectors = [x for x in _pytree.tree_leaves(given) if isinstance(x, torch.Tensor) and x.ndim == 1]
    other: dict[int, torch.Tensor] = {}
    for first, second in zip(vectors[::2], vectors[1::2], strict=True):
        third = torch.where(torch.arange(len(second)) < len(second) // 3 * 2, 0.0, second)
        other |= {id(first): first + third, id(second): second - third}
    args, kwargs = _pytree.tree_map(lambda x: other.get(id(x), x), given)
    return call.function(*args, **kwargs)


def _matmul(call: Call) -> Iterator[tuple[str, str, Change]]:
    """Attention's heads in another order."""
    tensors = [x for x in call.args if isinstance(x, torch.Tensor)]
    if len(tensors) != 2 or any(x.ndim != 4 for x in tensors):
        return
    first, second = tensors
    heads = second.shape[1]
    for groups in range(2, heads):
        if heads % groups == 0:
            order = torch.arange(heads).reshape(groups, -1).T.reshape(-1)
            yield (
                "head order",
                "JAX gives queries the key and value heads in another order (tile for repeat)",
                _computed(call.function, first, second.index_select(1, order)),
            )


def _order(call: Call) -> Iterator[tuple[str, str, Change]]:
    """Values in another order."""
    x, result = _tensor(call), call.plain()
    if call.name == "channel_shuffle":
        groups = call.args[1] if len(call.args) > 1 else call.kwargs["groups"]
        channels = x.shape[1]
        yield (
            "group order",
            "JAX shuffles channels the other way",
            lambda c: torch.channel_shuffle(x, channels // groups),
        )
        yield "group order", "JAX does not shuffle channels", lambda c: x.clone()
    if result.ndim < x.ndim and x.ndim in (3, 4, 5) and result.shape[0] == x.shape[0]:
        for axes in permutations(range(1, x.ndim)):
            if axes != tuple(range(1, x.ndim)):
                order = (0, *axes)
                words = (
                    "JAX flattens channels last"
                    if axes[-1] == 1
                    else (f"JAX flattens axes in the order {axes}")
                )
                yield (
                    "flatten order",
                    words,
                    _computed(_permuted, x, order, result.shape),
                )
    if result.ndim > x.ndim and result.ndim - x.ndim == 1:
        for axis, (a, b) in enumerate(zip(result.shape, result.shape[1:], strict=False)):
            if a * b == (x.shape[axis] if axis < x.ndim else 0) and a > 1 and b > 1:
                yield (
                    "group order",
                    "JAX splits the axis the other way round",
                    _computed(_split_backwards, x, axis, a, b),
                )


def _powers(base: float, size: int) -> np.ndarray:
    return base ** -(np.arange(size) / size)


def _base(buffer: np.ndarray) -> float | None:
    """The base that a buffer's falling powers are of, None if it holds something else."""
    if buffer.ndim != 1 or buffer.size < 2 or not (buffer > 0).all():
        return None
    ratio = np.diff(np.log(buffer))
    if not np.allclose(ratio, ratio[0], rtol=1e-4) or ratio[0] >= 0:
        return None
    return math.exp(-ratio[0] * buffer.size)


def constants(run: Run) -> Iterator[Candidate]:
    """Buffers that hold the float32 roundings of known numbers, with these in float64."""
    for name in run.used:
        buffer = run.state.get(name)
        base = None if buffer is None else _base(buffer)
        if buffer is not None and base is not None:
            exact = _powers(float(f"{base:.4g}"), buffer.size)
            if 0 < np.abs(exact / buffer - 1).max() < 2.0**-22:
                words = f"PyTorch's {name} holds powers rounded to float32"
                yield Candidate("float32 constant", words, {}, {name: exact})


def _rotary(call: Call, around: Around) -> Iterator[Candidate]:
    """Of position embeddings by rotation: the base, and which values make a pair."""
    for value in call.inputs:
        name = around.leaves.get(value, "")
        buffer = around.buffers.get(name)
        base = None if buffer is None else _base(buffer)
        if buffer is None or base is None:
            continue
        for other in BASES:
            if abs(other / base - 1) > 1e-3:
                words = f"base {other:g} in JAX, {base:.6g} in PyTorch"
                yield Candidate("rotary base", words, {}, {name: _powers(other, buffer.size)})
    starts = _rotated(around)
    if call.index in {index for group in starts.values() for index in group[1]}:
        changes = {}
        for value, (size, _) in starts.items():
            maker = around.maker.get(value)
            if maker is None:
                continue
            order = torch.arange(size).reshape(-1, 2).T.reshape(-1)
            changes[maker] = _selected(order)
        yield Candidate(
            "rotary pairs", "JAX rotates neighbours (interleaved), PyTorch the halves", changes
        )
        back = {}
        for value, (size, _) in starts.items():
            maker = around.maker.get(value)
            if maker is not None:
                order = torch.arange(size).reshape(2, -1).T.reshape(-1)
                back[maker] = _selected(order)
        yield Candidate(
            "rotary pairs", "JAX rotates the halves, PyTorch neighbours (interleaved)", back
        )


def _rotated(around: Around) -> dict[int, tuple[int, set[int]]]:
    """Values whose halves are exchanged, one negated: by value the size and the calls of it."""
    found: dict[int, tuple[int, set[int]]] = {}
    for call in around.calls:
        if call.name != "cat" or len(call.inputs) != 2:
            continue
        source: set[int] = set()
        indices = {call.index}
        for value in call.inputs:
            maker = around.maker.get(value)
            while maker is not None and around.calls[maker].name in ("neg", "getitem", "chunk"):
                indices.add(maker)
                value = around.calls[maker].inputs[0]
                maker = around.maker.get(value)
            source.add(value)
        if len(source) != 1 or len(indices) < 3:
            continue
        start = source.pop()
        users = {c.index for c in around.calls if start in c.inputs and c.name == "mul"}
        joined = {c.index for c in around.calls if call.output in c.inputs}
        sums = {
            c.index
            for c in around.calls
            if any(v in c.inputs for u in users | joined for v in (around.calls[u].output,))
        }
        found[start] = (around.shapes[start][-1], indices | users | joined | sums)
    return found
