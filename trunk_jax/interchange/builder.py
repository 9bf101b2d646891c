"""A graph of ONNX while it is written: nodes, constants, and names that are not used twice."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17  # with IR 8: onnxruntime from 1.12 on, of 2022
IR_VERSION = 8


@dataclass(frozen=True)
class Value:
    """A tensor by its name; `shape` is that of one image: channels first, or (features,)."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Builder:
    """Collects the nodes of one graph. All names start with `prefix`, e.g. `sg1/`."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def name(self, what: str) -> str:
        """A name that the graph has not used yet."""
        return f"{self.prefix}{what}_{len(self.nodes) + len(self.constants)}"

    def constant(self, value: Any, what: str, dtype: Any = np.float32) -> str:
        """The name of a constant array."""
        name = self.name(what)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        """The output of a new node with one output, called `result` if given."""
        return self.add_many(op, inputs, (result or self.name(op.lower()),), **attributes)[0]

    def add_many(
        self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """The outputs of a new node, which have these names."""
        name = self.name(op)
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def graph(self, name: str, inputs: Any = (), outputs: Any = ()) -> onnx.GraphProto:
        """The graph of all that was added; inputs and outputs are value infos."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.constants)


def as_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """The graph as a model of the opset that we write."""
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="trunk_jax"
    )


def tensor(name: str, kind: int, shape: Any) -> onnx.ValueInfoProto:
    """What is known of a tensor: `shape` has numbers, names of free axes, or is None."""
    return helper.make_tensor_value_info(name, kind, shape)
