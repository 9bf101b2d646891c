"""Each of our layers as ONNX nodes, by its type; a batch norm is folded into its convolution.

Our maps are channel-last, ONNX's channel-first. Folding is done in float64, so that the folded
weights are rounded once.
"""

from functools import singledispatch

import numpy as np
from flax import nnx

from data.base.errors import UserError
from trunk_jax.interchange.builder import Builder, Value
from trunk_jax.layers.basic import (
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Identity,
    Linear,
    LogSoftmax,
    MaxPool,
    Relu,
    Relu6,
    Sequential,
)
from trunk_jax.nodes.mobilenet import InvertedResidual, _Depthwise, _Pointwise
from trunk_jax.nodes.resnet import _BasicBlock
from trunk_jax.shrink.quantized import QuantizedConv, QuantizedLinear


@singledispatch
def write(layer: nnx.Module, graph: Builder, x: Value) -> Value:
    """Add the layer to the graph; its output. UserError for a type that has no form here.

    write(Relu(), graph, Value("x", (16, 8, 8)))
    """
    raise UserError(f"the layer {type(layer).__name__} cannot be written as ONNX")


@write.register
def _(layer: Sequential, graph: Builder, x: Value) -> Value:
    layers = list(layer)
    while layers:
        first = layers.pop(0)
        if isinstance(first, Conv) and layers and isinstance(layers[0], BatchNorm):
            x = _conv(first, layers.pop(0), graph, x)
        else:
            x = write(first, graph, x)
    return x


@write.register
def _(layer: Conv, graph: Builder, x: Value) -> Value:
    return _conv(layer, None, graph, x)


def _conv(layer: Conv, norm: BatchNorm | None, graph: Builder, x: Value) -> Value:
    kernel = _weights(layer)
    bias = np.zeros(kernel.shape[-1]) if layer.bias is None else _array(layer.bias)
    if norm is not None:
        gain, shift = gain_and_shift(norm)
        kernel, bias = kernel * gain, bias * gain + shift
    weight = graph.constant(kernel.transpose(3, 2, 0, 1), "weight")
    size, pad, stride = kernel.shape[0], layer.padding, layer.stride
    y = graph.add(
        "Conv",
        x.name,
        weight,
        graph.constant(bias, "bias"),
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[pad] * 4,
        group=layer.groups,
    )
    _, height, width = x.shape
    across = [(n + 2 * pad - size) // stride + 1 for n in (height, width)]
    return Value(y, (kernel.shape[-1], *across))


def gain_and_shift(norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm multiplies each channel by, and what it then adds, float64."""
    gain = _array(norm.scale) / np.sqrt(_array(norm.var) + norm.eps)
    return gain, _array(norm.bias) - _array(norm.mean) * gain


@write.register
def _(layer: BatchNorm, graph: Builder, x: Value) -> Value:
    gain, shift = (graph.constant(a.reshape(-1, 1, 1), "norm") for a in gain_and_shift(layer))
    return Value(graph.add("Add", graph.add("Mul", x.name, gain), shift), x.shape)


@write.register
def _(layer: Linear, graph: Builder, x: Value) -> Value:
    weights = graph.constant(_weights(layer), "weight"), graph.constant(_array(layer.bias), "bias")
    return Value(graph.add("Gemm", x.name, *weights), (layer.kernel.shape[1],))


@write.register
def _(layer: Relu, graph: Builder, x: Value) -> Value:
    return Value(graph.add("Relu", x.name), x.shape)


@write.register
def _(layer: Relu6, graph: Builder, x: Value) -> Value:
    bounds = graph.constant(0, "low"), graph.constant(6, "high")
    return Value(graph.add("Clip", x.name, *bounds), x.shape)


@write.register
def _(layer: MaxPool, graph: Builder, x: Value) -> Value:
    channels, height, width = x.shape
    y = graph.add("MaxPool", x.name, kernel_shape=[2, 2], strides=[2, 2])
    return Value(y, (channels, height // 2, width // 2))


@write.register
def _(layer: GlobalAvgPool, graph: Builder, x: Value) -> Value:
    return Value(graph.add("GlobalAveragePool", x.name), (x.shape[0], 1, 1))


@write.register(Identity)
@write.register(Dropout)
def _(layer: Identity | Dropout, graph: Builder, x: Value) -> Value:
    return x


@write.register
def _(layer: Flatten, graph: Builder, x: Value) -> Value:
    return Value(graph.add("Flatten", x.name, axis=1), (int(np.prod(x.shape)),))


@write.register
def _(layer: LogSoftmax, graph: Builder, x: Value) -> Value:
    return Value(graph.add("LogSoftmax", x.name, axis=1), x.shape)


# --- blocks of layers


@write.register
def _(layer: _Pointwise, graph: Builder, x: Value) -> Value:
    return write(layer.conv_1x1_block, graph, x)


@write.register
def _(layer: _Depthwise, graph: Builder, x: Value) -> Value:
    return write(layer.depthwise_convolution_block, graph, x)


@write.register
def _(layer: InvertedResidual, graph: Builder, x: Value) -> Value:
    y = write(layer.inverted_residual, graph, x)
    return Value(graph.add("Add", x.name, y.name), x.shape) if x.shape == y.shape else y


@write.register
def _(layer: _BasicBlock, graph: Builder, x: Value) -> Value:
    shortcut = x if layer.shortcut is None else write(layer.shortcut, graph, x)
    y = write(layer.residual, graph, x)
    return write(layer.activation, graph, Value(graph.add("Add", y.name, shortcut.name), y.shape))


def _array(variable: nnx.Variable) -> np.ndarray:
    return np.asarray(variable[...], np.float64)


def _weights(layer: Conv | Linear) -> np.ndarray:
    """The kernel, float64; of int8 layers what it stands for."""
    kernel = _array(layer.kernel)
    if isinstance(layer, QuantizedConv | QuantizedLinear):
        if getattr(layer, "dynamic", False):
            raise UserError(
                "the layer QuantizedLinear with dynamic inputs cannot be written as ONNX"
            )
        return kernel * _array(layer.scale)
    return kernel
