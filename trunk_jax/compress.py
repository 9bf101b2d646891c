"""`python -m trunk_jax.compress RUN --quantize int8 | --prune 0.2`: a smaller run of a tree.

The new run folder evaluates like any other, in either framework; it cannot be trained further.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from data.base import tables, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.writing import new_folder, save_json
from data.images.splits import split
from data.run import compression, derived, results, runfolder
from data.run.compression import Compression
from data.run.dataset import load_of_run
from trunk_jax.inference.load import load

_CARRIED = ("tree.json", "metrics.jsonl", "asl/*.json")


def smaller_weights(folder: Path, how: Compression) -> dict[str, Any]:
    """The compressed state_dict of each node, by name."""
    from trunk_jax.measure.costs import input_shapes
    from trunk_jax.network.exchange import to_state_dict
    from trunk_jax.shrink import prune
    from trunk_jax.shrink.quantized import quantize

    model = load(folder)
    tree, shapes = model.tree, input_shapes(model)
    result = {}
    for node, network in model.networks.items():
        if how.method == "int8":
            result[tree.names[node]] = to_state_dict(quantize(network))
            continue
        plan = prune.chains(network, shapes[node], bool(tree.children(node)))
        result[tree.names[node]] = prune.removed(to_state_dict(network), plan, how.share)
    return result


def compress(folder: Path, how: Compression, out: Path, data_dir: str | None) -> dict[str, Any]:
    """Write the compressed run to `out`, whole or not at all, and evaluate both.

    Returns `before` and `after`. UserError for a run that is not finished or is compressed
    already, and if `out` exists.
    """
    from trunk_jax.machine import backend

    backend.start()
    from trunk_jax.framework import FRAMEWORK

    config = runfolder.read_config(folder)
    if compression.read(folder) is not None:
        raise UserError(f"{folder} is compressed already; start from the run it was made of")
    if os.path.lexists(out):
        raise UserError(f"{out} exists; remove it, or choose another --out")
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} is not finished (go on with train --resume)")
    recipe = runfolder.read_recipe_of_tree(folder)
    dataset = load_of_run(folder, recipe, data_dir)
    splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    parts = {name: getattr(splits, name) for name in ("validation", "test")}

    def summary_of(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        model = FRAMEWORK.load(run)
        found = {name: FRAMEWORK.predict(model, part.images) for name, part in parts.items()}
        predicted = {name: (examples, found[name].labels) for name, examples in parts.items()}
        costs = FRAMEWORK.costs(model)
        value = results.summary(config["framework"], recipe, dataset, model.tree, costs, predicted)
        return value, found

    before, _ = summary_of(folder)
    with new_folder(out) as aside:
        entry = compression.to_json(how)
        writing.write_json(aside / "config.json", config | {"compression": entry})
        for name, weights in smaller_weights(folder, how).items():
            runfolder.write_weights(aside, name, weights)
        for pattern in _CARRIED:
            for file in sorted(folder.glob(pattern)):
                writing.write_bytes(aside / file.relative_to(folder), file.read_bytes())
        after, found = summary_of(aside)
        results.write_predictions(
            aside, "test", dataset, parts["test"], found["test"].labels, found["test"].confidence
        )
        if (folder / "manifest.json").exists():
            about = runfolder.read_manifest(folder)
            made = {"run": str(folder.absolute()), "time": _now(), **entry}
            writing.write_json(aside / "manifest.json", about | {"compressed": made})
        writing.write_json(aside / "summary.json", after)
    return {"before": before | _size(folder), "after": after | _size(out)}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _size(folder: Path) -> dict[str, int]:
    """`file_bytes` of all nodes' weights."""
    return {"file_bytes": sum(f.stat().st_size for f in (folder / "weights").glob("*.safetensors"))}


def show(value: dict[str, Any], folder: Path, out: Path) -> None:
    """Both runs on standard output."""
    columns = [
        "run",
        "test",
        "validation",
        "weight files MB",
        "parameters of all nodes",
        "mean path multiply-adds M",
    ]
    rows = [
        [
            str(run),
            tables.percent(row["accuracy"]["test"]["accuracy"]),
            tables.percent(row["accuracy"]["validation"]["accuracy"]),
            tables.mb(row["file_bytes"]),
            f"{sum(node['parameters'] for node in row['nodes'].values()):,}",
            tables.millions(row["paths"]["mean"]["multiply_adds"]),
        ]
        for run, row in ((folder, value["before"]), (out, value["after"]))
    ]
    tables.print_table("MB are 1e6 bytes, M are millions", columns, rows)


def main(arguments: list[str] | None = None) -> None:
    """Compress as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.compress",
        description="Write a smaller run of a trained tree: int8 weights, or channels pruned. "
        "Nothing is trained again.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, of either framework")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--quantize",
        choices=("int8",),
        help="weights of all convolutions and "
        "linear layers in int8, a scale an output channel (default: none)",
    )
    which.add_argument(
        "--prune",
        type=float,
        metavar="SHARE",
        help="take out this share of the "
        "channels, by L2 norm, wherever nothing else reads them (default: none)",
    )
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add(
        "--out", metavar="DIR", help="the new run folder (default: runs/<name>-int8, -prune20, ...)"
    )
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write both summaries to FILE (default: none)",
    )
    options = parser.parse_args(arguments)
    how = Compression("int8") if options.quantize else Compression("prune", options.prune)
    compression.check(how)
    folder = Path(options.run)
    out = Path(options.out) if options.out else derived.named(folder, f"-{how}")
    value = compress(folder, how, out, options.data_dir)
    show(value, folder, out)
    if options.json:
        save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
