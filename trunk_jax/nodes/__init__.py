"""The networks of a tree's nodes, each of which returns (features, scores)."""

import numpy as np

from data.recipes.networks import MobileNet, Network, ResNet, network
from trunk_jax.nodes.mobilenet import MobileNetNode
from trunk_jax.nodes.node import NodeNetwork, Shape
from trunk_jax.nodes.resnet import ResNetNode
from trunk_jax.nodes.vgg import VggNode


def build(
    dataset: str,
    backbone: str,
    name: str,
    in_shape: Shape,
    outputs: int,
    *,
    faults: tuple[str, ...] = (),
    rng: np.random.Generator,
) -> NodeNetwork:
    """The node called `name` in the table, with PyTorch's default initialisation.

    Args:
      in_shape: height, width and channels of its input: an image or its parent's features.
      outputs: the number of its children.
      faults: of the recipe; `pointwise_padding` matters here.
      rng: what the weights are drawn from.

    """
    return make(network(dataset, backbone, name), in_shape, outputs, faults=faults, rng=rng)


def make(
    spec: Network,
    in_shape: Shape,
    outputs: int,
    *,
    faults: tuple[str, ...] = (),
    rng: np.random.Generator,
) -> NodeNetwork:
    """A node of these layers, with PyTorch's default initialisation; otherwise as `build`."""
    if isinstance(spec, MobileNet):
        padding = 1 if "pointwise_padding" in faults else 0
        return MobileNetNode(spec, in_shape, outputs, pointwise_padding=padding, rng=rng)
    if isinstance(spec, ResNet):
        return ResNetNode(spec, in_shape, outputs, rng=rng)
    return VggNode(spec, in_shape, outputs, rng=rng)


__all__ = ["MobileNetNode", "NodeNetwork", "ResNetNode", "Shape", "VggNode", "build", "make"]
