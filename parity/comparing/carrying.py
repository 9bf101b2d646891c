"""Which weight of a PyTorch model is which of a JAX model, and carrying them across.

Weights belong to layers. Layers are matched by kind, shape and the order in which the models use
them; words that say what a layer is for (query, gate, ...) come before order. What no known kind
explains is matched by shape, and said to be.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flax import nnx
from scipy.optimize import linear_sum_assignment

from data.base.errors import UserError
from parity.comparing.jax_side import Model

Array = np.ndarray
Turn = Callable[[Array], Array]
Names = Mapping[str, str] | Callable[[str], str | None] | None
_WORDS = {
    "query": "query q q_proj",
    "key": "key k k_proj",
    "value": "value v v_proj",
    "out": "out o o_proj out_proj",
    "gate": "gate gate_proj w1",
    "up": "up up_proj w3",
    "down": "down down_proj w2",
    "shortcut": "shortcut downsample skip",
    "attention": "attn attention self_attn",
    "mlp": "mlp ffn fc1 fc2 feed_forward",
}
_MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class Piece:
    """A weight in the canonical form: kernels (window..., in, out), all else as it is.

    On the PyTorch side `names` are summed and then turned by `turn`; on the JAX side `turn` makes
    an array of the model's own shape out of the canonical one.
    """

    names: tuple[str, ...]
    turn: Turn


@dataclass(frozen=True)
class Owner:
    """A layer, or a weight that belongs to none; `pieces` by role, `kind` and `shape` to match.

    `tied`: all of its weights are those of another layer too.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pieces: dict[str, Piece]
    tied: bool = False


@dataclass
class Carried:
    """Which weight is which.

    Attributes:
      pairs: PyTorch's owner and JAX's, of each that was matched.
      by: how each pair was matched, beside `pairs`.
      ambiguous: groups of PyTorch's layers that order alone told apart.
      torch_only: PyTorch's weights without a counterpart.
      jax_only: JAX's.

    """

    pairs: list[tuple[Owner, Owner]] = field(default_factory=list)
    by: list[str] = field(default_factory=list)
    ambiguous: list[list[str]] = field(default_factory=list)
    torch_only: list[str] = field(default_factory=list)
    jax_only: list[str] = field(default_factory=list)

    def to_jax(self, state: Mapping[str, Array], *, gradients: bool = False) -> dict[str, Array]:
        """PyTorch's arrays in JAX's names and shapes.

        The gradient of a sum of weights is that of one of them.
        """
        result = {}
        for theirs, ours in self.pairs:
            for role, piece in ours.pieces.items():
                source = theirs.pieces.get(role)
                if source is None or source.names[0] not in state:
                    continue
                arrays = [np.asarray(state[name], np.float64) for name in source.names]
                total = arrays[0] if gradients else sum(arrays[1:], arrays[0])
                result[piece.names[0]] = piece.turn(source.turn(total))
        return result

    def torch_name(self, jax_name: str) -> str:
        """The PyTorch weight that a JAX weight is."""
        for theirs, ours in self.pairs:
            for role, piece in ours.pieces.items():
                if piece.names[0] == jax_name and role in theirs.pieces:
                    return theirs.pieces[role].names[0]
        return ""


def _same(x: Array) -> Array:
    return x


def _rows(rows: slice) -> Turn:
    return lambda w: w[rows]


def _turned_rows(rows: slice) -> Turn:
    return lambda w: w[rows].T


def _in_shape(shape: Sequence[int]) -> Turn:
    return lambda w: w.reshape(shape)


def _after(first: Turn, second: Turn) -> Turn:
    return lambda w: second(first(w))


def _flipped(w: Array) -> Array:
    """A transposed convolution's kernel as PyTorch's has it."""
    window = tuple(range(w.ndim - 2))
    return np.swapaxes(np.flip(w, window), -1, -2)


def torch_owners(module: torch.nn.Module, used: Sequence[str]) -> list[Owner]:
    """The layers of a PyTorch model that own weights, in the order of their first use."""
    found: list[Owner] = []
    seen: set[int] = set()
    for path, layer in module.named_modules():
        own = dict([*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)])
        if own:
            tied = all(id(x) in seen for x in own.values())
            seen |= {id(x) for x in own.values()}
            owners = _torch_layer(f"{path}." if path else "", layer, own)
            found += [replace(owner, tied=tied) for owner in owners]
    place = {name: number for number, name in enumerate(used)}
    return sorted(
        found,
        key=lambda owner: min(
            place.get(name, len(place)) for piece in owner.pieces.values() for name in piece.names
        ),
    )


def _torch_layer(path: str, layer: torch.nn.Module, own: dict[str, Any]):
    name = path.rstrip(".")
    kind = type(layer).__name__

    def simple(form: str, turn: Turn) -> Owner:
        pieces = {"kernel": Piece((f"{path}weight",), turn)}
        if own.get("bias") is not None:
            pieces["bias"] = Piece((f"{path}bias",), _same)
        return Owner(name, form, turn(_empty(own["weight"])).shape, pieces)

    if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd):
        groups = layer.groups

        def transposed(w: Array) -> Array:
            parts = np.split(w, groups)
            return np.moveaxis(np.concatenate(parts, axis=1), (0, 1), (-1, -2))

        yield simple("transposed convolution", transposed)
    elif isinstance(layer, torch.nn.modules.conv._ConvNd):
        yield simple("convolution", lambda w: np.moveaxis(w, (0, 1), (-1, -2)))
    elif isinstance(layer, torch.nn.Linear):
        yield simple("linear", np.transpose)
    elif kind == "Conv1D" and own["weight"].ndim == 2:  # transformers' name for a linear layer
        yield simple("linear", _same)
    elif isinstance(layer, torch.nn.Embedding):
        yield simple("embedding", _same)
    elif isinstance(layer, torch.nn.MultiheadAttention):
        width = layer.embed_dim
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * width, (place + 1) * width)
            if layer.in_proj_weight is not None:
                weight = Piece((f"{path}in_proj_weight",), _turned_rows(rows))
                shape = (width, width)
            else:
                weight = Piece((f"{path}{part[0]}_proj_weight",), np.transpose)
                ins, outs = own[f"{part[0]}_proj_weight"].shape[::-1]
                shape = (ins, outs)
            pieces = {"kernel": weight}
            if layer.in_proj_bias is not None:
                pieces["bias"] = Piece((f"{path}in_proj_bias",), _rows(rows))
            yield Owner(f"{path}{part}", "linear", shape, pieces)
    elif isinstance(layer, torch.nn.LSTM | torch.nn.GRU | torch.nn.LSTMCell | torch.nn.GRUCell):
        lstm = isinstance(layer, torch.nn.LSTM | torch.nn.LSTMCell)
        ends = sorted({key.removeprefix("weight_ih") for key in own if key.startswith("weight_ih")})
        for end in ends:
            hidden = layer.hidden_size
            pieces = {}
            for place, gate in enumerate("ifgo" if lstm else "rzn"):
                rows = slice(place * hidden, (place + 1) * hidden)
                for side in "ih":
                    pieces[f"{side}{gate}"] = Piece(
                        (f"{path}weight_{side}h{end}",), _turned_rows(rows)
                    )
                if f"bias_ih{end}" in own:
                    both = (f"{path}bias_ih{end}", f"{path}bias_hh{end}")
                    names = both if gate != "n" else both[:1]
                    pieces[f"bias {gate}"] = Piece(names, _rows(rows))
                    if gate == "n":
                        pieces["hidden bias n"] = Piece((f"{path}bias_hh{end}",), _rows(rows))
            shape = (own[f"weight_ih{end}"].shape[1], hidden)
            yield Owner(name + end, "LSTM" if lstm else "GRU", shape, pieces)
    else:
        vectors = {key: x for key, x in own.items() if x is not None and x.ndim == 1}
        pieces = {
            role: Piece((f"{path}{key}",), _same)
            for role, key in (
                ("scale", "weight"),
                ("bias", "bias"),
                ("mean", "running_mean"),
                ("var", "running_var"),
            )
            if key in vectors
        }
        if pieces:
            first = next(iter(pieces.values())).names[0].removeprefix(path)
            yield Owner(name, "norm", tuple(vectors[first].shape), pieces)
        taken = {piece.names[0] for piece in pieces.values()}
        for key, x in own.items():
            if f"{path}{key}" not in taken and isinstance(x, torch.nn.Parameter):
                sizes = tuple(s for s in x.shape if s != 1)
                yield Owner(
                    f"{path}{key}",
                    "own",
                    sizes,
                    {"kernel": Piece((f"{path}{key}",), _in_shape(sizes))},
                )


def _empty(x: torch.Tensor) -> Array:
    return np.empty(tuple(x.shape), np.int8)


def jax_owners(model: Model, used: Sequence[str]) -> list[Owner]:
    """The layers of a JAX model that own weights, in the order of their first use."""
    groups: dict[str, list[str]] = defaultdict(list)
    cells = [
        path
        for path, layer in model.layers.items()
        if isinstance(layer, nnx.LSTMCell | nnx.OptimizedLSTMCell | nnx.GRUCell)
    ]
    for name in model.weights:
        cell = next((path for path in cells if name.startswith(f"{path}.")), None)
        groups[name.rpartition(".")[0] if cell is None else cell].append(name)
    found = []
    for path, names in groups.items():
        found += list(_jax_layer(path, model.layers.get(path), names, model.weights))
    place = {name: number for number, name in enumerate(used)}
    return sorted(
        found,
        key=lambda owner: min(
            place.get(piece.names[0], len(place)) for piece in owner.pieces.values()
        ),
    )


def _jax_layer(path: str, layer: Any, names: Sequence[str], weights: Mapping[str, Array]):
    def shaped(name: str, turn: Turn = _same) -> Piece:
        shape = weights[name].shape
        return Piece((name,), lambda w: turn(w).reshape(shape))

    leaf = {name.rpartition(".")[2]: name for name in names}
    if isinstance(layer, nnx.LSTMCell | nnx.OptimizedLSTMCell | nnx.GRUCell):
        yield _cell(path, layer, names, weights)
        return
    kernel = next(
        (
            leaf[key]
            for key in ("kernel", "w", "weight", "embedding")
            if key in leaf and weights[leaf[key]].ndim > 1
        ),
        None,
    )
    rest = list(names)
    if kernel is not None:
        w = weights[kernel]
        shape = w.shape
        turn: Turn = _same
        kind = "linear" if w.ndim == 2 else "convolution"
        last = path.rpartition(".")[2]
        if isinstance(layer, nnx.Embed) or kernel.endswith("embedding"):
            kind = "embedding"
        elif isinstance(layer, nnx.ConvTranspose):
            kind = "transposed convolution"
            if not layer.transpose_kernel:
                shape = (*shape[:-2], shape[-1], shape[-2])
                turn = _flipped
        elif isinstance(layer, nnx.LinearGeneral) or (
            layer is None and w.ndim == 3 and last in ("query", "key", "value", "out")
        ):
            ins = len(layer.axis) if layer is not None else (2 if last == "out" else 1)
            kind = "linear"
            shape = (int(np.prod(shape[:ins])), int(np.prod(shape[ins:])))
        elif isinstance(layer, nnx.Einsum):
            kind = "own"
        pieces = {"kernel": shaped(kernel, turn)}
        rest.remove(kernel)
        for key in ("bias", "b"):
            if key in leaf:
                pieces["bias"] = shaped(leaf[key])
                rest.remove(leaf[key])
        yield Owner(path, kind, tuple(shape), pieces)
    else:
        roles = {
            "scale": ("scale", "weight", "gamma", "g"),
            "bias": ("bias", "beta", "b"),
            "mean": ("mean",),
            "var": ("var",),
        }
        pieces = {}
        for role, keys in roles.items():
            for key in keys:
                if key in leaf and weights[leaf[key]].ndim == 1 and role not in pieces:
                    pieces[role] = shaped(leaf[key])
                    rest.remove(leaf[key])
        if pieces:
            yield Owner(path, "norm", weights[next(iter(pieces.values())).names[0]].shape, pieces)
    for name in rest:
        shape = tuple(s for s in weights[name].shape if s != 1)
        yield Owner(name, "own", shape, {"kernel": shaped(name)})


def _cell(path: str, layer: Any, names: Sequence[str], weights: Mapping[str, Array]) -> Owner:
    pieces: dict[str, Piece] = {}
    lstm = not isinstance(layer, nnx.GRUCell)
    if isinstance(layer, nnx.LSTMCell):
        for gate in "ifgo":
            for side in "ih":
                part = f"{path}.{side}{gate}{'_' if side + gate == 'if' else ''}"
                pieces[f"{side}{gate}"] = Piece((f"{part}.kernel",), _same)
                if f"{part}.bias" in names:
                    pieces[f"bias {gate}"] = Piece((f"{part}.bias",), _same)
    else:
        for side in "ih":
            for key in ("kernel", "bias"):
                if f"{path}.dense_{side}.{key}" in names:
                    pieces[f"{side} {key}"] = Piece((f"{path}.dense_{side}.{key}",), _same)
    return Owner(
        path, "LSTM" if lstm else "GRU", (layer.in_features, layer.hidden_features), pieces
    )


def _joined(theirs: Owner, ours: Owner) -> Owner:
    """PyTorch's gates side by side, for cells that keep them in one array."""
    if not any(role.endswith(" kernel") for role in ours.pieces):
        return theirs
    gates = "ifgo" if theirs.kind == "LSTM" else "rzn"
    pieces = dict(theirs.pieces)
    for side in "ih":
        name = theirs.pieces[f"{side}{gates[0]}"].names
        pieces[f"{side} kernel"] = Piece(name, np.transpose)
    if f"bias {gates[0]}" in theirs.pieces:
        names = theirs.pieces[f"bias {gates[0]}"].names
        biased = "h" if theirs.kind == "LSTM" else "i"
        pieces[f"{biased} bias"] = Piece(names, _same)
    return Owner(theirs.name, theirs.kind, theirs.shape, pieces)


def matched(theirs: Sequence[Owner], ours: Sequence[Owner], names: Names = None) -> Carried:
    """Pairs of owners.

    UserError if `names` names a layer that is not there.
    """
    result = Carried()
    left_theirs, left_ours = list(theirs), list(ours)

    def pair(a: Owner, b: Owner, by: str) -> None:
        result.pairs.append((_joined(a, b), b))
        result.by.append(by)
        left_theirs.remove(a)
        left_ours.remove(b)

    for a, b in _named(theirs, ours, names):
        alike = (a.kind, a.shape) == (b.kind, b.shape)
        other = a if alike else _in_place(a, b)
        left_theirs[left_theirs.index(a)] = other
        pair(other, b, "the names given")
    for kind, shape in dict.fromkeys((owner.kind, owner.shape) for owner in theirs):
        group = [o for o in left_theirs if (o.kind, o.shape) == (kind, shape)]
        others = [o for o in left_ours if (o.kind, o.shape) == (kind, shape)]
        if not group or not others:
            continue
        rows, columns, unsure = _assigned(group, others)
        for row, column in zip(rows, columns, strict=True):
            pair(group[row], others[column], kind)
        if unsure:
            result.ambiguous.append([owner.name for owner in group])
    for owner in list(left_theirs):
        same = [
            o
            for o in left_ours
            if _size(o) == _size(owner) and sorted(o.shape) == sorted(owner.shape)
        ]
        same = same or [o for o in left_ours if _size(o) == _size(owner)]
        if same:
            changed = _in_place(owner, same[0])
            left_theirs[left_theirs.index(owner)] = changed
            pair(changed, same[0], "shape alone")
    result.torch_only = [
        o.name for o in left_theirs if not set(o.pieces) <= {"mean", "var"} and not o.tied
    ]
    result.jax_only = [o.name for o in left_ours]
    for a, b in result.pairs:
        for role in sorted(set(a.pieces) ^ set(b.pieces)):
            if a.kind in ("LSTM", "GRU"):
                continue
            side = result.torch_only if role in a.pieces else result.jax_only
            side.append((a if role in a.pieces else b).pieces[role].names[0])
    return result


def _named(
    theirs: Sequence[Owner], ours: Sequence[Owner], names: Names
) -> Iterator[tuple[Owner, Owner]]:
    """The pairs that a user names.

    UserError if one is not there, is named twice, or has another number of values.
    """
    if names is None:
        return
    if not callable(names) and not isinstance(names, Mapping):
        raise UserError(f"names: a {type(names).__name__}; give a dict or a function")
    mine, at = {o.name: o for o in theirs}, {o.name: o for o in ours}
    unknown = [] if callable(names) else [name for name in names if name not in mine]
    if unknown:
        raise UserError(
            f"names: the PyTorch model has no layer {unknown[0]}; it has "
            f"{', '.join(sorted(mine)[:8])}"
        )
    taken: dict[str, str] = {}
    for owner in theirs:
        target = names(owner.name) if callable(names) else names.get(owner.name)
        if target is None:
            continue
        if target not in at:
            raise UserError(
                f"names: {owner.name} is to be {target}, which the JAX model lacks; it has "
                f"{', '.join(sorted(at)[:8])}"
            )
        if target in taken:
            raise UserError(f"names: {taken[target]} and {owner.name} are both to be {target}")
        if _size(owner) != _size(at[target]):
            raise UserError(
                f"names: {owner.name} is to be {target}, but they hold {owner.shape} and "
                f"{at[target].shape}"
            )
        taken[target] = owner.name
        yield owner, at[target]


def _in_place(theirs: Owner, ours: Owner) -> Owner:
    """PyTorch's layer with its first weight in the place of the first of one of another kind."""
    (main, source), role = next(iter(theirs.pieces.items())), next(iter(ours.pieces))
    turned = Piece(source.names, _after(source.turn, _by_shape(theirs, ours)))
    rest = {key: piece for key, piece in theirs.pieces.items() if key != main}
    return replace(theirs, pieces={**rest, role: turned})


def _size(owner: Owner) -> int:
    return int(np.prod(owner.shape))


def _by_shape(theirs: Owner, ours: Owner) -> Turn:
    if theirs.shape != ours.shape and theirs.shape[::-1] == ours.shape:
        return np.transpose
    return _same


def _meaning(name: str) -> set[str]:
    return {_MEANING[word] for word in re.split(r"[.\d]+", name.lower()) if word in _MEANING}


def _assigned(theirs: Sequence[Owner], ours: Sequence[Owner]) -> tuple[Any, Any, bool]:
    """Which is which in a group of one kind and shape; and whether order alone says so."""
    costs = np.zeros((len(theirs), len(ours)))
    plain = np.zeros_like(costs)
    roles = ("query", "key", "value", "out", "gate", "up", "down", "shortcut")
    far = 10 * (len(theirs) + len(ours))
    for row, a in enumerate(theirs):
        for column, b in enumerate(ours):
            plain[row, column] = abs(row - column)
            x, y = _meaning(a.name) & set(roles), _meaning(b.name) & set(roles)
            # a norm with a bias is not a scale of the same size without
            unlike = len(set(a.pieces) ^ set(b.pieces)) + (x != y)
            costs[row, column] = plain[row, column] + far * unlike
    rows, columns = linear_sum_assignment(costs)
    told = all(_meaning(o.name) & set(roles) for o in theirs)
    return rows, columns, len(theirs) > 1 and len(ours) > 1 and not told


def statistic(name: str) -> bool:
    """Whether a JAX weight is a batch statistic by its name."""
    return name.rpartition(".")[2] in ("mean", "var")
