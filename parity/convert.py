"""`python -m parity.convert RUN --to torch|jax`: a finished run as one of the other framework.

Weights travel as a PyTorch state_dict. Which array of a layer is which tensor, and how it is
laid out, follows from the layer's type alone (`trunk_jax.network.exchange.LAYOUTS`), so the same
few lines convert every model.

A converted run has the tree, ASL, metrics, predictions and summary of the original, its
weights bit for bit, and the other framework's name; `manifest.json` goes on describing the
training and gains a list `converted`. Training checkpoints are not carried over: their form is
each framework's own, and a finished run needs none.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

import trunk_jax.framework
import trunk_jax.network.exchange
import trunk_torch_ref.framework
import trunk_torch_ref.network.exchange
from data.base.errors import UserError, run_command
from data.images import datasets
from data.run import results, runfolder
from data.run.options import Parser
from data.tree import hierarchy
from trunk_jax.network.network import Network

_RUNS = {"jax": trunk_jax.framework, "torch": trunk_torch_ref.framework}
_EXCHANGES = {"jax": trunk_jax.network.exchange, "torch": trunk_torch_ref.network.exchange}
_CARRIED = ("tree.json", "metrics.jsonl", "asl/*.json", "predictions-*.csv", "confusion-*.csv")


def to_torch(network: Network, module: nn.Module) -> nn.Module:
    """The module, its tensors overwritten by the network's arrays; it takes on their type.

    UserError listing every missing, extra or misshapen tensor; the module is then unchanged.
    """
    weights = trunk_jax.network.exchange.to_state_dict(network)
    load = trunk_torch_ref.network.exchange.from_state_dict
    load(module, weights)  # refuses what does not fit, before the module's type is changed
    load(module.double() if _is_double(weights) else module.float(), weights)
    _need_same(weights, trunk_torch_ref.network.exchange.to_state_dict(module))
    return module


def to_jax(module: nn.Module, network: Network) -> Network:
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
    if origin not in _RUNS:
        raise UserError(f"{folder / 'config.json'} names no framework: {origin!r:.80}")
    if origin == to:
        raise UserError(f"{folder} is a {to} run already; choose the other --to")
    if os.path.lexists(out):
        raise UserError(f"{out} exists; remove it, or choose another --out")
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} is not finished (go on with train --resume)")
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
    shape = datasets.spec(recipe.dataset).image_shape
    networks = _RUNS[origin].load_networks(folder, recipe, tree, shape)
    states = {node: _EXCHANGES[origin].to_state_dict(networks[node]) for node in networks}

    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        for name, value in changed.items():  # config.json first: it may say that it is compressed
            runfolder.write_json(aside / name, value | {"framework": to})
        for node, state in states.items():
            runfolder.write_weights(aside, tree.names[node], state)
        back = to_jax if origin == "jax" else to_torch
        for node, network in _RUNS[to].load_networks(aside, recipe, tree, shape).items():
            returned = _EXCHANGES[origin].to_state_dict(back(network, networks[node]))
            _need_same(states[node], returned)
        for pattern in _CARRIED:
            for file in sorted(folder.glob(pattern)):
                runfolder.write_bytes(aside / file.relative_to(folder), file.read_bytes())
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    values = sum(array.size for state in states.values() for array in state.values())
    return {"nodes": len(hierarchy.nodes(tree)), "values": values}


def main(arguments: list[str] | None = None) -> None:
    """Convert as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m parity.convert",
        description="Turn a finished run over to the other framework, weights bit for bit.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--to", choices=sorted(_RUNS), required=True, help="the framework to convert to")
    add("--out", metavar="DIR", help="the new run folder (default: RUN-torch or RUN-jax)")
    options = parser.parse_args(arguments)
    folder = Path(options.run)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    out = Path(options.out) if options.out else named.with_name(f"{named.name}-{options.to}")
    counts = convert_run(folder, options.to, out)
    print(
        f"{out}: {counts['nodes']} nodes, {counts['values']:,} numbers, bit for bit the same in "
        "both frameworks"
    )
    print("training checkpoints are not carried over")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
