"""The networks of a tree's nodes, each of which returns (features, scores)."""

import torch

from data.recipes.networks import MobileNet, Network, ResNet, network
from trunk_torch_ref.nodes.mobilenet import MobileNetNode
from trunk_torch_ref.nodes.node import NodeNetwork, Shape
from trunk_torch_ref.nodes.resnet import ResNetNode
from trunk_torch_ref.nodes.vgg import VggNode


def build(
    dataset: str,
    backbone: str,
    name: str,
    in_shape: Shape,
    outputs: int,
    *,
    faults: tuple[str, ...] = (),
) -> NodeNetwork:
    """The node called `name` in the table, initialised by PyTorch from its global generator.

    Args:
      in_shape: channels, height and width of its input: an image or its parent's features.
      outputs: the number of its children.
      faults: of the recipe; `pointwise_padding` and `warm_batchnorm` matter here.

    """
    return make(network(dataset, backbone, name), in_shape, outputs, faults=faults)


def make(
    spec: Network,
    in_shape: Shape,
    outputs: int,
    *,
    faults: tuple[str, ...] = (),
) -> NodeNetwork:
    """A node of these layers; otherwise as `build`."""
    node: NodeNetwork
    if isinstance(spec, MobileNet):
        padding = 1 if "pointwise_padding" in faults else 0
        node = MobileNetNode(spec, in_shape, outputs, pointwise_padding=padding)
    elif isinstance(spec, ResNet):
        node = ResNetNode(spec, in_shape, outputs)
    else:
        node = VggNode(spec, in_shape, outputs)
    if "warm_batchnorm" in faults:
        with torch.no_grad():
            node.train().features(torch.ones(1, *in_shape))
    return node


__all__ = ["MobileNetNode", "NodeNetwork", "ResNetNode", "Shape", "VggNode", "build", "make"]
