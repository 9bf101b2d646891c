"""A network, or a whole run, turned over to the other framework."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

import trunk_jax.inference.load
import trunk_jax.network.exchange
import trunk_torch_ref.inference.load
import trunk_torch_ref.network.exchange
from data.base import writing
from data.base.errors import UserError
from data.base.progress import working
from data.base.writing import new_folder
from data.inference import stopping
from data.recipes.recipe import Recipe
from data.run import results, runfolder
from data.tree.hierarchy import Node, Tree
from trunk_jax.network.network import Network
from trunk_torch_ref.nodes import NodeNetwork

M = TypeVar("M", bound=NodeNetwork)
N = TypeVar("N")


@dataclass(frozen=True)
class _Side(Generic[N]):
    """A framework's part: how it reads a run's networks, and a network's state_dict."""

    load: Callable[[Path, Recipe, Tree, tuple[int, int, int]], dict[Node, N]]
    state_dict: Callable[[N], dict[str, np.ndarray]]


_JAX = _Side(trunk_jax.inference.load.load_networks, trunk_jax.network.exchange.to_state_dict)
_TORCH = _Side(
    trunk_torch_ref.inference.load.load_networks, trunk_torch_ref.network.exchange.to_state_dict
)
_SIDES: dict[str, _Side[Any]] = {"jax": _JAX, "torch": _TORCH}

_CARRIED = (
    "tree.json",
    "metrics.jsonl",
    "asl/*.json",
    "predictions-*.csv",
    "confusion-*.csv",
    stopping.FILE,
    "stopped-*.json",  # what the predictions cost
)


def to_torch(network: Network, module: M) -> M:
    """The module, its tensors overwritten by the network's arrays; it takes on their type.

    UserError listing every missing, extra or misshapen tensor; the module is then unchanged.
    """
    weights = trunk_jax.network.exchange.to_state_dict(network)
    load = trunk_torch_ref.network.exchange.from_state_dict
    load(module, weights)  # refuses what does not fit, before the module's type is changed
    load(module.double() if _is_double(weights) else module.float(), weights)
    _need_same(weights, trunk_torch_ref.network.exchange.to_state_dict(module))
    return module


def to_jax(module: NodeNetwork, network: Network) -> Network:
    """The network with its arrays replaced by the module's tensors, of their type.

    UserError listing every missing, extra or misshapen tensor, or every one that JAX cannot
    hold as it is (float64 without `jax_enable_x64`).
    """
    weights = trunk_torch_ref.network.exchange.to_state_dict(module)
    result = trunk_jax.network.exchange.from_state_dict(network, weights)
    _need_same(weights, trunk_jax.network.exchange.to_state_dict(result))
    return result


def _is_double(weights: Mapping[str, np.ndarray]) -> bool:
    return any(array.dtype == np.float64 for array in weights.values())


def _changed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[str]:
    """The tensors of a state_dict that differ in type or in any bit."""
    return [
        key
        for key, array in before.items()
        if array.dtype != after[key].dtype or array.tobytes() != after[key].tobytes()
    ]


def _need_same(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    changed = _changed(before, after)
    if changed:
        kinds = ", ".join(f"{key} ({before[key].dtype})" for key in changed)
        raise UserError(f"these tensors cannot be carried over bit for bit: {kinds}")


def convert_run(folder: Path, to: str, out: Path) -> dict[str, int]:
    """Write the finished run in `folder` to `out` as one of framework `to`.

    Returns the number of `nodes` and of `values` (parameters and statistics). The weights are
    loaded into the other framework's networks and back before `out` appears, whole or not at
    all. UserError for a run that is not finished, damaged, or of `to` already, and if `out`
    exists.
    """
    config = runfolder.read_config(folder)
    origin = config.get("framework")
    if origin not in _SIDES:
        raise UserError(f"{folder / 'config.json'} names no framework: {origin!r:.80}")
    if origin == to:
        raise UserError(f"{folder} is a {to} run already; choose the other --to")
    writing.need_new(out)
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} is not finished (go on with train --resume)")
    config = {k: v for k, v in config.items() if k != "settings"}  # those of its framework
    changed = {"config.json": config, "summary.json": results.read_summary(folder)}
    if (folder / "manifest.json").exists():
        about = runfolder.read_manifest(folder)
        entry = {
            "from": origin,
            "run": str(folder.absolute()),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        changed["manifest.json"] = about | {"converted": [*about.get("converted", []), entry]}

    recipe, tree = runfolder.read_recipe(folder), runfolder.read_tree(folder)
    shape = recipe.spec.image_shape
    side = _SIDES[origin]
    with working(f"loading the tree into {origin}"):
        networks = side.load(folder, recipe, tree, shape)
    states = {node: side.state_dict(network) for node, network in networks.items()}

    with new_folder(out) as aside:
        for name, value in changed.items():  # config.json first: it may say that it is compressed
            writing.write_json(aside / name, value | {"framework": to})
        for node, state in states.items():
            runfolder.write_weights(aside, tree.names[node], state)
        back: Callable[[Any, Any], Any] = to_jax if origin == "jax" else to_torch
        with working(f"loading the tree into {to}, and back to compare every bit"):
            for node, network in _SIDES[to].load(aside, recipe, tree, shape).items():
                returned = side.state_dict(back(network, networks[node]))
                _need_same(states[node], returned)
        for pattern in _CARRIED:
            for file in sorted(folder.glob(pattern)):
                writing.write_bytes(aside / file.relative_to(folder), file.read_bytes())
    values = sum(array.size for state in states.values() for array in state.values())
    return {"nodes": len(tree.nodes), "values": values}
