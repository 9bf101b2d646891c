"""Weights as a state_dict in NumPy: the form in which both frameworks read and write them."""

from collections.abc import Mapping

import numpy as np
import torch

from data.base.weights import check_fit, with_counters
from trunk_torch_ref.nodes import NodeNetwork


def to_state_dict(network: NodeNetwork) -> dict[str, np.ndarray]:
    """A copy of the network's arrays under their names, of unchanged type."""
    return {key: value.cpu().numpy().copy() for key, value in network.state_dict().items()}


def from_state_dict(network: NodeNetwork, weights: Mapping[str, np.ndarray]) -> NodeNetwork:
    """The network, its arrays overwritten by those of a state_dict.

    Batch counters that it leaves out start at zero. UserError listing every missing, extra or
    misshapen tensor.
    """
    state = network.state_dict()
    types = {key: value.numpy(force=True).dtype for key, value in state.items()}
    expected = {key: tuple(value.shape) for key, value in state.items()}
    weights = with_counters(expected, weights)
    check_fit(expected, weights, types)
    network.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return network
