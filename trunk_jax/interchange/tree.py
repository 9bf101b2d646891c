"""A whole tree as one ONNX model, in which an image is computed by the nodes on its path alone.

A node works on the images that came to it. For each child that has a network an `If` asks whether
any of them go there; its branch takes these images' features out of the batch, computes the child
(and what is below it) for them, and puts the answers in their places. So one form serves one image
and batches.

What an image is given, a row each: `floats` holds the probability of its way and then one of each
class, `ints` the label and then the decision at each depth. (In a tree with exits:
`interchange.exits`.)
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto

from data.inference.stopping import Stopping
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_jax.interchange import exits
from trunk_jax.interchange.builder import Builder, as_model, tensor
from trunk_jax.nodes import Shape

OUTPUTS = ("label", "probability", "probabilities", "path")
PREPARE = "prepare"  # the part of the graph that turns pixels into the root's input
Rows = tuple[str, str]  # (floats, ints)


def tree_model(
    tree: Tree,
    nodes: Mapping[str, onnx.ModelProto],
    image_shape: Shape,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    rule: Stopping | None = None,
) -> onnx.ModelProto:
    """The model of a tree from those of its nodes, by their names (`interchange.node.node_model`).

    `rule`: where images stop in a tree with exits; None: at the end.

    Input `image`: uint8 [batch, height, width, channels]. Outputs:

    - `label`, int64 [batch]: the class;
    - `probability`, float32 [batch]: the product of the probabilities along the path;
    - `probabilities`, float32 [batch, classes]: of a class that is an output of the last node on
      the path the product along its own path; a class below another output of that node has an
      even share of it; all others have 0. A row sums to the probability of having come to
      that node;
    - `path`, int64 [batch, depth]: the chosen output at each depth, -1 below the leaf.

    In a tree with exits `probability` is that of the class, a row of `probabilities` sums to 1, and
    `path` has the branch that the image went on to at each depth, -1 from where it stopped.
    """
    graph = Builder(f"{PREPARE}/")
    _normalised(graph, mean, std, len(image_shape))
    inner = Builder("root/", graph.nodes, graph.constants)
    answer = Builder("answer/", graph.nodes, graph.constants)
    if tree.exits:
        at_node = partial(exits.at_node, tree, rule or Stopping())
        exits.answers(answer, *_follow(inner, tree, nodes, at_node, ROOT, None))
    else:
        _answers(answer, tree, *_follow(inner, tree, nodes, partial(_decide, tree), ROOT, None))
    classes, deep = len(tree.paths), tree.depth
    kinds = {
        "label": (TensorProto.INT64, ["batch"]),
        "probability": (TensorProto.FLOAT, ["batch"]),
        "probabilities": (TensorProto.FLOAT, ["batch", classes]),
        "path": (TensorProto.INT64, ["batch", deep]),
    }
    return as_model(
        graph.graph(
            "trunk",
            [tensor("image", TensorProto.UINT8, ["batch", *image_shape])],
            [tensor(name, *kinds[name]) for name in OUTPUTS],
        )
    )


def _normalised(graph: Builder, mean: tuple[float, ...], std: tuple[float, ...], rank: int) -> None:
    """From `image` to `root/x`, in the order of operations in which we normalise ourselves."""
    x = graph.add("Cast", "image", to=TensorProto.FLOAT)
    x = graph.add("Div", x, graph.constant(255, "levels"))
    if mean:
        x = graph.add("Sub", x, graph.constant(mean, "mean"))
        x = graph.add("Div", x, graph.constant(std, "std"))
    graph.add("Transpose", x, perm=[0, 3, 1, 2], result="root/x")


def _follow(
    graph: Builder,
    tree: Tree,
    nodes: Mapping[str, onnx.ModelProto],
    at_node: Callable[[Builder, Node, str, str | None], tuple[Rows, str, str]],
    node: Node,
    prior: str | None,
) -> Rows:
    """The rows of the images in `<name>/x` once they have met `node` and what is below it.

    `at_node`: given a node, its scores and what is known of the images (`prior`, None at the root),
    the rows as this node leaves them, which branch each image takes [n], and the `prior` of those
    that go on.
    """
    name = tree.names[node]
    graph.nodes.extend(nodes[name].graph.node)
    graph.constants.extend(nodes[name].graph.initializer)
    rows, chosen, known = at_node(graph, node, f"{name}/scores", prior)
    for child in tree.children(node):
        below = partial(_follow, tree=tree, nodes=nodes, at_node=at_node, node=child)
        rows = _child(graph, tree, child, f"{name}/features", known, chosen, rows, below)
    return rows


def _decide(
    tree: Tree, graph: Builder, node: Node, scores: str, prior: str | None
) -> tuple[Rows, str, str]:
    """`at_node` where nodes score their branches; `prior`: [n, 1], how probable their way."""
    share = graph.add("Softmax", scores, axis=1)
    joint = share if prior is None else graph.add("Mul", share, prior)
    chosen = graph.add("ArgMax", scores, axis=1, keepdims=1)
    way = graph.add("GatherElements", joint, chosen, axis=1)
    each = graph.add("MatMul", joint, graph.constant(_spread(tree, node), "spread"))
    floats = graph.add("Concat", way, each, axis=1)
    one = graph.constant([1], "axis", np.int64)
    flat = graph.add("Squeeze", chosen, one)
    ints = graph.add("Gather", graph.constant(_decisions(tree, node), "decisions", np.int64), flat)
    return (floats, ints), flat, way


def _child(
    graph: Builder,
    tree: Tree,
    child: Node,
    features: str,
    known: str,
    chosen: str,
    rows: Rows,
    below: Callable[..., Rows],
) -> Rows:
    """The rows, those of the images that go to `child` replaced by what is found `below`."""
    name = tree.names[child]
    outer = Builder(f"to {name}/", graph.nodes, graph.constants)
    mine = outer.add("Equal", chosen, outer.constant(child[-1], "output", np.int64))
    places = outer.add("NonZero", mine)  # [1, images]
    any_mine = outer.add("Greater", outer.add("Size", places), outer.constant(0, "none", np.int64))

    then = Builder(f"{name}/")
    which = then.add("Squeeze", places, then.constant([0], "axis", np.int64))
    then.add("Gather", features, which, result=f"{name}/x")
    answers = below(then, prior=then.add("Gather", known, which))
    column = then.add("Transpose", places, perm=[1, 0])
    changed = [
        then.add("ScatterND", whole, column, own) for whole, own in zip(rows, answers, strict=True)
    ]
    other = Builder(f"not {name}/")
    kept = [other.add("Identity", whole) for whole in rows]
    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    branches = {
        branch: builder.graph(
            f"{branch} {name}", [], [tensor(n, k, None) for n, k in zip(ends, kinds, strict=True)]
        )
        for branch, builder, ends in (
            ("then_branch", then, changed),
            ("else_branch", other, kept),
        )
    }
    outputs = (outer.name("floats"), outer.name("ints"))
    floats, ints = outer.add_many("If", (any_mine,), outputs, **branches)
    return floats, ints


def _answers(graph: Builder, tree: Tree, floats: str, ints: str) -> None:
    """The outputs from the rows."""
    one = graph.constant([1], "axis", np.int64)
    for rows, single, several, count in (
        (floats, "probability", "probabilities", len(tree.paths)),
        (ints, "label", "path", tree.depth),
    ):
        sizes = graph.constant([1, count], "sizes", np.int64)
        column = graph.name("column")
        graph.add_many("Split", (rows, sizes), (column, several), axis=1)
        graph.add("Squeeze", column, one, result=single)


def _spread(tree: Tree, node: Node) -> np.ndarray:
    """[outputs, classes]: the share that each class has of an output's probability."""
    result = np.zeros((tree.width(node), len(tree.paths)))
    for output in range(len(result)):
        labels = tree.members((*node, output))
        result[output, list(labels)] = 1 / len(labels)
    return result


def _decisions(tree: Tree, node: Node) -> np.ndarray:
    """[outputs, 1 + depth]: label and path of an image that ends at each output.

    The rows of outputs that lead to another node are replaced by that node's.
    """
    width, deep = tree.width(node), tree.depth
    result = np.full((width, 1 + deep), -1)
    for output in range(width):
        path = (*node, output)
        result[output, 1 : 1 + len(path)] = path
        labels = tree.members(path)
        if tree.paths[labels[0]] == path:
            result[output, 0] = labels[0]
    return result
