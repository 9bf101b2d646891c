"""A JAX model traced to its program, which is then computed in float64 with every value kept."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax._src import source_info_util
from jax.extend import core as jex_core

from parity.comparing.values import Value, in_order

_HERE = os.path.dirname(__file__)
_SCOPE = "@"  # marks our scopes among those of others
_NESTED = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "remat",
    "remat2",
    "checkpoint",
    "custom_lin",
)
_TRAIN = {"train", "training", "is_training"}  # what models call the flag of their mode
_EVALUATION = {"deterministic", "use_running_average", "inference"}
_NARROW = (jnp.dtype("float32"),)
_HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
_QUICK: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "True",
}


@dataclass(frozen=True)
class Model:
    """A JAX model as a pure function: `apply(weights, inputs, train)` gives (outputs, statistics).

    Attributes:
      apply: the function.
      weights: by path, float64 arrays: parameters and statistics.
      trained: the paths of those that gradients are taken of.
      layers: the modules by path, none of a pure function.
      line: what is said of the model.

    """

    apply: Callable[[dict[str, Any], Sequence[Any], bool], tuple[Any, dict[str, Any]]]
    weights: dict[str, np.ndarray]
    trained: frozenset[str]
    layers: dict[str, Any]
    line: str


def path_of(path: Sequence[Any]) -> str:
    """`("blocks", 0, "conv")` as `blocks.0.conv`."""
    return ".".join(str(part) for part in path)


def from_nnx(module: nnx.Module, *, dropout: bool = True, half: bool = True) -> Model:
    """The model of an NNX module, which stays as it is.

    Evaluation without its `dropout`, and `half` precision in float64, where these are False.
    """
    graph, variables, *others = nnx.split(module, (nnx.Param, nnx.BatchStat), ...)
    (rest,) = others
    flat = dict(nnx.to_flat_state(variables))
    paths = {path_of(path): path for path in flat}
    layers = {path_of(path): layer for path, layer in nnx.iter_modules(module)}
    trained = frozenset(name for name, path in paths.items() if isinstance(flat[path], nnx.Param))
    weights = {name: np.asarray(flat[path][...]) for name, path in paths.items()}
    weights = {
        name: w.astype(np.float64) if jnp.issubdtype(w.dtype, jnp.floating) else w
        for name, w in weights.items()
    }

    def apply(arrays: dict[str, Any], inputs: Sequence[Any], train: bool) -> tuple[Any, Any]:
        state = nnx.from_flat_state(
            {path: flat[path].replace(arrays[name]) for name, path in paths.items()}
        )
        merged = nnx.merge(graph, state, rest, copy=True)
        in_float64(merged, half=half)
        if train:
            merged.train()
            without_dropout(merged)
        else:
            merged.eval()
            if not dropout:
                without_dropout(merged)
        how = in_mode(merged, len(inputs), train)
        with scoped(merged), _linen_without_dropout(train or not dropout):
            outputs = merged(*inputs, **how)
        after = dict(nnx.to_flat_state(nnx.state(merged, (nnx.Param, nnx.BatchStat))))
        return outputs, {
            name: after[path][...] for name, path in paths.items() if name not in trained
        }

    return Model(apply, weights, trained, layers, type(module).__name__)


def from_function(function: Callable[..., Any], tree: Any) -> Model:
    """The model of a pure function `function(tree, *inputs)`."""
    leaves, form = jax.tree.flatten_with_path(tree)
    names = [
        ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
        for path, _ in leaves
    ]
    weights = {
        name: np.asarray(leaf, np.float64) for name, (_, leaf) in zip(names, leaves, strict=True)
    }

    def apply(arrays: dict[str, Any], inputs: Sequence[Any], train: bool) -> tuple[Any, Any]:
        given = (jax.tree.unflatten(form, [arrays[name] for name in names]), *inputs)
        return function(*given, **in_mode(function, len(given), train)), {}

    what = getattr(function, "__name__", "function")
    return Model(apply, weights, frozenset(names), {}, what)


def in_float64(module: nnx.Module, *, half: bool) -> None:
    """Have layers that were made for float32 compute in float64; without `half` all others too."""
    narrow = _NARROW if half else (*_NARROW, *_HALF)
    for _, layer in nnx.iter_modules(module):
        for name in ("dtype", "param_dtype"):
            if getattr(layer, name, None) is not None and getattr(layer, name) in narrow:
                setattr(layer, name, jnp.dtype("float64"))


def in_mode(model: Any, given: int, train: bool) -> dict[str, Any]:
    """The arguments after the first `given` by which a model is told its mode, if it has them.

    A Linen module says what it updates beside.
    """
    bridged = isinstance(model, nnx.bridge.ToNNX)
    call = model.to_nnx__module if bridged else model
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return {}
    named = {p.name for p in parameters[:given] if p.kind is not p.KEYWORD_ONLY}
    free = {p.name for p in parameters} - named
    how: dict[str, Any] = dict.fromkeys(_TRAIN & free, train)
    how |= dict.fromkeys(_EVALUATION & free, not train)
    if bridged and train:
        how["mutable"] = ["batch_stats"]
    return how


@contextmanager
def _linen_without_dropout(wanted: bool) -> Iterator[None]:
    """Linen's dropout drops nothing inside."""
    with ExitStack() as stack:
        if wanted:
            passes = patch.object(linen.Dropout, "__call__", lambda self, x, *_, **__: x)
            stack.enter_context(passes)
        yield


def without_dropout(module: nnx.Module) -> None:
    """Switch off what drops values at random. A layer's `rate` may also be a dilation."""
    for _, layer in nnx.iter_modules(module):
        own = "drop" in type(layer).__name__.lower()
        for name in ("dropout_rate", *(("rate",) if own else ())):
            if name in vars(layer) and isinstance(getattr(layer, name), float | int):
                setattr(layer, name, 0.0)


@contextmanager
def scoped(module: nnx.Module) -> Iterator[None]:
    """Names of layers go into the program that is traced inside."""
    paths = {id(layer): path_of(path) for path, layer in nnx.iter_modules(module)}
    classes = {type(layer) for _, layer in nnx.iter_modules(module)}

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            path = paths.get(id(self))
            if path is None:
                return original(self, *arguments, **keywords)
            with jax.named_scope(f"{_SCOPE}{path}{_SCOPE}"):
                return original(self, *arguments, **keywords)

        return call

    with ExitStack() as stack:
        for layer in classes:
            if "__call__" in vars(layer):
                stack.enter_context(patch.object(layer, "__call__", wrapped(layer.__call__)))
        yield


@dataclass
class Run:
    """What a run gave; as `torch_side.Run`.

    Attributes:
      values: all arrays of floating point.
      outputs: numbers of the model's outputs.
      gradients: by path, and `input 0`.
      state: statistics afterwards.
      loss: its value.
      random: whether the program draws random numbers.
      half: whether it computes in bfloat16 or float16.

    """

    values: list[Value] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    loss: float = 0.0
    random: bool = False
    half: bool = False


@dataclass
class _Node:
    """A value of the program, before it has an array."""

    operation: str
    path: str
    line: str
    of: tuple[int, ...]
    leaf: str | None = None


class Program:
    """A compiled pass of a model: the same for any weights and inputs of the same shapes.

    Args:
      model: the model.
      inputs: examples.
      train: train mode; the loss is differentiated.
      loss: of the list of outputs.
      exact: compute in float64 what the model computes in bfloat16 or float16.
      single: compute in float32, as the model itself does; its values have the same numbers.

    """

    def __init__(
        self,
        model: Model,
        inputs: Sequence[np.ndarray],
        *,
        train: bool = False,
        loss: Callable[[list[Any]], Any] | None = None,
        exact: bool = False,
        single: bool = False,
    ):
        self.model, self.train = model, train
        self.exact, self.single = exact, single
        self.nodes: list[_Node] = []
        self.half = self.random = False
        fixed = {name: w for name, w in model.weights.items() if name not in model.trained}
        chosen = {name: w for name, w in model.weights.items() if name in model.trained}
        floats = [np.issubdtype(x.dtype, np.floating) for x in inputs]
        # the place of each input among all, of those of floating point and of whole numbers
        self.places = [
            [place for place, f in enumerate(floats) if f is wanted] for wanted in (True, False)
        ]

        def forward(trained, fixed, floating, whole):
            floating, whole = iter(floating), iter(whole)
            given = [next(floating) if f else next(whole) for f in floats]
            outputs, state = model.apply({**trained, **fixed}, given, train)
            outputs = [x for x in jax.tree.leaves(in_order(outputs)) if _floating(x)]
            value = loss(outputs) if loss is not None else jnp.zeros(())
            return value, (outputs, state)

        def full(trained, fixed, floating, whole):
            if not train:
                value, (outputs, state) = forward(trained, fixed, floating, whole)
                return outputs, state, value, ({}, [])
            run = jax.value_and_grad(forward, argnums=(0, 2), has_aux=True)
            (value, (outputs, state)), gradients = run(trained, fixed, floating, whole)
            return outputs, state, value, gradients

        with jax.enable_x64(True):
            arguments = self._arguments(chosen, fixed, inputs)
            closed, shape = jax.make_jaxpr(full, return_shape=True)(*arguments)
            self.form = jax.tree.structure(shape)
            leaves, _ = jax.tree.flatten_with_path(arguments)
            names = [self._name(path) for path, _ in leaves]
            self.used = self._order(closed.jaxpr, names)
            self.out_ids: list[int] = []

            def everything(*flat):
                self.nodes, self.out_ids = [], []
                self.kept: list[int] = []
                arrays: list[Any] = []
                outs = self._evaluate(closed.jaxpr, closed.consts, flat, names, arrays)
                self.out_ids = [number for number, _ in outs]
                return [x for _, x in outs], arrays

            flat = [self._lifted(x) if single else x for _, x in leaves]
            self._compiled = jax.jit(everything).lower(*flat).compile(compiler_options=_QUICK)

    def _name(self, path: Sequence[Any]) -> str:
        group, name = path[0].idx, getattr(path[1], "key", getattr(path[1], "idx", None))
        return str(name) if group < 2 else f"input {self.places[group - 2][int(name or 0)]}"

    @staticmethod
    def _arguments(trained: dict, fixed: dict, inputs: Sequence[np.ndarray]) -> tuple:
        floating = [jnp.asarray(x, jnp.float64) for x in inputs if x.dtype.kind == "f"]
        whole = [jnp.asarray(x) for x in inputs if x.dtype.kind != "f"]
        return (
            {name: jnp.asarray(w) for name, w in trained.items()},
            {name: jnp.asarray(w) for name, w in fixed.items()},
            floating,
            whole,
        )

    def _order(self, jaxpr: Any, names: Sequence[str]) -> list[str]:
        """Weights in the order in which the program first uses them."""
        found: list[str] = []

        def walk(jaxpr: Any, names: dict[Any, str]) -> None:
            for eqn in jaxpr.eqns:
                inner = _inner(eqn)
                for x in eqn.invars:
                    name = names.get(x) if not isinstance(x, jex_core.Literal) else None
                    if name is None:
                        continue
                    if inner is None and name not in found:
                        found.append(name)
                if inner is not None:
                    offset = len(eqn.invars) - len(inner[0].invars)
                    walk(
                        inner[0],
                        {
                            var: names[x]
                            for var, x in zip(inner[0].invars, eqn.invars[offset:], strict=False)
                            if not isinstance(x, jex_core.Literal) and x in names
                        },
                    )

        walk(jaxpr, dict(zip(jaxpr.invars, names, strict=True)))
        return [name for name in found if not name.startswith("input ")]

    def _evaluate(self, jaxpr, consts, arguments, names, arrays) -> list[tuple[int, Any]]:
        """Compute the program; `arrays` gets what is kept."""

        def node(x, operation, path, line, of, leaf=None) -> int:
            if not _floating(x):
                # whole numbers and truths: what they come from is what they depend on
                return -2
            self.nodes.append(_Node(operation, path, line, of, leaf))
            self.kept.append(len(self.nodes) - 1)
            arrays.append(x)
            return len(self.nodes) - 1

        def evaluate(jaxpr, consts, arguments, outer):
            known: dict[Any, tuple[int, Any]] = {}
            for var, const in zip(jaxpr.constvars, consts, strict=True):
                const = self._lifted(const)
                known[var] = (
                    const if isinstance(const, tuple) else (node(const, "", "", "", (), ""), const)
                )
            known |= dict(zip(jaxpr.invars, arguments, strict=True))

            def read(x):
                if isinstance(x, jex_core.Literal):
                    return -2, self._lifted(x.val)
                return known[x]

            for eqn in jaxpr.eqns:
                given = [read(x) for x in eqn.invars]
                path, line = self._where(eqn, outer)
                inner = _inner(eqn)
                if inner is not None:
                    body, body_consts = inner
                    given = given[len(given) - len(body.invars) :]
                    results = evaluate(body, body_consts, given, (path, line, _called(eqn)))
                else:
                    of = tuple(number for number, _ in given if number >= 0)
                    outs = self._bind(eqn, [x for _, x in given])
                    name = outer[2] or eqn.primitive.name
                    backward = "transpose(" in str(eqn.source_info.name_stack)
                    results = [(-2 if backward else node(x, name, path, line, of), x) for x in outs]
                    results = [
                        (number if number != -2 else (of[0] if of else -2), x)
                        for number, x in results
                    ]
                known |= dict(zip(eqn.outvars, results, strict=True))
            return [read(x) for x in jaxpr.outvars]

        start = []
        for name, x in zip(names, arguments, strict=True):
            x = self._lifted(x)
            start.append((node(x, "", "", "", (), name), x))
        return evaluate(jaxpr, consts, start, ("", "", ""))

    def _lifted(self, x: Any) -> Any:
        dtype = getattr(x, "dtype", None)
        if self.single:
            if dtype != jnp.dtype("float64"):
                return x
            if isinstance(x, np.ndarray | np.generic):
                # what masks are filled with is the least number of a type: of float32 here
                most = np.finfo(np.float32).max
                return np.where(np.isfinite(x), np.clip(x, -most, most), x).astype(np.float32)
            return jax.lax.convert_element_type(x, jnp.float32)
        if dtype in _NARROW or (self.exact and dtype in _HALF):
            return jax.lax.convert_element_type(x, jnp.float64)
        return x

    def _bind(self, eqn: Any, given: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        self.random |= name.startswith(("random_", "threefry", "rng_"))
        params = dict(eqn.primitive.get_bind_params(eqn.params))
        if any(isinstance(v, jex_core.Jaxpr | jex_core.ClosedJaxpr) for v in params.values()):
            given = [
                x
                if not hasattr(v.aval, "dtype") or getattr(x, "dtype", None) == v.aval.dtype
                else jax.lax.convert_element_type(x, v.aval.dtype)
                for x, v in zip(given, eqn.invars, strict=True)
            ]
        else:
            params = {key: self._wide(value) for key, value in params.items()}
        result = eqn.primitive.bind(*given, **params)
        results = list(result) if eqn.primitive.multiple_results else [result]
        return [self._lifted(x) for x in results]

    def _wide(self, value: Any) -> Any:
        try:
            dtype = jnp.dtype(value) if not isinstance(value, str | int | float | bool) else None
        except TypeError:
            return value
        if value is None or dtype is None:
            return value
        if dtype in _HALF:
            self.half = True
        if self.single:
            return jnp.dtype("float32") if dtype == jnp.dtype("float64") else value
        if dtype in _NARROW or (self.exact and dtype in _HALF):
            return jnp.dtype("float64")
        return value

    def _where(self, eqn: Any, outer: tuple[str, str, str]) -> tuple[str, str]:
        scopes = str(eqn.source_info.name_stack).split(_SCOPE)
        path = scopes[-2] if len(scopes) > 2 else outer[0]
        line = ""
        for frame in source_info_util.user_frames(eqn.source_info.traceback):
            if f"{os.sep}flax{os.sep}" not in frame.file_name and _HERE not in frame.file_name:
                line = f"{os.path.basename(frame.file_name)}:{frame.start_line}"
                break
        return path, line or outer[1]

    def run(self, weights: Mapping[str, np.ndarray], inputs: Sequence[np.ndarray]) -> Run:
        """One pass with these weights and inputs."""
        trained = {n: weights[n] for n in self.model.weights if n in self.model.trained}
        fixed = {n: weights[n] for n in self.model.weights if n not in self.model.trained}
        with jax.enable_x64(True):
            flat = jax.tree.leaves(self._arguments(trained, fixed, inputs))
            flat = [self._lifted(x) for x in flat] if self.single else flat
            outs, arrays = self._compiled(*flat)
            outs = [np.asarray(x) if not _is_key(x) else x for x in outs]
            arrays = [np.asarray(x, np.float64) for x in arrays]
        outputs, state, loss, gradients = jax.tree.unflatten(self.form, outs)
        result = Run(random=self.random, half=self.half)
        for number, (about, array) in enumerate(zip(self.nodes, arrays, strict=True)):
            made_by = -1 if about.leaf is not None else number
            result.values.append(
                Value(array, made_by, about.path, about.operation, about.line, about.of, about.leaf)
            )
        result.outputs = self.out_ids[: len(outputs)]
        result.state = dict(state)
        result.loss = float(loss)
        result.gradients = {
            **gradients[0],
            **{f"input {place}": g for place, g in zip(self.places[0], gradients[1], strict=False)},
        }
        return result


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _inner(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    if eqn.primitive.name not in _NESTED:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            jaxpr = eqn.params[key]
            if isinstance(jaxpr, jex_core.ClosedJaxpr):
                return jaxpr.jaxpr, jaxpr.consts
            return jaxpr, ()
    return None


def _called(eqn: Any) -> str:
    name = eqn.params.get("name", "")
    return name if isinstance(name, str) and name.strip("_") else ""
