"""A PyTorch model run in float64, every call of a function written down, any call changed."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from parity.comparing.values import Value, in_order

Change = Callable[["Call"], Any]  # computes the call's result in place of its function


def again(**changed: Any) -> Change:
    """The call with some of its arguments changed."""
    return lambda call: call.again(**changed)


_LIBRARY = Path(torch.__file__).parent
_HERE = Path(__file__).parent
_NARROW = {torch.float32: torch.float64}


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's functions.

    Attributes:
      index: its number in the run.
      name: the function's, e.g. `conv2d`.
      path: of the module that it was made in.
      line: `file.py:12`.
      function: what is called.
      given: its arguments by name as far as names are known, else by place ("0", "1").
      args: the arguments as they came.
      kwargs: those given by name.
      inputs: numbers of the values among them.
      output: number of the first value that came out, -1 if none.

    """

    index: int
    name: str
    path: str
    line: str
    function: Callable[..., Any]
    given: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...] = ()
    output: int = -1

    def again(self, **other: Any) -> Any:
        """The function's result with some arguments replaced."""
        return self.function(**{**self.given, **other}) if other else self.plain()

    def plain(self) -> Any:
        """The function's result."""
        return self.function(*self.args, **self.kwargs)


@dataclass
class Run:
    """What a run gave.

    Attributes:
      values: all arrays, in the order in which they came.
      calls: by index.
      outputs: numbers of the model's outputs.
      gradients: by name of a parameter, and `input 0`; empty in evaluation.
      state: the buffers afterwards.
      loss: its value.
      used: names of parameters and buffers in the order of their first use.
      dropped: the calls that would have dropped values at random.

    """

    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    loss: float = 0.0
    used: list[str] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


_QUESTIONS = {
    "__set__",
    "size",
    "dim",
    "numel",
    "is_floating_point",
    "__len__",
    "stride",
    "is_contiguous",
    "data_ptr",
    "register_hook",
    "requires_grad_",
    "__repr__",
    "__hash__",
}
_BUILT_IN = {  # arguments of functions that do not say
    "conv1d": "input weight bias stride padding dilation groups",
    "conv2d": "input weight bias stride padding dilation groups",
    "conv3d": "input weight bias stride padding dilation groups",
    "conv_transpose1d": "input weight bias stride padding output_padding groups dilation",
    "conv_transpose2d": "input weight bias stride padding output_padding groups dilation",
    "conv_transpose3d": "input weight bias stride padding output_padding groups dilation",
    "linear": "input weight bias",
    "gelu": "input",
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d"),
        "input kernel_size stride padding dilation ceil_mode return_indices",
    ),
    "avg_pool1d": "input kernel_size stride padding ceil_mode count_include_pad",
    "avg_pool2d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "avg_pool3d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
}


def _named(function: Callable[..., Any], args: tuple, kwargs: dict) -> dict[str, Any]:
    name = getattr(function, "__name__", "")
    if name in _BUILT_IN:
        return {**dict(zip(_BUILT_IN[name].split(), args, strict=False)), **kwargs}
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)
    except (ValueError, TypeError):
        return {**{str(place): argument for place, argument in enumerate(args)}, **kwargs}


def callers_line() -> str:
    """The file and line of the code nearest to us that is neither PyTorch's nor ours."""
    frame = inspect.currentframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if _LIBRARY not in file.parents and _HERE not in file.parents:
            return f"{file.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class _Recorder(TorchFunctionMode):
    """Writes down every call, computes in float64 what asks for float32, and makes changes."""

    def __init__(
        self,
        run: Run,
        changes: Mapping[int, Change],
        single: bool = False,
        every: Change | None = None,
        dropout: bool = False,
    ):
        super().__init__()
        self.single, self.every, self.dropout = single, every, dropout
        self.run, self.changes, self.count = run, changes, 0
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []
        self.path: list[str] = [""]
        self.names: dict[int, str] = {}

    def add(self, tensor: torch.Tensor, **about: Any) -> int:
        array = tensor.detach().to(torch.float64).cpu().numpy().copy()
        self.run.values.append(Value(array, **about))
        self.numbers[id(tensor)] = number = len(self.run.values) - 1
        self.kept.append(tensor)
        return number

    def leave(self) -> None:
        self.path.pop()

    def leaf(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self.numbers:
            name = self.names.get(id(tensor), "")
            if name:
                self.run.used.append(name)
            self.add(tensor, made_by=-1, path="", operation="", line="", of=(), leaf=name)
        return self.numbers[id(tensor)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", str(function))
        if name in _QUESTIONS:
            return function(*args, **kwargs)
        if name == "__get__" and not isinstance(function(*args), torch.Tensor):
            return function(*args)
        if name == "scaled_dot_product_attention":
            with self:
                return _attention(*args, **kwargs)
        if name in ("float", "double") and function is not torch.double:
            function = torch.Tensor.float if self.single else torch.Tensor.double
            name = "double"
        types = {torch.float64: torch.float32} if self.single else _NARROW
        args, kwargs = _pytree.tree_map(
            lambda x: types.get(x, x) if isinstance(x, torch.dtype) else x, (args, kwargs)
        )
        drops = name.startswith("dropout") or name.endswith("_dropout")
        if drops and _drops(_named(function, args, kwargs)):
            self.run.dropped.append(self.count)
        if drops and not self.dropout:
            args, kwargs, function = args[:1] or (kwargs["input"],), {}, torch.Tensor.clone
        tensors = [
            x
            for x in _pytree.tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor) and x.is_floating_point()
        ]
        inputs = tuple(self.leaf(x) for x in tensors)
        index, self.count = self.count, self.count + 1
        given = _named(function, args, kwargs)
        call = Call(
            index,
            name.strip("_"),
            self.path[-1],
            callers_line(),
            function,
            given,
            args,
            kwargs,
            inputs,
        )
        change = self.changes.get(index, self.every)
        result = call.plain() if change is None else change(call)
        first = -1
        for x in _pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                number = self.add(
                    x, made_by=index, path=call.path, operation=call.name, line=call.line, of=inputs
                )
                first = number if first < 0 else first
            elif isinstance(x, torch.Tensor):
                self.kept.append(x)
        self.kept.append((args, kwargs))
        object.__setattr__(call, "output", first)
        self.run.calls.append(call)
        return result


def _drops(given: Mapping[str, Any]) -> bool:
    """Whether a call of dropout drops anything; PyTorch's function does unless told otherwise."""
    active = given.get("training", given.get("train", given.get("2", True)))
    return bool(active) and given.get("p", given.get("1", 0.5)) > 0


def without_dropout(module: torch.nn.Module) -> None:
    """Switch off what drops values at random inside of one call, or by means of its own."""
    for part in module.modules():
        own = "drop" in type(part).__name__.lower() or type(part).__name__ == "StochasticDepth"
        for name in ("dropout", "drop_prob", *(("p",) if own else ())):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """PyTorch's fused attention in single steps, so that these can be compared."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(times, -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


def outputs_of(result: Any) -> list[torch.Tensor]:
    """The numbers among what a model returned; of a `transformers` output its main ones."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(result, name, None), torch.Tensor):
            return [getattr(result, name)]
    found = _pytree.tree_leaves(in_order(result))
    return [x for x in found if isinstance(x, torch.Tensor) and x.is_floating_point()]


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def prepared(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64, on the CPU."""
    return copy.deepcopy(module).cpu().double()


def run(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    *,
    train: bool = False,
    loss: Callable[[list[torch.Tensor]], torch.Tensor] | None = None,
    changes: Mapping[int, Change] | None = None,
    buffers: Mapping[str, np.ndarray] | None = None,
    single: bool = False,
    every: Change | None = None,
    dropout: bool = False,
) -> Run:
    """One pass of a float64 model, which is left as it was.

    Args:
      module: as `prepared` gives it.
      inputs: float64 or whole numbers.
      train: train mode, in which `loss` of the outputs is differentiated; dropout is left out.
      loss: of the list of outputs.
      changes: by index of a call, what computes its result instead.
      buffers: values that buffers have in this run.
      single: compute in float32; the calls have the same numbers.
      every: what computes the results of all other calls.
      dropout: in evaluation, leave calls that drop values as they are.

    """
    module = copy.deepcopy(module).train(train)
    if train:
        without_dropout(module)
    result = Run()
    for name, buffer in module.named_buffers():
        if buffers and name in buffers:
            buffer.copy_(torch.tensor(buffers[name]).reshape(buffer.shape))
    if single:
        module = module.float()
        inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    inputs = [x.detach().clone().requires_grad_(train and x.is_floating_point()) for x in inputs]
    recorder = _Recorder(result, changes or {}, single, every, dropout)
    for place, x in enumerate(inputs):
        recorder.names[id(x)] = f"input {place}"
    tensors = [*module.named_parameters(), *module.named_buffers()]
    recorder.names |= {id(tensor): name for name, tensor in tensors}
    hooks = []
    for name, part in module.named_modules():
        hooks += [
            part.register_forward_pre_hook(lambda *_, name=name: recorder.path.append(name)),
            part.register_forward_hook(lambda *_: recorder.leave()),
        ]
    with (
        _default(torch.float32 if single else torch.float64),
        torch.set_grad_enabled(train),
        recorder,
    ):
        outputs = outputs_of(module(*inputs))
    for hook in hooks:
        hook.remove()
    result.outputs = [recorder.leaf(x) for x in outputs]
    result.used = [name for name in result.used if not name.startswith("input ")]
    if train and loss is not None:
        value = loss(outputs)
        result.loss = float(value.detach())
        if value.requires_grad:
            value.backward()
        for name, parameter in module.named_parameters():
            gradient = parameter.grad
            result.gradients[name] = (
                np.zeros(parameter.shape) if gradient is None else gradient.numpy()
            )
        for place, x in enumerate(inputs):
            if x.requires_grad:
                gradient = x.grad
                result.gradients[f"input {place}"] = (
                    np.zeros(x.shape) if gradient is None else gradient.numpy()
                )
    result.state = {name: buffer.numpy().copy() for name, buffer in module.named_buffers()}
    return result
