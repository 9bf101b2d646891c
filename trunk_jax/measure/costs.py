"""What each node and each path of a tree costs: arithmetic, weights, memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.inference.model import Model
from data.run.results import Costs
from data.tree.hierarchy import Node
from trunk_jax.measure.program import peak_bytes, work
from trunk_jax.network.network import Network, apply, cost, dtype_of, input_shape
from trunk_jax.nodes import Shape

SUMS = ("parameters", "weight_bytes", "file_bytes", "multiply_adds", "flops")
COSTS = (*SUMS, "peak_activation_bytes")


def input_shapes(model: Model) -> dict[Node, Shape]:
    """Height, width and channels of what each node is given."""
    known: dict[Node, Shape] = {}
    for node in model.tree.nodes:
        input_shape(model.networks, node, model.image_shape, known)
    return known


def costs(model: Model) -> Costs:
    """Parameters and multiply-adds of each node, by name."""
    shapes = input_shapes(model)
    return {
        model.tree.names[node]: cost(model.networks[node], shape) for node, shape in shapes.items()
    }


def node_costs(model: Model, folder: Path) -> dict[Node, dict[str, int]]:
    """Of each node, for one image: `COSTS`.

    `weight_bytes`: of parameters and running statistics in memory; `file_bytes`: of the file
    in the run folder.
    """
    names, weights = model.tree.names, folder / "weights"
    return {
        node: network_costs(model.networks[node], shape)
        | {"file_bytes": (weights / f"{names[node]}.safetensors").stat().st_size}
        for node, shape in input_shapes(model).items()
    }


def network_costs(network: Network, in_shape: Shape) -> dict[str, int]:
    """`COSTS` of one network but for `file_bytes`.

    Multiply-adds are those of its layers, padding included, as the published figures are; what
    it computes besides is read off the program.
    """
    image = jax.ShapeDtypeStruct((1, *in_shape), dtype_of(network))

    def run(network: Network, x: jax.Array) -> Any:
        return apply(network, x)[0]

    layers, other = cost(network, in_shape), work(run, network, image).other
    arrays = jax.tree.leaves(network)
    return {
        **layers,
        "flops": 2 * layers["multiply_adds"] + other,
        "weight_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in arrays),
        "peak_activation_bytes": peak_bytes(run, network, image),
    }


def path_costs(of: dict[Node, dict[str, int]], path: Sequence[Node]) -> dict[str, int]:
    """Of a path: the sums over its nodes, and the largest of their activations."""
    total = {key: sum(of[node][key] for node in path) for key in SUMS}
    return total | {"peak_activation_bytes": max(of[n]["peak_activation_bytes"] for n in path)}


def extremes(paths: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The `shortest` and `longest` path by multiply-adds, and the `mean` over `images`.

    `paths`: costs, and how many images have that path as their true one.
    """
    order = sorted(paths, key=lambda row: row["multiply_adds"])
    weights = [row["images"] for row in paths]
    numbers = [key for key, value in paths[0].items() if isinstance(value, int | float)]
    mean = {
        key: float(np.average([row[key] for row in paths], weights=weights))
        for key in numbers
        if key not in ("images", "images_per_second")  # the whole tree's rate is measured
    }
    return {"shortest": order[0], "longest": order[-1], "mean": mean}
