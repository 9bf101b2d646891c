"""Reading a published folder (docs/trunk.md, section 5): JSON, and tensors without objects.

A `.pt` file is a pickle, and a pickle can run code when it is loaded. Files are read by
PyTorch's restricted reader alone, which knows tensors and plain containers and refuses the
rest before anything of it is called; `tree.pkl` is never opened.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.base import reading, weights
from data.base.errors import UserError
from data.run import runfolder
from data.tree import hierarchy
from data.tree.hierarchy import Groups, Tree

# What savers put around a state_dict, or around another of these.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
_DEEPEST = 4  # wrappers around each other
_SHOWN = 8  # keys of what is no state_dict
_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Layout:
    """The tree of a published folder.

    `inputs`: by node (leaves left out), the channels, height and width of its input.
    """

    tree: Tree
    inputs: dict[str, tuple[int, ...]]


def read_layout(folder: Path) -> Layout:
    """The tree and each node's input, from `target_map.json` and `inputs_to_models.json`.

    UserError if a file is missing, or if the two do not describe one tree.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no published folder: there is no such folder")
    reading.need_inside(folder)
    models_file = _find(folder, "inputs_to_models.json")
    models = runfolder.read_json(models_file)
    target_map = runfolder.read_json(_find(folder, "target_map.json"))
    try:
        tree = hierarchy.from_published(target_map, models)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    inputs: dict[str, tuple[int, ...]] = {}
    for node in tree.nodes:
        name, width = tree.names[node], tree.width(node)
        match models[name]:
            case [[int(c), int(h), int(w)], int(outputs)] if min(c, h, w, outputs) > 0:
                inputs[name] = (c, h, w)
            case _:
                raise UserError(
                    f"{models_file}: {name} must be [[channels, height, width], outputs], not "
                    f"{models[name]!r:.80}"
                )
        if outputs != width:
            raise UserError(
                f"{models_file}: {name} has {outputs} outputs, but {width} in the target map"
            )
    return Layout(tree, inputs)


def read_groups(folder: Path, node: str, classes: int) -> Groups:
    """The groups in `{node}_supergroups.json`, in its order: a partition of the node's classes.

    UserError if the file is missing or holds something else.
    """
    file = _find(folder, f"{node}_supergroups.json")
    value = runfolder.read_json(file)
    try:
        groups = tuple(tuple(value[f"Group {k + 1}"]) for k in range(len(value)))
        indices = [index for group in groups for index in group]
        if sorted(indices) != list(range(classes)) or any(type(i) is not int for i in indices):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f'{file} must hold "Group 1", "Group 2", ... with each of the indices 0 to '
            f"{classes - 1} once"
        ) from None
    return groups


def read_asl(folder: Path, node: str, classes: int) -> np.ndarray:
    """A node's averaged softmax likelihood, float64 [classes, classes].

    UserError if the file is missing, unreadable or holds something else.
    """
    file = folder / "model_softmax" / f"{node}_avg_softmax.pt"
    value = read_tensors(file)
    shape = (classes, classes)
    if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        raise UserError(f"{file} must hold one tensor of {classes}x{classes} floats")
    asl = _array(value, file).astype(np.float64)
    if not np.isfinite(asl).all():
        raise UserError(f"{file} holds NaN or infinite values")
    return asl


def read_weights(folder: Path, node: str) -> dict[str, np.ndarray]:
    """A node's state_dict, plain or with the epoch and the optimiser's state beside it.

    UserError if the file is missing, unreadable or holds something else.
    """
    return read_state_dict(folder / "model_weights" / f"{node}.pt")


def read_state_dict(file: Path) -> dict[str, np.ndarray]:
    """The state_dict in a file of PyTorch's, or of safetensors.

    It may lie under one of `WRAPPERS` beside other things, or be the only thing there; its names
    may share one of `data.base.weights.PREFIXES`; a line says so. UserError if the file is
    missing, unreadable or holds something else, or a number that is not finite.
    """
    if file.suffix == ".safetensors":
        return weights.read_safetensors(file)
    value = read_tensors(file)
    within: list[str] = []
    while len(within) < _DEEPEST and (wrapper := _wrapper(value)) is not None:
        within.append(wrapper)
        value = value[wrapper]
    whole = isinstance(value, dict) and value
    if not whole or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise UserError(f"{file} holds no state_dict (tensors by name){_keys(value, within)}")
    found = weights.finite(arrays(value, file), file)
    if within:
        named = " in ".join(map(repr, reversed(within)))
        weights.note(f"{file}: read what is under {named}, and nothing beside it")
    return weights.plain_names(found, file)


def _wrapper(value: Any) -> str | None:
    """The key under which a state_dict lies; None if it lies bare, or nowhere that is known."""
    if not isinstance(value, dict):
        return None
    below = [key for key, inner in value.items() if isinstance(key, str) and _has_items(inner)]
    known = next((key for key in WRAPPERS if key in below), None)
    return below[0] if known is None and len(below) == len(value) == 1 else known


def _has_items(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _keys(value: Any, within: list[str]) -> str:
    """What a refusal says of the keys that are there."""
    if not isinstance(value, dict):
        return f"; it holds a {type(value).__name__}"
    shown = ", ".join(f"{key!r:.40}" for key in list(value)[:_SHOWN]) or "none"
    more = ", ..." if len(value) > _SHOWN else ""
    place = f" under {within[-1]!r}" if within else ""
    return f"; its keys{place}: {shown}{more}; save the state_dict alone"


def arrays(tensors: Mapping[str, Tensor], file: Path) -> dict[str, np.ndarray]:
    """Tensors of a file as NumPy's. UserError for such as NumPy does not have.

    A view that repeats its numbers may claim any size, so it is refused too.
    """
    for key, tensor in tensors.items():
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{file}: {key:.80} repeats its numbers; it was not loaded")
    return {key: _array(tensor, file) for key, tensor in tensors.items()}


def _array(tensor: Tensor, file: Path) -> np.ndarray:
    if tensor.dtype in _HALVES:
        weights.note_cast(file, [_HALVES[tensor.dtype]])
        tensor = tensor.float()
    elif tensor.is_floating_point() and tensor.dtype.itemsize < 2:
        raise UserError(
            f"{file} holds numbers of type {str(tensor.dtype).removeprefix('torch.')}, which has "
            "too few digits to be a weight here; export it as float32, float16 or bfloat16"
        )
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:  # a type or layout that NumPy does not have
        raise UserError(f"{file} holds an unusual tensor ({_first_sentence(error)})") from None


def read_tensors(file: Path) -> Any:
    """The tensors of a `.pt` file, on the CPU wherever they were saved.

    UserError if it is missing or damaged, or holds objects: none is made, no code is run.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing")
    try:
        if file.stat().st_size > reading.MOST_WEIGHTS:
            raise ValueError(f"it is larger than {reading.MOST_WEIGHTS >> 20} MiB")
        if zipfile.is_zipfile(file):
            reading.need_plain_archive(file)
        with warnings.catch_warnings(action="ignore"):  # about odd files, which are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file} is damaged, or holds objects other than tensors, which can run code when "
            "loaded; it was not loaded"
        ) from None
    except Exception as error:  # each way to be damaged raises a different type
        raise UserError(f"{file} cannot be read ({_first_sentence(error)}); get it anew") from None


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:160]


def _find(folder: Path, name: str) -> Path:
    """A file of the folder, or of its `model_weights`: it may be in either."""
    for file in (folder / name, folder / "model_weights" / name):
        if file.exists():
            return file
    raise UserError(f"{folder / name} is missing (and is not in model_weights either)")
