"""The network of one node of a tree as an ONNX model: its input to its features and scores."""

from functools import singledispatch

import onnx
from flax import nnx
from onnx import TensorProto

from data.base.errors import UserError
from trunk_jax.interchange.builder import Builder, Value, as_model, tensor
from trunk_jax.interchange.layers import write
from trunk_jax.network.network import Network, merge
from trunk_jax.nodes import MobileNetNode, ResNetNode, Shape, VggNode


def node_model(network: Network, in_shape: Shape, name: str) -> onnx.ModelProto:
    """The model of a node's network.

    Args:
      network: its network; computed in float32.
      in_shape: height, width and channels of its input.
      name: the node's; all tensors are called `<name>/...`.

    Its input `<name>/x` is float32 [batch, channels, height, width], its outputs are
    `<name>/features`, of the same form, and `<name>/scores`, float32 [batch, outputs].

    UserError, which names it, for a layer that has no form in ONNX here.

    """
    height, width, channels = in_shape
    graph, x = Builder(f"{name}/"), Value(f"{name}/x", (channels, height, width))
    features, scores = _write_node(merge(network), graph, x)
    ends = (("features", features), ("scores", scores))
    for what, value in ends:
        graph.add("Identity", value.name, result=f"{name}/{what}")
    infos = [
        tensor(f"{name}/{what}", TensorProto.FLOAT, ["batch", *value.shape])
        for what, value in (("x", x), *ends)
    ]
    return as_model(graph.graph(name, infos[:1], infos[1:]))


@singledispatch
def _write_node(module: nnx.Module, graph: Builder, x: Value) -> tuple[Value, Value]:
    raise UserError(f"the network {type(module).__name__} cannot be written as ONNX")


@_write_node.register(MobileNetNode)
@_write_node.register(ResNetNode)
def _(module: MobileNetNode | ResNetNode, graph: Builder, x: Value) -> tuple[Value, Value]:
    features = write(module.features, graph, x)
    return features, write(module.classifier, graph, features)


@_write_node.register
def _(module: VggNode, graph: Builder, x: Value) -> tuple[Value, Value]:
    features = write(module.features, graph, x)
    return features, write(module.classifier, graph, write(module.flatten, graph, features))
