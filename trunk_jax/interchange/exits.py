"""Early exits in an ONNX model: what a node that scores classes makes of the images at it.

What an image is given, a row each: `floats` holds the probability of each class, `ints` the branch
that it went on to at each depth, -1 from where it stopped. As `data.inference.model.distribution`.
"""

import numpy as np

from data.inference.stopping import Stopping
from data.tree.hierarchy import Node, Tree
from trunk_jax.interchange.builder import Builder


def at_node(
    tree: Tree, rule: Stopping, graph: Builder, node: Node, scores: str, prior: str | None
) -> tuple[tuple[str, str], str, str]:
    """((floats, ints), branch taken, floats) of the images at a node that scores classes.

    Args:
      tree: with exits.
      rule: where images stop; its second branch is not taken.
      graph: to which it is added.
      node: which.
      scores: of each class below the node, [n, outputs].
      prior: the probabilities of all classes so far, [n, classes]; None at the root.

    """
    name = tree.names[node]
    heated = graph.add("Div", scores, graph.constant(rule.temperature(name), "temperature"))
    share = graph.add("Softmax", heated, axis=1)
    place = np.zeros((tree.width(node), len(tree.paths)))
    place[np.arange(len(place)), list(tree.members(node))] = 1
    if prior is None:
        floats = graph.add("MatMul", share, graph.constant(place, "place"))
    else:
        mine = place.sum(0)
        reached = graph.add("MatMul", prior, graph.constant(mine[:, None], "below"))
        own = graph.add("MatMul", graph.add("Mul", share, reached), graph.constant(place, "place"))
        others = graph.add("Mul", prior, graph.constant(1 - mine[None], "others"))
        floats = graph.add("Add", own, others)

    columns = tree.columns(node)
    sums = np.zeros((tree.width(node), len(columns)))
    for branch, outputs in enumerate(columns):
        sums[list(outputs), branch] = 1
    within = graph.add("MatMul", share, graph.constant(sums, "branches"))
    best = graph.add("ArgMax", within, axis=1, keepdims=0)
    deeper = [(*node, branch) not in tree.paths for branch in range(len(columns))]
    has_child = graph.add("Gather", graph.constant(deeper, "deeper", np.bool_), best)
    top = graph.add("ReduceMax", share, axes=[1], keepdims=0)
    unsure = graph.add("Less", top, graph.constant(rule.threshold(name), "threshold"))
    onward = graph.add("And", unsure, has_child)
    chosen = graph.add("Where", onward, best, graph.constant(-1, "stop", np.int64))

    before = np.full((1, tree.depth), -1)
    before[0, : len(node)] = node
    here = np.zeros((1, tree.depth))
    here[0, len(node)] = 1
    one = graph.constant([1], "one", np.int64)
    more = graph.add("Add", graph.add("Unsqueeze", chosen, one), one)  # -1 is there already
    ways = graph.add("Mul", more, graph.constant(here, "here", np.int64))
    ints = graph.add("Add", ways, graph.constant(before, "before", np.int64))
    return (floats, ints), chosen, floats


def answers(graph: Builder, floats: str, ints: str) -> None:
    """The outputs of a tree's model from the rows."""
    graph.add("ArgMax", floats, axis=1, keepdims=0, result="label")
    graph.add("ReduceMax", floats, axes=[1], keepdims=0, result="probability")
    graph.add("Identity", floats, result="probabilities")
    graph.add("Identity", ints, result="path")
