"""`python -m parity.published FOLDER --dataset cifar10 --backbone vgg`: published weights, checked.

The tree is rebuilt from the folder's JSON files, the weights are loaded into both frameworks,
the groups are derived anew from the ASL files, and the test split is classified by both: plain
normalisation of the published recipe, no augmentation. Exit code 1 if the frameworks predict
differently on any image, or if groups or tree do not follow from the ASL.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import trunk_jax.inference.route
import trunk_jax.network.network
import trunk_jax.nodes
import trunk_torch_ref.inference.route
import trunk_torch_ref.nodes
from data.base import tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.progress import working
from data.base.weights import with_counters
from data.base.writing import save_json
from data.images import datasets, specs
from data.images.datasets import Examples
from data.recipes import recipe
from data.recipes.recipe import AUTO, Recipe
from data.tree import grouping, hierarchy
from data.tree.hierarchy import ROOT, Groups, Node, Tree
from parity.pairs import published_files
from parity.pairs.conversion import to_jax
from parity.pairs.published_files import Layout
from trunk_jax.interchange.extra import need
from trunk_jax.machine import backend
from trunk_torch_ref import framework as run
from trunk_torch_ref.machine import settings as torch_settings
from trunk_torch_ref.network.exchange import from_state_dict
from trunk_torch_ref.network.network import initial, input_shape

_MOST_ORDERS = 5040  # of regrouping, tried to find the one that gives the published names
_FLAGS = "is it of another --dataset or --backbone?"


@dataclass(frozen=True)
class Models:
    """A published tree in both frameworks, with the same weights."""

    jax: trunk_jax.inference.model.Model
    torch: trunk_torch_ref.inference.model.Model


def load_models(folder: Path, recipe: Recipe, layout: Layout) -> Models:
    """All nodes of a published folder, their input shapes checked against those it states.

    UserError if a shape differs, or a file is missing, damaged, not finite or of another network.
    """
    tree = layout.tree
    modules: dict[Node, trunk_torch_ref.nodes.NodeNetwork] = {}
    networks: dict[Node, trunk_jax.network.network.Network] = {}
    image_shape = run.channel_first(specs.spec(recipe.dataset).image_shape)
    shapes: dict[Node, trunk_torch_ref.nodes.Shape] = {}
    for node in tree.nodes:  # all shapes first: they tell a wrong flag best
        name = tree.names[node]
        input_shape(modules, node, image_shape, shapes)
        if layout.inputs[name] != shapes[node]:
            raise UserError(
                f"{folder}: {_FLAGS} {name} takes {_times(layout.inputs[name])} inputs, but "
                f"{_times(shapes[node])} in a {recipe.dataset} {recipe.backbone} tree"
            )
        modules[node] = initial(
            partial(
                trunk_torch_ref.nodes.build,
                recipe.dataset,
                recipe.backbone,
                name,
                shapes[node],
                tree.width(node),
                faults=recipe.faults,
            ),
            seed=0,
        )
    for node, module in modules.items():
        name, (channels, height, width) = tree.names[node], shapes[node]
        _load(folder / "model_weights" / f"{name}.pt", module, folder, name)
        flax = trunk_jax.nodes.build(
            recipe.dataset,
            recipe.backbone,
            name,
            (height, width, channels),
            tree.width(node),
            faults=recipe.faults,
            rng=np.random.default_rng(0),
        )
        networks[node] = to_jax(module, trunk_jax.network.network.split(flax))
        module.to(run.where()).eval()
    return Models(
        trunk_jax.inference.model.Model(recipe, tree, networks),
        trunk_torch_ref.inference.model.Model(recipe, tree, modules),
    )


def _load(file: Path, module: trunk_torch_ref.nodes.NodeNetwork, folder: Path, name: str) -> None:
    """Fill in a node's weights from its file."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = with_counters(shapes, published_files.read_weights(folder, name))
    expected = {key: value.numpy().dtype for key, value in module.state_dict().items()}
    try:
        from_state_dict(module, weights)
    except UserError as error:
        raise UserError(f"{file}: {_FLAGS} {error}") from None
    for key, value in module.state_dict().items():
        if weights[key].dtype != expected[key]:
            raise UserError(f"{file}: {key} is {weights[key].dtype}, not {expected[key]}")
        if not torch.isfinite(value).all():
            raise UserError(f"{file}: {key} holds NaN or infinite values")


def check_groups(folder: Path, recipe: Recipe, tree: Tree) -> dict[str, dict[str, Any]]:
    """By node: `classes` (labels), `volatility`, `groups` published, `from_asl` ours, `same`."""
    result = {}
    for node in tree.nodes:
        name, members = tree.names[node], tree.members(node)
        classes = len(members)
        volatility = recipe.node(node == ROOT).volatility
        assert volatility != AUTO  # published recipes have a number each
        published = published_files.read_groups(folder, name, classes)
        ours = grouping.group(published_files.read_asl(folder, name, classes), volatility)
        result[name] = {
            "classes": members,
            "volatility": volatility,
            "groups": published,
            "from_asl": ours,
            "same": published == ours,
        }
    return result


def regrouped(tree: Tree, groups: dict[Node, Groups]) -> tuple[bool, list[str] | None]:
    """Whether regrouping by `groups` gives the tree's paths, and in which order also its names.

    The order lists the nodes that were regrouped, by name; None if no order that was tried
    gives the published names (they depend on the order in which the release grew siblings).
    """
    split = [node for node in tree.nodes if grouping.splits(groups[node])]
    for order in itertools.islice(itertools.permutations(split), _MOST_ORDERS):
        places = {node: place for place, node in enumerate(order)}
        if any(places.get(up, -1) > places[n] for n in split for up in hierarchy.ancestors(n)):
            continue  # a node is regrouped before its children exist
        grown = hierarchy.bare(len(tree.paths))
        for node in order:
            if len(grown.members(node)) != sum(map(len, groups[node])):
                return False, None
            grown = hierarchy.regroup(grown, node, groups[node])
        if grown.paths != tree.paths:
            return False, None
        if grown.names == tree.names:
            return True, [tree.names[node] for node in order]
    return True, None


def classify(models: Models, examples: Examples) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Predicted labels, int32 [images], and seconds taken, by framework."""
    labels, seconds = {}, {}
    routes = {"jax": trunk_jax.inference.route, "torch": trunk_torch_ref.inference.route}
    with run.exact(), jax.default_matmul_precision("highest"):
        for framework, route in routes.items():
            began = time.perf_counter()
            with working(f"{framework} classifies {len(examples.labels):,} images"):
                found = route.predict(getattr(models, framework), examples.images)
            seconds[framework] = round(time.perf_counter() - began, 1)
            labels[framework] = found.labels
    return labels, seconds


def classify_exported(
    ours: trunk_jax.inference.model.Model, examples: Examples
) -> tuple[np.ndarray, float]:
    """Labels that the tree predicts as ONNX in onnxruntime, int64 [images], and seconds taken."""
    from trunk_jax.interchange import onnx_model, runtime  # an optional extra
    from trunk_jax.interchange.trained import Trained, about

    trained = Trained(ours, about(ours.recipe, ours.tree))
    model = onnx_model.whole_model(trained, onnx_model.node_models(trained))
    began = time.perf_counter()
    with working(f"onnxruntime classifies {len(examples.labels):,} images"):
        found = runtime.predict(runtime.session(model), examples.images)
    return found["label"], round(time.perf_counter() - began, 1)


def check(
    folder: Path,
    dataset: str,
    backbone: str,
    data_dir: str | None = None,
    limit: int = 0,
    *,
    onnxruntime: bool = False,
) -> dict[str, Any]:
    """All checks of a published folder: the content of `--json`.

    `total` images, `correct` by framework, `agree`: the number of images on which all
    predict the same; with `onnxruntime` the tree as ONNX is one of them. `limit`: only the first
    so many test images; 0 for all. UserError for a folder that cannot be used.
    """
    about, how = specs.spec(dataset), recipe.load("published", dataset, backbone)
    if limit < 0:
        raise UserError(f"--limit is {limit}; it must be 0 (all) or more")
    layout = published_files.read_layout(folder)
    tree, classes = layout.tree, len(about.class_names)
    if len(tree.paths) != classes:
        raise UserError(
            f"{folder}: {_FLAGS} the tree has {len(tree.paths)} classes, {dataset} has {classes}"
        )
    models = load_models(folder, how, layout)
    nodes = check_groups(folder, how, tree)
    groups = {node: nodes[tree.names[node]]["groups"] for node in tree.nodes}
    follows, order = regrouped(tree, groups)

    images = datasets.load(dataset, data_dir)
    end = limit or None
    examples = Examples(images.test.images[:end], images.test.labels[:end])
    labels, seconds = classify(models, examples)
    if onnxruntime:
        answer = classify_exported(models.jax, examples)
        labels["onnxruntime"], seconds["onnxruntime"] = answer
    same = np.all([mine == labels["jax"] for mine in labels.values()], axis=0)
    total, agree = len(examples.labels), int(same.sum())
    groups_follow = all(row["same"] for row in nodes.values())
    return {
        "passed": agree == total and groups_follow and follows,
        "total": total,
        "correct": {name: int((mine == examples.labels).sum()) for name, mine in labels.items()},
        "agree": agree,
        "seconds": seconds,
        "folder": str(folder),
        "dataset": dataset,
        "dataset_title": images.title,
        "backbone": backbone,
        "split": "test",
        "nodes": nodes,
        "tree": {"follows_from_groups": follows, "names_follow_in_order": order},
    }


def lines(value: dict[str, Any]) -> list[str]:
    """What `check` found, for people."""
    total = value["total"]
    title = (
        f"{value['folder']}: {len(value['nodes'])} {value['backbone']} nodes, "
        f"{value['dataset_title']} {value['split']}"
    )
    rows = [
        (
            name,
            f"{right:,} of {total:,}",
            f"{100 * right / total:.2f} %",
            f"{value['seconds'][name]:.1f}",
        )
        for name, right in value["correct"].items()
    ]
    columns = ("framework", "right", "accuracy", "seconds")
    result = [title, *_indented(tables.text(columns, rows, width=98))]
    result.append(f"  equal predictions: {value['agree']:,} of {total:,}")
    names = specs.spec(value["dataset"]).class_names
    rows = []
    for name, row in value["nodes"].items():
        classes = [names[label] for label in row["classes"]]
        verdict = "as published"
        if not row["same"]:
            verdict = f"DIFFER: published {_text(row['groups'], classes)}"
        rows.append((name, f"{row['volatility']:.2f}", _text(row["from_asl"], classes), verdict))
    columns = ("node", "volatility", "groups from its ASL", "verdict")
    result += _indented(tables.text(columns, rows, left=(0, 2, 3), width=98))
    order = value["tree"]["names_follow_in_order"]
    if not value["tree"]["follows_from_groups"]:
        result.append("  target map: DIFFERS from regrouping by these groups")
    elif order is None:
        result.append(
            "  target map: follows from the groups; the names of its nodes are those of another "
            "order of growth"
        )
    else:
        too = f", names too (regrouped in the order {', '.join(order)})" if order else ""
        result.append(f"  target map: follows from the groups{too}")
    return result


def _text(groups: Groups, classes: Sequence[str]) -> str:
    """Groups of a node's classes by their names: `{cat dog} {car} {plane}`."""
    return " ".join(f"{{{' '.join(classes[index] for index in group)}}}" for group in groups)


def _indented(table: str) -> list[str]:
    return [f"  {line}" for line in table.splitlines()]


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def main(arguments: list[str] | None = None) -> int:
    """Check as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m parity.published",
        description="Load a folder of published weights into both frameworks, check its groups "
        "and tree, and classify the test split with both. No object is unpickled.",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the published folder (with model_weights/)")
    add("--dataset", required=True, help="the dataset it was trained on, e.g. cifar10")
    add("--backbone", required=True, help="its node networks, e.g. vgg")
    add(
        "--runtime",
        choices=("onnxruntime",),
        help="classify with the tree as ONNX in this runtime too (default: none)",
    )
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets (default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    add(
        "--limit",
        type=int,
        default=0,
        help="use only the first so many test images (default: 0, all)",
    )
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    if options.runtime:
        need("onnx", "onnxruntime")
    backend.start()
    torch_settings.apply()
    value = check(
        Path(options.folder),
        options.dataset,
        options.backbone,
        options.data_dir,
        options.limit,
        onnxruntime=options.runtime is not None,
    )
    print(*lines(value), sep="\n")
    if options.json:
        save_json(options.json, value)
    return 0 if value["passed"] else 1


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
