"""A run written as ONNX: one file, or one a node, once it is seen to decide as the run does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Int

from data.base import writing
from data.base.errors import UserError
from data.base.progress import working
from data.images.on_disk import Images
from data.images.splits import split
from data.run.dataset import load_of_run
from data.tree.hierarchy import ROOT, Node
from trunk_jax.interchange import decisions, onnx_model, quantize, runtime
from trunk_jax.interchange.builder import OPSET
from trunk_jax.interchange.onnx_model import Models
from trunk_jax.interchange.trained import Trained, of_run
from trunk_jax.interchange.tree import PREPARE

SAMPLE = 256  # random images that an export is tried on where the data is not at hand


@dataclass(frozen=True)
class Trial:
    """Images to try an export on: uint8 [n, h, w, c]; `labels`: None if they are random."""

    images: Images
    labels: Int[np.ndarray, " n"] | None
    what: str


def export(
    run: Path, out: Path, *, data_dir: str | None, per_node: bool = False, int8: bool = False
) -> dict[str, Any]:
    """Write the run to the file `out`, or with `per_node` to a folder; what was found, for JSON.

    UserError if `out` exists, for a layer that has no form here, if the float32 model decides
    otherwise than the run does on any image of its test split (random images where that is not
    at hand), and with `int8` if its training images are not.
    """
    writing.need_new(out)
    with working("turning the tree into ONNX"):
        trained = of_run(run)
        nodes = onnx_model.node_models(trained)
        model = onnx_model.whole_model(trained, nodes)
    tried = trial(run, trained, data_dir)
    count = f"{len(tried.images):,} images"
    with working(f"onnxruntime classifies {count}"):
        found = runtime.predict(runtime.session(model), tried.images)
    with working(f"JAX classifies {count}"):
        result = _compared(trained, tried, found)
    if int8:
        exact, images = nodes, _calibration(run, trained, data_dir)
        with working("calibrating int8"):
            nodes = quantize.quantized(trained, nodes, images)
            model = onnx_model.whole_model(trained, nodes)
        with working(f"onnxruntime classifies {count} in int8"):
            small = runtime.predict(runtime.session(model), tried.images)
        result["int8"] = _agreement(tried, found["label"], small["label"])
        result["int8"]["left_in_float32"] = quantize.left_alone(exact, nodes)
    content = model.SerializeToString()
    if per_node:
        size = _write_nodes(out, trained, model, nodes)
    else:
        size = len(content)
        writing.save_bytes(out, content)
    return {"out": str(out), "bytes": size, "opset": OPSET, "nodes": len(nodes)} | result


def trial(run: Path, trained: Trained, data_dir: str | None) -> Trial:
    """The run's test images; where they are not at hand, random ones, and why.

    UserError if they are not in a `data_dir` that was named.
    """
    recipe = trained.recipe
    try:
        dataset = load_of_run(run, recipe, data_dir)
    except UserError as error:
        if data_dir is not None:
            raise
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (SAMPLE, *trained.image_shape), np.uint8)
        return Trial(images, None, f"random images, for its data is not at hand ({error})")
    test = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True).test
    return Trial(test.images, test.labels, "test images")


def _calibration(run: Path, trained: Trained, data_dir: str | None) -> np.ndarray:
    """Training images of the run to calibrate int8 with."""
    recipe = trained.recipe
    dataset = load_of_run(run, recipe, data_dir)
    images = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True).train.images
    return quantize.calibration(images, recipe.seed)


def _compared(trained: Trained, trial: Trial, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """How the decisions compare with ours; UserError if any differs."""
    compared = decisions.compare(trained, trial.images, found)
    if len(compared.different):
        raise UserError(
            f"nothing is written: the exported tree decides otherwise than the run on "
            f"{len(compared.different):,} of {len(trial.images):,} {trial.what}"
        )
    result: dict[str, Any] = {
        "images": len(trial.images),
        "images_are": trial.what,
        "ties": len(compared.ties),
    }
    if trial.labels is not None:
        result["right"] = int((found["label"] == trial.labels).sum())
    return result


def _agreement(trial: Trial, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    result: dict[str, Any] = {"equal": int((before == after).sum())}
    if trial.labels is not None:
        result["right"] = int((after == trial.labels).sum())
    return result


# --- a file a node


def _write_nodes(out: Path, trained: Trained, model: onnx.ModelProto, nodes: Models) -> int:
    """`<node>.onnx` for each node and `tree.json`; how many bytes the models have together.

    The root's takes pixels, as the whole tree's does.
    """
    tree = trained.tree
    with writing.new_folder(out) as folder:
        size = 0
        for name, node in nodes.items():
            named = _with_pixels(model, node) if name == tree.names[ROOT] else node
            content = onnx_model.described(named, trained.about).SerializeToString()
            writing.write_bytes(folder / f"{name}.onnx", content)
            size += len(content)
        writing.write_json(folder / "tree.json", tree_file(trained))
    return size


def _with_pixels(model: onnx.ModelProto, root: onnx.ModelProto) -> onnx.ModelProto:
    """The root's model with the normalisation in front of it."""
    mine = [node for node in model.graph.node if node.name.startswith(f"{PREPARE}/")]
    constants = [c for c in model.graph.initializer if c.name.startswith(f"{PREPARE}/")]
    graph = onnx.helper.make_graph(
        [*mine, *root.graph.node],
        "root",
        list(model.graph.input),
        list(root.graph.output),
        [*constants, *root.graph.initializer],
    )
    result = onnx.ModelProto()
    result.CopyFrom(root)
    result.graph.CopyFrom(graph)
    return onnx_model.checked(result)


def tree_file(trained: Trained) -> dict[str, Any]:
    """What a device needs to follow an image from file to file: the content of `tree.json`.

    `nodes`: of each its `file`, its `input`, and for each output the `label` that it stands for
    or the `node` to go on with, which is given this one's `<node>/features`.

    In a tree with exits (`format` 2) outputs stand for labels alone; scores are divided by
    `temperature`, and an image whose largest probability is below `threshold` goes on to the `node`
    of the branch whose `outputs` have most together, if it has one.
    """
    tree, rule = trained.tree, trained.model.stopping
    leaves = {path: label for label, path in enumerate(tree.paths)}

    def end(path: Node) -> dict[str, Any]:
        return {"label": leaves[path]} if path in leaves else {"node": tree.names[path]}

    def early(node: Node) -> dict[str, Any]:
        if not tree.exits:
            return {"outputs": [end((*node, k)) for k in range(tree.width(node))]}
        name = tree.names[node]
        ways = [(*node, branch) for branch in range(len(tree.branches(node)))]
        return {
            "outputs": [{"label": label} for label in tree.members(node)],
            "temperature": rule.temperature(name),
            "threshold": rule.threshold(name),
            "branches": [
                {"outputs": list(outputs)} | ({} if way in leaves else end(way))
                for way, outputs in zip(ways, tree.columns(node), strict=True)
            ],
        }

    return {
        "format": 2 if tree.exits else 1,
        "classes": json.loads(trained.about["classes"]),
        "root": tree.names[ROOT],
        "image": {"type": "uint8", "shape": ["batch", *trained.image_shape]},
        "nodes": {
            tree.names[node]: {
                "file": f"{tree.names[node]}.onnx",
                "input": "image" if node == ROOT else f"{tree.names[node]}/x",
                **early(node),
            }
            for node in tree.nodes
        },
        "about": {key: text for key, text in trained.about.items() if key != "classes"},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """What `export` found, for people."""
    total, what = result["images"], result["images_are"]
    tied = f", {result['ties']} of them ties within rounding" if result["ties"] else ""
    shown = [
        f"wrote {result['out']}: {result['nodes']} nodes, {result['bytes'] / 1e6:.2f} MB, "
        f"ONNX opset {result['opset']}",
        f"decides as the run on all {total:,} {what}{tied}",
    ]
    right = result.get("right")
    if right is not None:
        shown.append(f"float32: {_share(right, total)} right")
    if "int8" in result:
        small = result["int8"]
        if "right" in small:
            shown.append(f"int8: {_share(small['right'], total)} right")
        shown.append(f"int8 decides as float32 on {_share(small['equal'], total)}")
        if small["left_in_float32"]:
            names = ", ".join(small["left_in_float32"])
            shown.append(f"left in float32, for no calibration image comes there: {names}")
    return shown


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / total:.2f} %)"
