"""A run's folder: its layout, and files that are whole or absent, never half-written.

| file | content |
|---|---|
| `config.json` | framework, dataset, flags and the recipe in full: all that decides the result |
| `manifest.json` | versions, device, command, git commit, dataset fingerprint, times |
| `tree.json` | the tree so far |
| `asl/<node>.json` | averaged softmax likelihood, volatility, groups, what they were chosen from |
| `checkpoints/<node>/<phase>/` | training state, last and best |
| `weights/<node>.safetensors` | final weights, with PyTorch's names and layouts |
| `metrics.jsonl` | a line an epoch |
| `summary.json` | accuracy by split and node, costs; present when the run is finished |
| `predictions-<split>.csv`, `confusion-<split>.csv` | written by train (test) and evaluate |
| `stopping.json` | where images stop, as set by `evaluate --stop-at` or `--beam` |
| `stopped-<split>.json` | what the images of the predictions cost, where there is such a rule |
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from data.base import reading, writing
from data.base.errors import UserError
from data.base.locking import hold
from data.base.weights import read_safetensors
from data.base.writing import naming, write_bytes, write_json
from data.recipes import recipe
from data.recipes.recipe import Recipe
from data.tree import hierarchy
from data.tree.hierarchy import Tree

FORMAT = 1
# What is read of `manifest.json`; what is only kept may be anything.
MANIFEST: reading.Form = {
    "started": str,
    "command": [str],
    "flags": {str: Any},
    "python": str,
    "packages": {str: str},
    "device": {"kind": str},
    "machine": {"system": str, "processor": str, "cores": int},
    "git": ({"commit": str, "modified": bool}, None),
    "dataset": {
        "version": str,
        "title": str,
        "data_dir": (str, None),
        "sha256": str,
        "images": {"train": int, "validation": int, "test": int},
    },
    "seconds?": float,
    "resumed?": [str],
    "converted?": [Any],
}
_MOST_METRICS = 64 * 2**20  # bytes; 200,000 epochs


def read_json(path: Path) -> Any:
    """Read JSON; UserError if the file is missing, too large or not JSON."""
    return reading.json_file(path)


def create(path: Path, config: dict[str, Any], resume: bool) -> bool:
    """Make the run folder, or go on with it. True if it existed as a run.

    UserError if it exists and `resume` is off, or if it was started with another
    configuration (the settings that differ are named).
    """
    config_file = path / "config.json"
    if config_file.exists():
        if not resume:
            raise UserError(
                f"{path} exists; add --resume to go on with it, or choose another --out"
            )
        old, new = read_config(path), json.loads(json.dumps(config))
        if "settings" not in old:  # converted from the other framework, or a shipped tree
            new.pop("settings", None)
        different = differences(new, old)
        if different:
            raise UserError(
                f"{path} was started with other settings ({'; '.join(different)}); "
                "resume with the same flags, or choose another --out"
            )
        return True
    write_json(config_file, config)
    return False


def differences(new: Any, old: Any, at: str = "") -> list[str]:
    """Where two plain values differ: the place, the old value and the new one."""
    if isinstance(new, dict) and isinstance(old, dict):
        keys = sorted(new.keys() | old.keys())
        return [
            d for k in keys for d in differences(new.get(k), old.get(k), f"{at}.{k}" if at else k)
        ]
    return [] if new == old else [f"{at}: {old!r:.60}, now {new!r:.60}"]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the run folder, made if it is not there. Released however we end.

    UserError if another process holds it, or if something else is in its place.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose another --out")
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
        foreign = any(not entry.name.startswith(".") for entry in path.iterdir())
        if foreign and not (path / "config.json").exists():
            raise UserError(f"{path} exists and is no run folder; choose another --out")
    with hold(path):
        for leftover in _leftovers(path):
            writing.remove(leftover)
        yield


def _leftovers(path: Path) -> list[Path]:
    """What killed processes have left half-written. Where no run is, only a run's beginning."""
    try:
        read_config(path)
    except UserError:
        begun = not (path / "config.json").exists()
        return writing.leftovers(path, r"config\.json") if begun else []
    return writing.leftovers(path, below=True)


def read_config(path: Path) -> dict[str, Any]:
    """The run's `config.json`. UserError if this is no run folder."""
    if not path.is_dir():
        raise UserError(f"{path} is no run folder: there is no such folder")
    if not (path / "config.json").exists():
        raise UserError(f"{path} is no run folder: it has no config.json")
    reading.need_inside(path)
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path / 'config.json'} is not a run's configuration")
    return config


def read_recipe(path: Path) -> Recipe:
    """The recipe in the run's `config.json`."""
    config = read_config(path)
    try:
        return recipe.from_json(config.get("recipe"))
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from None


def read_recipe_of_tree(path: Path) -> Recipe:
    """`read_recipe`; UserError if the run is a monolithic baseline, which has nothing of a tree."""
    chosen = read_recipe(path)
    if chosen.baseline is not None:
        raise UserError(
            f"{path} is a baseline ({chosen.backbone}), and this is for trees; "
            "evaluate and compare take baselines"
        )
    return chosen


def data_dir(path: Path) -> str | None:
    """The `--data-dir` that the run was trained with, if it is still there."""
    file = path / "manifest.json"
    value = read_json(file) if file.exists() else {}
    about = value.get("dataset") if isinstance(value, dict) else None
    folder = about.get("data_dir") if isinstance(about, dict) else None
    try:
        return folder if isinstance(folder, str) and Path(folder).is_dir() else None
    except (OSError, ValueError):  # too long, a NUL in it
        return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The run's `manifest.json`. UserError if it is missing or something else."""
    return reading.json_of_form(path / "manifest.json", MANIFEST, "a run's manifest")


def write_tree(path: Path, tree: Tree) -> None:
    """Store `tree.json`."""
    write_json(path / "tree.json", hierarchy.to_json(tree))


def read_tree(path: Path) -> Tree:
    """Read `tree.json`; UserError if it is no tree."""
    value = read_json(path / "tree.json")
    try:
        return hierarchy.from_json(value)
    except UserError as error:
        raise UserError(f"{path / 'tree.json'}: {error}") from None


def write_asl(
    path: Path,
    node: str,
    asl: np.ndarray,
    volatility: float | None,
    groups: hierarchy.Groups,
    selection: dict[str, Any] | None = None,
) -> None:
    """Store a node's averaged softmax likelihood and what followed from it.

    `volatility`: one that gives the groups, None if none does. `selection`: the candidates that
    `--volatility auto` chose from.
    """
    value = {
        "volatility": volatility,
        "groups": [list(group) for group in groups],
        "asl": asl.tolist(),
    }
    if selection is not None:
        value["auto"] = selection
    write_json(path / "asl" / f"{node}.json", value)


def read_asl(path: Path, node: str, classes: int) -> tuple[np.ndarray, hierarchy.Groups] | None:
    """A node's ASL, float64 [classes, classes], and its groups, or None if not yet taken."""
    file = path / "asl" / f"{node}.json"
    if not file.exists():
        return None
    value = read_json(file)
    try:
        asl = np.array(value["asl"], np.float64)
        groups = hierarchy.as_groups(value["groups"])
        indices = [index for group in groups for index in group]
        whole = sorted(indices) == list(range(classes)) and all(groups)
        whole = whole and all(type(index) is int for index in indices)
        if asl.shape != (classes, classes) or not np.isfinite(asl).all() or not whole:
            raise ValueError(f"it is not the ASL of {classes} classes")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is not an ASL file ({error})") from None
    return asl, groups


def read_volatility(path: Path, node: str) -> float | None:
    """The volatility in a node's ASL file; None if there is none, or no file.

    With `--volatility auto` the recipe does not tell it.
    """
    file = path / "asl" / f"{node}.json"
    value = read_json(file).get("volatility") if file.exists() else None
    if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
        raise UserError(f"{file} is not an ASL file (volatility is {value!r:.80})")
    return value


def write_weights(path: Path, node: str, weights: dict[str, np.ndarray]) -> None:
    """Store a node's final weights, a state_dict with PyTorch's names and layouts."""
    contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
    write_bytes(path / "weights" / f"{node}.safetensors", save_safetensors(contiguous))


def read_weights(path: Path, node: str) -> dict[str, np.ndarray]:
    """A node's final weights. UserError if missing, damaged, or not finite."""
    file = path / "weights" / f"{node}.safetensors"
    if not file.exists():
        raise UserError(f"{file} is missing: the run is not finished (go on with --resume)")
    return read_safetensors(file)


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a line to `metrics.jsonl`. Values that are not finite become null."""
    clean = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    file = path / "metrics.jsonl"
    end = file.stat().st_size if file.exists() else 0
    with naming(file), open(file, "a") as lines:
        try:
            lines.write(json.dumps(clean) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(file, end)
            raise


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut short by a kill is left out."""
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    rows = []
    for line in reading.content(file, _MOST_METRICS).splitlines():
        try:
            row = reading.json_text(line)
        except (ValueError, RecursionError):
            break
        if isinstance(row, dict) and type(row.get("epoch", 0)) is int:
            rows.append(row)
    return rows


def forget_metrics(path: Path, node: str, phase: str, after: int) -> None:
    """Drop a stage's lines past epoch `after`: they will be written again."""
    rows = read_metrics(path)
    kept = [
        row
        for row in rows
        if (row.get("node"), row.get("phase")) != (node, phase) or row.get("epoch", 0) <= after
    ]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    write_bytes(path / "metrics.jsonl", text.encode())
