"""Each kind of node network as ONNX in onnxruntime, with random weights, against float64."""

import copy
from dataclasses import replace

import torch

from parity.checks import tolerance
from parity.checks.growth import growth
from parity.checks.nodes import inputs
from parity.checks.tolerance import Check
from parity.pairs.families import Family, build
from trunk_jax.interchange import runtime
from trunk_jax.interchange.node import node_model


def check_node(family: Family, seed: int) -> list[Check]:
    """Features and scores, as a file of ONNX gives them, within the rounding model.

    And no more than 4 times further from the truth than PyTorch's in float32.
    """
    both = build(family, seed)
    x, _ = inputs(family, seed)
    running = runtime.session(node_model(both.jax, family.shape, family.node))
    found = running.run(None, {f"{family.node}/x": x.astype("float32")})
    with torch.no_grad():
        theirs, truth = (
            copy.deepcopy(both.torch).to(kind).eval()(torch.tensor(x, dtype=kind))
            for kind in (torch.float32, torch.float64)
        )
    checks = [
        tolerance.fair(
            family.name,
            f"{what}, onnxruntime",
            found[place],
            theirs[place].numpy(),
            truth[place].numpy(),
            growth(both.torch),
        )
        for place, what in enumerate(("features", "scores"))
    ]
    return [
        replace(check, detail=check.detail.replace("of JAX", "of onnxruntime")) for check in checks
    ]
