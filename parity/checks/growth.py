"""How errors of rounding grow through networks, and whether scores of a tree stay within that."""

import numpy as np
import torch

from data.inference.model import Model
from data.tree.hierarchy import ancestors
from parity.checks import tolerance
from parity.checks.tolerance import Check


def growth_of(model: Model) -> float:
    """`growth` summed over the nodes of the deepest path of a model in PyTorch."""
    of = {node: growth(network) for node, network in model.networks.items()}
    return max(sum(of[above] for above in (*ancestors(node), node)) for node in of)


def growth(network: torch.nn.Module) -> float:
    """The root of the accumulation length, summed over the layers of a network."""
    layers = [module for module in network.modules() if not list(module.children())]
    return sum(map(root_of_terms, layers))


def root_of_terms(layer: torch.nn.Module) -> float:
    """The root of how many terms a layer sums for each value; 1 where it has no weight."""
    weight = getattr(layer, "weight", None)
    return float(np.sqrt(weight[0].numel())) if isinstance(weight, torch.Tensor) else 1.0


def error_of_scores(
    name: str, error: tuple[float, float], model: Model, whose: str = "larger of both"
) -> Check:
    """That scores of a whole tree are as near to the truth as rounding lets them be.

    Without it a decision could hide behind an error that makes it too close to call.

    Args:
      name: what is checked.
      error: the largest of any node's scores, absolute and as a share of the largest score.
      model: in PyTorch, for the length of its sums.
      whose: error it is.

    """
    bound = tolerance.CONSTANT * tolerance.UNIT * growth_of(model)
    return Check(
        name,
        f"error of scores, {whose}",
        "float32",
        error[0],
        error[1],
        f"{bound:.0e} of scale",
        error[1] <= bound,
        share=error[1] / bound * tolerance.CONSTANT,
    )
