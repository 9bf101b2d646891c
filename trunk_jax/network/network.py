"""A node's network as a value: its graph, parameters and statistics, and pure functions on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.tree import shapes
from data.tree.hierarchy import Node
from trunk_jax.layers.basic import EVAL, Mode, layer_shapes
from trunk_jax.nodes.node import NodeNetwork, Shape

Arrays = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """An NNX module split once. The graph is static; the rest are nested dicts of arrays.

    The dicts hold plain arrays, not NNX variables: a module merged from them can change its
    own variables and nothing else.
    """

    graph: nnx.GraphDef[Any] = field(metadata={"static": True})
    params: Arrays
    stats: Arrays


def split(module: nnx.Module) -> Network:
    """The module as a value."""
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, stats = (nnx.to_pure_dict(state) for state in states)
    return Network(graph, params, stats)


def merge(network: Network) -> NodeNetwork:
    """The value as a module."""
    return nnx.merge(network.graph, nnx.State(network.params), nnx.State(network.stats))


@jax.jit
def warmed(network: Network, image: Float[Array, "h w c"]) -> Network:
    """The network after one image through its features in train mode: statistics one step on.

    The published constructors do this with an image of ones.
    """
    module = merge(network)
    module.features(image[None], Mode(train=True, key=jax.random.key(0)))
    return split(module)


def apply(
    network: Network, x: Float[Array, "b h w c"], mode: Mode = EVAL
) -> tuple[tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]], Arrays]:
    """((features, scores), statistics after the pass)."""
    module = merge(network)
    outputs = module(x, mode)
    return outputs, split(module).stats


def features(network: Network, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    """What the children are given, in eval mode."""
    return merge(network).features(x, EVAL)


def dtype_of(network: Network) -> jnp.dtype:
    """The type of the parameters, in which the network computes."""
    leaves = jax.tree.leaves(network.params)
    return next(leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


def feature_shape(network: Network, in_shape: Shape) -> tuple[int, ...]:
    """Height, width and channels of what the children are given; of a transformer (n, d)."""
    return jax.eval_shape(features, network, _image(network, in_shape)).shape[1:]


def input_shape(
    networks: Mapping[Node, Network],
    node: Node,
    image_shape: Shape,
    known: dict[Node, Shape] | None = None,
) -> Shape:
    """Height, width and channels of what a node of a tree is given.

    `networks`: of the nodes above it at least. `known`: shapes that were asked for before, so that
    none is worked out twice; this one is added.
    """

    def features_of(above: Node, shape: Shape) -> tuple[int, ...]:
        return feature_shape(networks[above], shape)

    return shapes.input_shape(node, image_shape, features_of, known)


def cost(network: Network, in_shape: Shape) -> dict[str, int]:
    """Parameters, and multiply-adds for one image, of convolutions, linear layers and attention.

    Counted from the program: every layer's own output shape, padding included, as the
    published figures are.
    """
    layers = layer_shapes(
        lambda network, x: apply(network, x)[0], network, _image(network, in_shape)
    )
    multiply_adds = sum(layer.multiply_adds(x, y) for layer, x, y in layers)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    return {"parameters": parameters, "multiply_adds": multiply_adds}


def _image(network: Network, shape: Shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), dtype_of(network))
