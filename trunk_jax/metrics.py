"""`python -m trunk_jax.metrics RUN`: what a trained tree costs, where it errs, what it confuses.

Writes `measurements.json`, and the heat maps of the root's ASL in `figures/`, into
`runs/<the run's name>/`.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from data.base import tables, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.base.progress import working
from data.base.writing import save_json
from data.images.datasets import Dataset
from data.images.on_disk import Images
from data.images.splits import Splits, split
from data.inference import stopping
from data.inference.model import Predictions
from data.recipes.recipe import Recipe
from data.run import derived, runfolder
from data.run.dataset import load_of_run
from data.tree import attrition, hierarchy
from data.tree.grouping import membership
from data.tree.hierarchy import Node, Tree
from trunk_jax.inference.load import load
from trunk_jax.inference.model import Model
from trunk_jax.pictures import style
from trunk_jax.pictures.run import asl_pictures

FILE = "measurements.json"
UNITS = {
    "weight_bytes": "bytes, parameters and running statistics",
    "file_bytes": "bytes of the weights' files",
    "peak_activation_bytes": "bytes for one image",
    "multiply_adds": "of one image",
    "flops": "of one image, two a multiply-add",
    "latency_ms": "milliseconds for one image alone, median",
    "images_per_second": "in batches of 256",
    "joules_per_image": "joules, idle power included",
}


@dataclass(frozen=True)
class Options:
    """What `metrics` was asked for."""

    run: Path
    data_dir: str | None
    repeats: int
    membership: str | None
    out: Path | None
    json: Path | None


def options_of(arguments: list[str] | None) -> Options:
    """Parse the flags. UserError for any that makes no sense."""
    parser = Parser(
        prog="python -m trunk_jax.metrics",
        description="Measure a finished run, of either framework, with the JAX networks: costs of "
        "every path, latency, energy, where images leave their true path, what the root confuses.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add(
        "--repeats",
        type=int,
        default=50,
        help="timed calls of each path; 0: no times, no energy (default: %(default)s)",
    )
    add(
        "--membership",
        metavar="CLASS",
        help="also show how much each class belongs with this "
        "one, by name or label (default: none; the file has all)",
    )
    add(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="folder for measurements.json and figures (default: runs/<the run's name>)",
    )
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    given = parser.parse_args(arguments)
    if given.repeats < 0:
        raise UserError(f"--repeats is {given.repeats}; it must be 0 or more")
    return Options(
        Path(given.run),
        given.data_dir,
        given.repeats,
        given.membership,
        Path(given.out) if given.out else None,
        given.json,
    )


def measure(
    folder: Path, dataset: Dataset, recipe: Recipe, splits: Splits, repeats: int
) -> dict[str, Any]:
    """The content of `measurements.json`. UserError if the run is not finished."""
    from trunk_jax.machine import backend

    backend.start()
    from trunk_jax import framework
    from trunk_jax.inference import route
    from trunk_jax.measure import costs, timing

    test, names = splits.test, dataset.spec.class_names
    model = load(folder)
    tree = model.tree
    stopping.need_one_branch(model.stopping, "metrics")
    with working(f"classifying {len(test.labels):,} test images"):
        found = route.predict(model, test.images)
    predicted = found.labels
    of = costs.node_costs(model, folder)
    lost = attrition.by_node(tree, test.labels, predicted)
    paths = []
    for path, labels, mine in ways(tree, test.labels, found):
        row: dict[str, Any] = {
            "nodes": [tree.names[node] for node in path],
            "classes": [names[label] for label in labels],
            "images": int(mine.sum()),
        }
        row |= costs.path_costs(of, path)
        if repeats:
            images = test.images[mine] if mine.any() else test.images
            with working(f"timing the path {' > '.join(row['nodes'])}"):
                row |= timing.path_times(model, path, images, repeats)
        paths.append(row)
    value = {
        "dataset": dataset.title,
        "split": "test",
        "images": len(test.labels),
        "accuracy": float((predicted == test.labels).mean()),
        "units": UNITS,
        "device": framework.device(),
        "nodes": {
            tree.names[node]: {"depth": len(node)} | cost | lost[tree.names[node]]
            for node, cost in of.items()
        },
        "paths": paths,
        "depths": attrition.by_depth(tree, test.labels, predicted),
        "root": root_likelihood(folder, recipe, dataset, splits),
    }
    value |= costs.extremes(paths)
    if repeats:
        with working("timing the whole tree"):
            value |= whole_tree(model, test.images)
    return value


def ways(
    tree: Tree, labels: Int[np.ndarray, " n"], found: Predictions
) -> Iterator[tuple[tuple[Node, ...], tuple[int, ...], Bool[np.ndarray, " n"]]]:
    """The paths through networks, the classes of each, and which of the images are counted there.

    An image counts on the path of its true class; in a tree with exits, where it may stop early,
    on the path that it took.
    """
    if not tree.exits:
        for path, mine in attrition.sequences(tree).items():
            yield path, mine, np.isin(labels, mine)
        return
    last = found.met.shape[1] - 1 - found.met[:, ::-1].argmax(1)
    for place, node in enumerate(tree.nodes):
        yield (*hierarchy.ancestors(node), node), tree.members(node), last == place


def whole_tree(model: Model, images: Images) -> dict[str, Any]:
    """`images_per_second` of the tree as it is, each image on its own path, and its `energy`."""
    from trunk_jax import framework
    from trunk_jax.inference import route
    from trunk_jax.measure import energy, timing

    def work() -> int:
        route.predict(model, images)
        return len(images)

    taken = min(timing.seconds(work, 3))
    counters, reason = energy.counters(framework.device()["platform"])
    measured: dict[str, Any] = {"reason": reason}
    if counters:
        measured = {"joules_per_image": timing.joules(work, counters)}
    return {"images_per_second": len(images) / taken, "energy": measured}


def root_likelihood(
    folder: Path, recipe: Recipe, dataset: Dataset, splits: Splits
) -> dict[str, Any]:
    """ASL of the root as it starts and as it is after its class phase, and what follows from it.

    `trained` is the run's own; `untrained` that of the network the run started from (for a
    PyTorch run: that a JAX run would have started from).
    """
    names = dataset.spec.class_names
    recorded = runfolder.read_asl(folder, "root", len(names))
    if recorded is None:
        raise UserError(f"{folder / 'asl' / 'root.json'} is missing: the run is not finished")
    asl, groups = recorded
    volatility = runfolder.read_volatility(folder, "root")
    if volatility is None:  # equal likelihoods, which no volatility tells apart
        followed: dict[str, Any] = {"threshold": None, "membership": None}
    else:
        followed = {
            "threshold": volatility / len(names),
            "membership": membership(asl, volatility).tolist(),
        }
    return {
        "classes": list(names),
        "volatility": volatility,
        "groups": groups,
        "untrained": untrained(recipe, len(names), splits).tolist(),
        "trained": asl.tolist(),
        **followed,
    }


def untrained(recipe: Recipe, classes: int, splits: Splits) -> np.ndarray:
    """ASL of the root's initial weights, on the images that the run's was taken on.

    float64 [classes, classes].
    """
    import jax.numpy as jnp

    from data.training.epochs import likelihood_part
    from data.training.stages import Stage
    from trunk_jax.training.fit import Source, program_of
    from trunk_jax.training.grow import average_likelihood, initial_network

    part = getattr(splits, likelihood_part(recipe))
    images = np.asarray(part.images)
    stage = Stage(hierarchy.bare(classes), hierarchy.ROOT, "class")
    network = initial_network(recipe, stage.tree, stage.node, "class", {}, images.shape[1:])
    targets = jnp.asarray(stage.targets(part.labels))
    program = program_of(recipe, stage.settings(recipe), network)
    source = Source(jnp.asarray(images), targets, ())
    return average_likelihood(recipe, program, network, source, stage.name)


def label_of(text: str, names: tuple[str, ...]) -> int:
    """The label that a class name, or a number, stands for. UserError if none."""
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(f"no class {text!r:.80}; the classes: {', '.join(names)}")


def show(value: dict[str, Any], titles: Mapping[str, str], of: int | None) -> None:
    """The tables on standard output.

    `titles`: what each node is called. `of`: the label whose memberships are wanted.
    """
    mb, millions, percent = tables.mb, tables.millions, tables.percent
    timed = "latency_ms" in value["paths"][0]
    named = [(" > ".join(titles[n] for n in row["nodes"]), row) for row in value["paths"]]
    named += [(name, value[name]) for name in ("shortest", "longest", "mean")]
    print(f"{value['dataset']} {value['split']}: {percent(value['accuracy'])}")
    print("MB are 1e6 bytes, M are millions; all for one image, alone\n")
    columns = [
        "path",
        "images",
        "parameters",
        "weights MB",
        "files MB",
        "peak activations MB",
        "multiply-adds M",
        "FLOPs M",
    ]
    rows = [
        [
            name,
            f"{row['images']:,}" if "images" in row else "",
            f"{row['parameters']:,.0f}",
            mb(row["weight_bytes"]),
            mb(row["file_bytes"]),
            mb(row["peak_activation_bytes"]),
            millions(row["multiply_adds"]),
            millions(row["flops"]),
        ]
        for name, row in named
    ]
    tables.print_table("what a path costs", columns, rows)
    if timed:
        columns = ["path", "latency ms", "10th percentile", "90th percentile", "images/s"]
        rows = [
            [
                name,
                *(f"{row[f'latency_ms{part}']:.2f}" for part in ("", "_p10", "_p90")),
                f"{row['images_per_second']:,.0f}" if row.get("images_per_second") else "",
            ]
            for name, row in named
        ]
        tables.print_table("how long a path takes", columns, rows)
    rows = [
        [
            titles[name],
            str(row["depth"]),
            f"{row['reached']:,}",
            percent(row["accuracy"]),
            f"{row['lost']:,}",
            percent(row["lost_share"]),
            f"{row['parameters']:,}",
            millions(row["multiply_adds"]),
        ]
        for name, row in value["nodes"].items()
    ]
    columns = [
        "node",
        "depth",
        "reached it rightly",
        "accuracy",
        "lost here",
        "of all images",
        "parameters",
        "multiply-adds M",
    ]
    tables.print_table("which node loses how much", columns, rows)
    rows = [
        [
            str(row["depth"]),
            f"{row['decided']:,}",
            percent(row["accuracy"]),
            percent(row["on_path"]),
        ]
        for row in value["depths"]
    ]
    columns = ["decisions", "images that took it", "accuracy", "of all still right"]
    tables.print_table("accuracy by depth", columns, rows)
    if "energy" in value:
        print(f"whole tree: {value['images_per_second']:,.0f} images/s")
        energy = value["energy"]
        for name, joules in energy.get("joules_per_image", {}).items():
            print(f"energy: {1e3 * joules:.3f} mJ an image ({name}, idle power included)")
        if "reason" in energy:
            print(f"energy: not measured, {energy['reason']}")
    if of is not None:
        root, names = value["root"], value["root"]["classes"]
        rows = [[name, f"{root['trained'][of][j]:.4f}"] for j, name in enumerate(names)]
        columns = ["class", "mean probability"]
        if root["threshold"] is not None:
            columns = ["class", f"mean probability (together above {root['threshold']:.4f})"]
            columns.append("membership")
            rows = [[*row, f"{root['membership'][of][j]:.4f}"] for j, row in enumerate(rows)]
        print()
        tables.print_table(f"on images of {names[of]}, at the root", columns, rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say. UserError for anything a user can put right."""
    options = options_of(arguments)
    folder = options.run
    recipe = runfolder.read_recipe_of_tree(folder)
    names = recipe.spec.class_names
    of = None if options.membership is None else label_of(options.membership, names)
    out = options.out or derived.place(folder)
    dataset = load_of_run(folder, recipe, options.data_dir)
    splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True)
    value = measure(folder, dataset, recipe, splits, options.repeats)
    if options.out is None:
        derived.claim(folder)
    writing.write_json(out / FILE, value)
    heat_maps = asl_pictures(folder, runfolder.read_tree(folder), names, value["root"]["untrained"])
    style.write(heat_maps["asl-root"], out / "figures", "asl-root")
    show(value, runfolder.read_tree(folder).titles(names), of)
    print(f"written: {out / FILE}, {out / 'figures' / 'asl-root.png'}")
    if options.json:
        save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
