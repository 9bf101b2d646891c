"""`python -m trunk_jax.compress RUN --quantize int8 | --prune 0.2`: a smaller run of a tree.

The new run folder evaluates like any other, in either framework. `--epochs` trains a pruned tree
further before it is written, to win back what pruning cost; afterwards it cannot be trained. What
is under way lies in `<out>.unfinished`, from where `--resume` goes on.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.base import interrupts, tables, writing
from data.base.errors import UserError, run_command
from data.base.locking import hold
from data.base.parser import Parser, out_folder, target
from data.base.progress import Reporter, working
from data.base.writing import new_folder, save_json
from data.images.splits import Splits, split
from data.inference import stopping
from data.inference.stopping import Stopping
from data.run import compression, derived, results, runfolder
from data.run.compression import Compression
from data.run.dataset import load_of_run
from trunk_jax.inference.load import load

_CARRIED = ("tree.json", "metrics.jsonl", "asl/*.json", stopping.FILE)


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


@contextmanager
def unfinished(out: Path, of: dict[str, Any], resume: bool) -> Iterator[Path]:
    """`<out>.unfinished`, for what training has to keep; removed when the block is done.

    If the block is left in another way it stays, unless it is empty. `of`: what it belongs to, as
    JSON. UserError if one is there and `resume` is off, if it belongs to something else, or if
    another process is at work in it.
    """
    state = out.with_name(f"{out.name}.unfinished")
    file = state / "of.json"
    if os.path.lexists(state) and not resume:
        raise UserError(f"{state} exists; add --resume to go on with it, or remove it")
    if os.path.lexists(state) and (not file.exists() or runfolder.read_json(file) != of):
        raise UserError(
            f"{state} is of another run or other flags; remove it, or choose another --out"
        )
    held = done = False
    try:
        with hold(state):
            held = True
            writing.write_json(file, of)
            yield state
        done = True
    finally:  # what another process holds is not ours to remove
        if held and (done or not any(entry.is_dir() for entry in state.iterdir())):
            shutil.rmtree(state)


def compress(
    folder: Path, how: Compression, out: Path, data_dir: str | None, resume: bool = False
) -> dict[str, Any]:
    """Write the compressed run to `out`, whole or not at all, and evaluate both.

    `resume`: go on with a training that was stopped. Returns `before` and `after`, and where it was
    trained after it was pruned `untrained`, what it was until then. UserError for a run that is not
    finished, is compressed already or is a baseline's, and if `out` exists.
    """
    from trunk_jax.machine import backend

    backend.start()
    from trunk_jax.framework import FRAMEWORK

    config = runfolder.read_config(folder)
    if compression.read(folder) is not None:
        raise UserError(f"{folder} is compressed already; start from the run it was made of")
    writing.need_new(out)
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} is not finished (go on with train --resume)")
    recipe = runfolder.read_recipe_of_tree(folder)
    dataset = load_of_run(folder, recipe, data_dir)
    splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True)
    parts = {name: getattr(splits, name) for name in ("validation", "test")}

    def summary_of(run: Path, called: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with working(f"evaluating {called}"):
            model = replace(FRAMEWORK.load(run), stopping=Stopping())  # as a training's summary
            found = {name: FRAMEWORK.predict(model, part.images) for name, part in parts.items()}
            costs = FRAMEWORK.costs(model)
        predicted = {name: (examples, found[name].labels) for name, examples in parts.items()}
        value = results.summary(config["framework"], recipe, dataset, model.tree, costs, predicted)
        return value, found

    untrained: dict[str, Any] = {}
    entry = compression.to_json(how)
    of = {"weights_sha256": derived.digest(folder), "compression": entry}
    kept = unfinished(out, of, resume) if how.epochs else nullcontext(out)
    with kept as state, new_folder(out) as aside:
        before, _ = summary_of(folder, str(folder))
        writing.write_json(aside / "config.json", config | {"compression": entry})
        with working("quantizing weights" if how.method == "int8" else "pruning channels"):
            smaller = smaller_weights(folder, how)
        for name, weights in smaller.items():
            runfolder.write_weights(aside, name, weights)
        for pattern in _CARRIED:
            for file in sorted(folder.glob(pattern)):
                writing.write_bytes(aside / file.relative_to(folder), file.read_bytes())
        after, found = summary_of(aside, f"its {how} form")
        if how.epochs:
            untrained = after | _size(aside)
            _train(aside, how.epochs, splits, state / "checkpoints")
            after, found = summary_of(aside, f"its {how} form")
        results.write_predictions(
            aside, "test", dataset, parts["test"], found["test"].labels, found["test"].confidence
        )
        if (folder / "manifest.json").exists():
            about = runfolder.read_manifest(folder)
            made = {"run": str(folder.absolute()), "time": _now(), **entry}
            writing.write_json(aside / "manifest.json", about | {"compressed": made})
        writing.write_json(aside / "summary.json", after)
    result = {"before": before | _size(folder), "after": after | _size(out)}
    return result | ({"untrained": untrained} if untrained else {})


def _train(folder: Path, epochs: int, splits: Splits, checkpoints: Path) -> None:
    """Train a pruned tree further, in its folder."""
    from trunk_jax.network.exchange import to_state_dict
    from trunk_jax.training.recover import recover

    model = load(folder)
    with Reporter() as report:
        trained = recover(model, epochs, splits, checkpoints, report)
    for node, network in trained.items():
        runfolder.write_weights(folder, model.tree.names[node], to_state_dict(network))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _size(folder: Path) -> dict[str, int]:
    """`file_bytes` of all nodes' weights."""
    return {"file_bytes": sum(f.stat().st_size for f in (folder / "weights").glob("*.safetensors"))}


def compress_each(
    folder: Path,
    shares: Sequence[float],
    epochs: int,
    out: Path,
    data_dir: str | None,
    resume: bool = False,
) -> dict[str, Any]:
    """Prune by each share, into `out`/prune10 and so on; what that costs and what training saves.

    `resume`: as in `compress`; what is finished is not done again. Returns `before`, and `curve`:
    of each share what `compress` returns but for `before`. `out` is written whole or not at all.
    """
    writing.need_new(out)
    hows = [Compression("prune", share, epochs) for share in shares]
    of = {
        "weights_sha256": derived.digest(folder),
        "compression": [compression.to_json(how) for how in hows],
    }
    rows = []
    with unfinished(out, of, resume) as state, new_folder(out) as aside:
        for how in hows:
            file = state / f"{how}.json"
            if not file.exists():
                shutil.rmtree(state / str(how), ignore_errors=True)  # killed before it was told
                found = compress(folder, how, state / str(how), data_dir, resume)
                writing.write_json(file, found)
            rows.append(
                {"share": how.share, "run": str(out / str(how)), **runfolder.read_json(file)}
            )
        for how in hows:
            (state / str(how)).rename(aside / str(how))
    before = [row.pop("before") for row in rows]
    return {"before": before[0], "curve": rows}


def show(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Runs by their names on standard output, each with what its `compress` gave of it."""
    columns = [
        "run",
        "test",
        "validation",
        "weight files MB",
        "parameters of all nodes",
        "mean path multiply-adds M",
    ]
    cells = [
        [
            name,
            tables.percent(row["accuracy"]["test"]["accuracy"]),
            tables.percent(row["accuracy"]["validation"]["accuracy"]),
            tables.mb(row["file_bytes"]),
            f"{sum(node['parameters'] for node in row['nodes'].values()):,}",
            tables.millions(row["paths"]["mean"]["multiply_adds"]),
        ]
        for name, row in rows
    ]
    tables.print_table("MB are 1e6 bytes, M are millions", columns, cells)


def _rows(out: str, found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A compressed run's rows: as it was pruned, if it was trained after that, and as it is."""
    untrained = [(f"{out}, not trained", found["untrained"])] if "untrained" in found else []
    return [*untrained, (out, found["after"])]


def main(arguments: list[str] | None = None) -> None:
    """Compress as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.compress",
        description="Write a smaller run of a trained tree: int8 weights, or channels pruned. "
        "Nothing is trained again but with --epochs.",
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
        nargs="+",
        metavar="SHARE",
        help="take out this share of the channels, by L2 norm, wherever nothing else reads them; "
        "of several shares each gives a run below DIR (default: none)",
    )
    add(
        "--epochs",
        type=int,
        default=0,
        help="train a pruned tree for so many epochs, all nodes together, before it is written "
        "(default: %(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with what was stopped, of --epochs or several shares (default: off)",
    )
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="the new run folder (default: runs/<name>-int8, -prune20, ...; of several "
        "shares -pruned)",
    )
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write the summaries to FILE (default: none)",
    )
    options = parser.parse_args(arguments)
    folder, shares = Path(options.run), options.prune or ()
    hows = [Compression("prune", share, options.epochs) for share in shares]
    hows = hows or [Compression("int8", 0.0, options.epochs)]
    for how in hows:
        compression.check(how)
    if len(set(hows)) < len(hows):
        raise UserError("--prune has a share twice")
    name = f"-{hows[0]}" if len(hows) == 1 else "-pruned"
    out = Path(options.out) if options.out else derived.named(folder, name)
    if options.epochs or len(hows) > 1:
        interrupts.resumable("python -m trunk_jax.compress", arguments, "--resume")
    elif options.resume:
        raise UserError("--resume goes with --epochs or several shares")
    if len(hows) == 1:
        value = compress(folder, hows[0], out, options.data_dir, options.resume)
        show([(str(folder), value["before"]), *_rows(str(out), value)])
    else:
        value = compress_each(folder, shares, options.epochs, out, options.data_dir, options.resume)
        rows = [row for found in value["curve"] for row in _rows(found["run"], found)]
        show([(str(folder), value["before"]), *rows])
    if options.json:
        save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
