"""Check of a trained tree: the same weights in both frameworks, on its dataset's test split."""

from pathlib import Path

import numpy as np

import trunk_jax.framework
import trunk_torch_ref.framework
from data.base.errors import UserError
from data.images.splits import split
from data.run import runfolder
from data.run.dataset import load_of_run
from parity.checks import tolerance as compare
from parity.checks.routing import check_routing
from parity.checks.tolerance import Check
from trunk_jax.network import exchange
from trunk_torch_ref.network import exchange as torch_exchange


def check_checkpoint(folder: Path, data_dir: str | None) -> list[Check]:
    """Weights carried across bit for bit; the decisions of both frameworks on every test image.

    UserError if the folder is no finished run, its data is not there, or it is one of
    `resnet50_qat`: PyTorch's imitation of int8 has no float64, so there is no truth to hold it to.
    """
    recipe = runfolder.read_recipe(folder)
    if recipe.backbone == "resnet50_qat":
        raise UserError(
            f"{folder} is a resnet50_qat, which cannot be computed in float64; tests/test_qat.py "
            "holds both frameworks against PyTorch's own"
        )
    ours = trunk_jax.inference.load.load(folder)
    theirs = trunk_torch_ref.inference.load.load(folder)
    dataset = load_of_run(folder, recipe, data_dir)
    test = split(dataset, recipe.protocol, recipe.seed, recipe.limit).test
    checks, titles = [], ours.tree.titles(dataset.spec.class_names)
    for node, network in ours.networks.items():
        left = exchange.to_state_dict(network)
        right = torch_exchange.to_state_dict(theirs.networks[node])
        same = left.keys() == right.keys() and all(
            np.array_equal(left[key], right[key]) for key in left
        )
        note = f"{len(left)} tensors"
        what = f"weights of {titles[ours.tree.names[node]]}"
        checks.append(compare.equal(str(folder), what, same, True, note=note))
    return checks + check_routing(
        f"{dataset.title} test", ours, theirs, test.images,
        test.labels,
    )  # fmt: skip
