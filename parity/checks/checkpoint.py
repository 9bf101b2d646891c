"""Check of a trained tree: the same weights in both frameworks, on its dataset's test split."""

from pathlib import Path

import numpy as np

import trunk_jax.framework
import trunk_torch_ref.framework
from data.base.errors import UserError
from data.base.progress import working
from data.images.splits import Splits, split
from data.inference.model import Model
from data.run import runfolder
from data.run.dataset import load_of_run
from parity.checks import tolerance
from parity.checks.routing import check_routing
from parity.checks.tolerance import Check
from trunk_jax.network import exchange
from trunk_torch_ref.network import exchange as torch_exchange


def check_checkpoint(
    folder: Path, data_dir: str | None, *, onnxruntime: bool = False
) -> list[Check]:
    """Weights carried across bit for bit; the decisions of both frameworks on every test image.

    With `onnxruntime` those of the tree exported to ONNX as well, in float32 and int8.

    UserError if the folder is no finished run, its data is not there, or it is one of
    `resnet50_qat`: PyTorch's imitation of int8 has no float64, so there is no truth to hold it to.
    """
    recipe = runfolder.read_recipe(folder)
    if recipe.backbone == "resnet50_qat":
        raise UserError(
            f"{folder} is a resnet50_qat, which cannot be computed in float64; "
            "tests/test_shrink_qat.py holds both frameworks against PyTorch's own"
        )
    with working("loading the tree into both frameworks"):
        ours = trunk_jax.inference.load.load(folder)
        theirs = trunk_torch_ref.inference.load.load(folder)
    dataset = load_of_run(folder, recipe, data_dir)
    splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True)
    test = splits.test
    checks, titles = [], ours.tree.titles(dataset.spec.class_names)
    for node, network in ours.networks.items():
        left = exchange.to_state_dict(network)
        right = torch_exchange.to_state_dict(theirs.networks[node])
        same = left.keys() == right.keys() and all(
            np.array_equal(left[key], right[key]) for key in left
        )
        note = f"{len(left)} tensors"
        what = f"weights of {titles[ours.tree.names[node]]}"
        checks.append(tolerance.equal(str(folder), what, same, True, note=note))
    name = f"{dataset.title} test"
    checks += check_routing(name, ours, theirs, test.images, test.labels)
    if onnxruntime:
        checks += _exported(name, folder, theirs, splits)
    return checks


def _exported(name: str, folder: Path, theirs: Model, splits: Splits) -> list[Check]:
    """The run as `export --format onnx` writes it, with and without `--int8`."""
    from parity.checks.exported import check_exported, stated_int8  # an optional extra
    from trunk_jax.interchange import onnx_model, quantize
    from trunk_jax.interchange.trained import of_run

    with working("turning the tree into ONNX"):
        trained, test = of_run(folder), splits.test
        nodes = onnx_model.node_models(trained)
        model = onnx_model.whole_model(trained, nodes)
    with working("calibrating int8"):
        images = quantize.calibration(splits.train.images, trained.recipe.seed)
        small = onnx_model.whole_model(trained, quantize.quantized(trained, nodes, images))
    with working(f"onnxruntime and float64 classify {len(test.labels):,} images"):
        return [
            *check_exported(name, theirs, model, test.images, test.labels),
            stated_int8(name, model, small, test.images, test.labels),
        ]
