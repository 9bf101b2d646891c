"""Weights as arrays by name: read from files, and whether they fit a network.

How each framework takes them in is its own affair.
"""

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import safetensors
from safetensors import SafetensorError

from data.base import reading
from data.base.errors import UserError

Shape = tuple[int, ...]
_SHOWN = 16  # of all that is wrong
COUNTER = "num_batches_tracked"  # PyTorch's, of batch norms; nothing that is computed reads it
# What wrappers put before every name: DataParallel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "BF16": "<u2",
}
_HALVES = {"F16": "float16", "BF16": "bfloat16"}  # read as float32, which holds all their values


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; float16 and bfloat16 become float32, with a line.

    A prefix that all names share (`PREFIXES`) is taken off, with a line. UserError if the file is
    damaged, is PyTorch's own, holds numbers of fewer than 16 bits, or any that is not finite.
    """
    content = reading.content(file, reading.MOST_WEIGHTS)
    _need_no_pickle(file, content[:8])
    try:
        tensors = safetensors.deserialize(content)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error})") from None
    weights = finite({name: _array(file, name, tensor) for name, tensor in tensors}, file)
    halves = {_HALVES[t["dtype"]] for _, t in tensors if t["dtype"] in _HALVES}
    if halves:
        note_cast(file, halves)
    return plain_names(weights, file)


def finite(weights: dict[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """The weights of a file as they are. UserError if a number of them is not finite."""
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(f"{file}: {name:.80} holds NaN or infinite values")
    return weights


def need_safetensors(file: Path) -> None:
    """UserError if a file to start from is plainly of another kind; reads its first bytes."""
    try:
        with open(file, "rb") as content:
            _need_no_pickle(file, content.read(8))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from None


def _need_no_pickle(file: Path, first: bytes) -> None:
    """UserError for a file of PyTorch's, new (a zip file) or old (a pickle)."""
    # safetensors begins with the length of its header, of which the upper bytes are zero
    if first.startswith(b"PK\x03\x04") or (first[:1] == b"\x80" and any(first[4:])):
        raise UserError(
            f"{file} is a PyTorch file, not safetensors; turn it into one with python -m "
            f"parity.convert {file} --out FILE.safetensors"
        )


def _array(file: Path, name: str, tensor: Mapping) -> np.ndarray:
    kind, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if kind not in _TYPES:
        few = ", which has too few digits to be a weight here" if kind[:2] in _TINY else ""
        raise UserError(
            f"{file}: {name:.80} is of type {kind}{few}; export it as float32, float16 or bfloat16"
        )
    flat = np.frombuffer(data, _TYPES[kind])
    if kind == "BF16":  # float32's upper half
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    elif kind == "F16":
        flat = flat.astype(np.float32)
    return flat.reshape(shape)


_TINY = ("F8", "F6", "F4")


def note_cast(file: Path, kinds: Iterable[str]) -> None:
    """The line about numbers that are read as float32."""
    note(f"{file}: {' and '.join(sorted(kinds))} read as float32")


def plain_names(weights: Mapping[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """The weights without a prefix of `PREFIXES` that all names share, and the line about it."""
    found = ""
    while weights:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            break
        found += prefix
        weights = {name.removeprefix(prefix): array for name, array in weights.items()}
    if found:
        note(f"{file}: read without the prefix {found!r} of all its names")
    return dict(weights)


@cache
def note(line: str) -> None:
    """A line on standard error; once, however often the file is read."""
    print(f"note: {line}", file=sys.stderr)


def with_counters(
    expected: Mapping[str, Shape], weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The weights, and zeros for the batch counters that older and other exporters leave out."""
    missing = [key for key in expected if key.endswith(COUNTER) and key not in weights]
    return dict(weights) | {key: np.zeros(expected[key], np.int64) for key in missing}


def check_fit(
    expected: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray],
    types: Mapping[str, np.dtype] | None = None,
) -> None:
    """UserError listing missing, extra and misshapen tensors; `expected` are shapes.

    With `types` also those whose numbers are of another kind: floats must be float32 or float64,
    integers must be such that the expected type holds them.
    """
    problems = [f"missing {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} is {_text(weights[key].shape)}, not {_text(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != tuple(shape)
    ]
    problems += [
        f"{key} is {weights[key].dtype}, not {kind}"
        for key, kind in (types or {}).items()
        if key in weights and not _holds(kind, weights[key])
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(f"{problem:.160}" for problem in problems[:_SHOWN])
        raise UserError(f"the weights do not fit the network: {shown}{more}")


def _holds(kind: np.dtype, array: np.ndarray) -> bool:
    if kind.kind == "f":
        return array.dtype in (np.float32, np.float64)
    return array.dtype.kind in "iu" and bool((array.astype(kind) == array).all())


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
