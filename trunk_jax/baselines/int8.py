"""The int8 ResNet that quantisation-aware training was for: whole numbers between the layers.

Weights are int8, activations uint8, sums whole numbers; only the factors that carry one
layer's grid to the next one's are floats, as in fbgemm. XLA has no fast integer convolution
on CPUs, so a product is taken as two in float32, of the weights' upper and lower four bits:
every partial sum stays below 2^24, where float32 holds whole numbers exactly.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int8, Int32, UInt8

from data.recipes.baselines.architectures import QuantResNet

EPS = 1e-5  # of batch norm
_LEAST_SCALE = np.finfo(np.float32).eps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """What the whole numbers of a tensor stand for: (number - zero) * scale."""

    scale: Float[Array, ""]
    zero: Int32[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Product:
    """A convolution or (1x1) Linear layer; `into` is its output's grid."""

    weight: Int8[Array, "kh kw i o"]
    scale: Float[Array, " o"]
    bias: Float[Array, " o"]
    into: Grid


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8ResNet:
    """By PyTorch's names: products, and the grids of the image and of each block's sum."""

    products: dict[str, Product]
    grids: dict[str, Grid]
    spec: QuantResNet = field(metadata={"static": True})


def convert(weights: Mapping[str, np.ndarray], spec: QuantResNet) -> Int8ResNet:
    """The int8 model of a trained one, given by its state_dict (PyTorch's names and layouts).

    Grids follow torch.ao's observers, not its training kernel: int8 scales are the largest
    weight over 127.5, where training divides by 127 or 128.
    """
    observed = r"(.*?)\.?activation_post_process\.activation_post_process\.max_val"
    grids = {
        match[1]: _grid(weights, match[1])
        for key in weights
        if (match := re.fullmatch(observed, key))
    }
    products = {}
    for name in list(grids):
        if f"{name}.weight" not in weights:
            continue
        kernel = weights[f"{name}.weight"]
        if f"{name}.bn.weight" in weights:
            gamma, beta, mean, var = (
                weights[f"{name}.bn.{leaf}"]
                for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            gain = gamma / np.sqrt(var + np.float32(EPS))
            kernel, bias = kernel * gain[:, None, None, None], beta - mean * gain
        else:
            bias = weights[f"{name}.bias"]
        products[name] = _product(weights, name, kernel, bias, grids.pop(name))
    return Int8ResNet(products, grids, spec)


def _grid(weights: Mapping[str, np.ndarray], name: str) -> Grid:
    at = f"{name}.activation_post_process.activation_post_process."
    low = np.minimum(np.float32(0), weights[at + "min_val"])
    high = np.maximum(np.float32(0), weights[at + "max_val"])
    scale = max(np.float32((high - low) / np.float32(127)), _LEAST_SCALE)
    zero = np.clip(-np.round(low / scale), 0, 127)
    return Grid(jnp.float32(scale), jnp.int32(zero))


def _product(
    weights: Mapping[str, np.ndarray], name: str, kernel: np.ndarray, bias: np.ndarray, into: Grid
) -> Product:
    at = f"{name}.weight_fake_quant.activation_post_process."
    low = np.minimum(weights[at + "min_val"], 0)
    high = np.maximum(weights[at + "max_val"], 0)
    scale = np.maximum(np.maximum(-low, high) / np.float32(127.5), _LEAST_SCALE)
    kernel = kernel.reshape(*kernel.shape, *[1] * (4 - kernel.ndim))
    whole = np.clip(np.round(kernel * (1 / scale)[:, None, None, None]), -128, 127)
    return Product(
        jnp.asarray(whole.transpose(2, 3, 1, 0), jnp.int8),
        jnp.asarray(scale),
        jnp.asarray(bias, jnp.float32),
        into,
    )


def size(model: Int8ResNet) -> int:
    """Bytes of all its numbers."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model))


Whole = tuple[UInt8[Array, "b h w c"], Grid]


@jax.jit
def scores(model: Int8ResNet, x: Float[Array, "b h w c"]) -> Float[Array, "b outputs"]:
    """The scores of normalised images."""
    whole = _quantise(x, model.grids["quant"])
    y = _apply(model, "conv1", (whole, model.grids["quant"]), stride=2, padding=3, relu=True)
    pooled = lax.reduce_window(
        y[0], jnp.uint8(0), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    y = (pooled, y[1])
    for stage, blocks in enumerate(model.spec.blocks, 1):
        for block in range(blocks):
            y = _block(model, f"layer{stage}.{block}", y, 2 if stage > 1 and not block else 1)
    whole, grid = y
    count = whole.shape[1] * whole.shape[2]
    total = whole.astype(jnp.int32).sum((1, 2), keepdims=True) - count * grid.zero
    mean = jnp.round(total.astype(jnp.float32) / count) + grid.zero
    pooled = jnp.clip(mean, 0, 255).astype(jnp.uint8)
    whole, grid = _apply(model, "fc", (pooled, grid))
    return _values(whole, grid)[:, 0, 0]


def _block(model: Int8ResNet, name: str, x: Whole, stride: int) -> Whole:
    y = _apply(model, f"{name}.conv1", x, relu=True)
    y = _apply(model, f"{name}.conv2", y, stride=stride, padding=1, relu=True)
    y = _apply(model, f"{name}.conv3", y)
    project = f"{name}.downsample.0"
    other = _apply(model, project, x, stride=stride) if project in model.products else x
    total = jax.nn.relu(_values(*y) + _values(*other))
    grid = model.grids[f"{name}.skip_add_relu"]
    return _quantise(total, grid), grid


def _apply(
    model: Int8ResNet, name: str, x: Whole, stride: int = 1, padding: int = 0, relu: bool = False
) -> Whole:
    layer, (whole, grid) = model.products[name], x
    centred = (whole.astype(jnp.int32) - grid.zero).astype(jnp.float32)

    def half(kernel: Array) -> Array:
        y = lax.conv_general_dilated(
            centred,
            kernel.astype(jnp.float32),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return y.astype(jnp.int32)

    weight = layer.weight.astype(jnp.int32)
    total = 16 * half(weight >> 4) + half(weight & 15)
    unit = grid.scale * layer.scale
    moved = (total.astype(jnp.float32) + layer.bias / unit) * (unit / layer.into.scale)
    least = layer.into.zero if relu else 0
    found = jnp.clip(jnp.round(moved) + layer.into.zero, least, 255)
    return found.astype(jnp.uint8), layer.into


def _quantise(x: Array, grid: Grid) -> Array:
    return jnp.clip(jnp.round(x * (1 / grid.scale)) + grid.zero, 0, 255).astype(jnp.uint8)


def _values(whole: Array, grid: Grid) -> Array:
    return (whole.astype(jnp.int32) - grid.zero).astype(jnp.float32) * grid.scale
