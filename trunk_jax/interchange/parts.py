"""Parts of a whole tree's ONNX model, read back from it: what a file computes, node by node."""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from trunk_jax.interchange.builder import as_model, tensor

PREPARED = "root/x"


def node_part(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The network of a node: from `<name>/x` to `<name>/features` and `<name>/scores`.

    KeyError if the model has no such node.
    """
    return _between(model, f"{name}/x", (f"{name}/features", f"{name}/scores"), TensorProto.FLOAT)


def preparation(model: onnx.ModelProto) -> onnx.ModelProto:
    """What turns `image` into `root/x`."""
    return _between(model, "image", (PREPARED,), TensorProto.UINT8)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all the graphs of the branches in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _between(
    model: onnx.ModelProto, start: str, ends: tuple[str, ...], kind: int
) -> onnx.ModelProto:
    for graph in graphs(model.graph):
        makers = {output: node for node in graph.node for output in node.output}
        if all(end in makers for end in ends):
            break
    else:
        raise KeyError(f"the model has no {' and '.join(ends)}")
    wanted, needed, seen = list(ends), set(), set()
    while wanted:
        name = wanted.pop()
        if name in seen or name == start:
            continue
        seen.add(name)
        if name in makers:
            needed.add(makers[name].name)
            wanted += makers[name].input
    part = onnx.helper.make_graph(
        [node for node in graph.node if node.name in needed],
        "part",
        [tensor(start, kind, None)],
        [tensor(end, TensorProto.FLOAT, None) for end in ends],
        [constant for constant in graph.initializer if constant.name in seen],
    )
    return as_model(part)
