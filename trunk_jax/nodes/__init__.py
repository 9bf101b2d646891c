"""The networks of a tree's nodes, each of which returns (features, scores)."""

import jax
import jax.numpy as jnp
from flax import nnx

from data.networks import MobileNet, network
from trunk_jax.layers import EVAL, Mode
from trunk_jax.nodes.mobilenet import MobileNetNode
from trunk_jax.nodes.vgg import VggNode

Node = MobileNetNode | VggNode
Shape = tuple[int, int, int]


def build(
    dataset: str,
    backbone: str,
    name: str,
    in_shape: Shape,
    outputs: int,
    *,
    faults: tuple[str, ...] = (),
    rngs: nnx.Rngs,
) -> Node:
    """The node called `name`, with PyTorch's default initialisation.

    Args:
      in_shape: height, width and channels of its input: an image or its parent's features.
      outputs: the number of its children.
      faults: of the recipe; `pointwise_padding` and `warm_batchnorm` matter here.

    """
    spec = network(dataset, backbone, name)
    if isinstance(spec, MobileNet):
        padding = 1 if "pointwise_padding" in faults else 0
        node = MobileNetNode(spec, in_shape, outputs, pointwise_padding=padding, rngs=rngs)
    else:
        node = VggNode(spec, in_shape, outputs, rngs=rngs)
    if "warm_batchnorm" in faults:
        node.features(jnp.ones((1, *in_shape)), Mode(train=True, key=jax.random.key(0)))
    return node


__all__ = ["MobileNetNode", "Node", "Shape", "VggNode", "build"]
