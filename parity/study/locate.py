"""Which layer gives another output for the same weights, batch and masks, if any does."""

from typing import Any

import numpy as np

from parity.pairs.passes import Pair, activations
from parity.study import distances, verdict
from parity.study.trace import digits
from trunk_jax.network.network import Network
from trunk_torch_ref.nodes import NodeNetwork

CAUSES = {
    "rate": "schedule",
    "input": "input",
    "count": "count",
    "mean": "statistics",
    "variance": "statistics",
    "scores": "scores",
    "loss": "loss",
    "gradient": "backward",
    "moment": "update",
    "weight": "update",
}


def located(
    network: Network, module: NodeNetwork, x: np.ndarray, dtype: str, named: str, kind: str
) -> dict[str, Any]:
    """The cause of a difference that was seen in a step, and in words what differs first.

    `network`, `module`: with one framework's weights from before the step. `x`: [b, c, h, w], the
    batch. `named`: what to call the tensor of `kind` in which it was seen. A layer's output is
    allowed what `parity.study.verdict` calls the floor.
    """
    most = verdict.floor("output", dtype)
    for layer, a, b in activations(Pair(network, module), dtype, x, 0, train=True):
        difference = distances.each({"": a}, {"": b})[""]
        if not difference <= most:
            return {
                "layer": layer,
                "cause": "forward",
                "output_difference": digits(difference),
                "first": f"output of {layer} in the forward pass",
            }
    return {"cause": CAUSES[kind], "first": named}
