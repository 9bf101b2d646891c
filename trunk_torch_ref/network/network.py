"""A node's network from outside: made from a seed, its shapes and costs, its features."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from data.tree import shapes
from data.tree.hierarchy import Node
from trunk_torch_ref.nodes import NodeNetwork, Shape

M = TypeVar("M", bound=nn.Module)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generators start from `seed` inside and are put back afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def initial(build: Callable[[], NodeNetwork], seed: int) -> NodeNetwork:
    """What `build` makes with parameters drawn from `seed`, on the CPU, the same everywhere."""
    with seeded(seed):
        return build()


def location(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a network, and the type in which it computes."""
    parameter = next(network.parameters())
    return parameter.device, parameter.dtype


@torch.no_grad()
def features(network: NodeNetwork, x: Tensor) -> Tensor:
    """What the children are given, in eval mode, [B, C, H, W]."""
    return network.eval().features(x)


def feature_shape(network: NodeNetwork, in_shape: Shape) -> tuple[int, ...]:
    """Channels, height and width of what the children are given; of a transformer (N, D)."""
    return tuple(features(network, blank(network, in_shape)).shape[1:])


def input_shape(
    networks: Mapping[Node, NodeNetwork],
    node: Node,
    image_shape: Shape,
    known: dict[Node, Shape] | None = None,
) -> Shape:
    """Channels, height and width of what a node of a tree is given.

    `networks`: of the nodes above it at least. `known`: shapes that were asked for before, so that
    none is worked out twice; this one is added.
    """

    def features_of(above: Node, shape: Shape) -> tuple[int, ...]:
        return feature_shape(networks[above], shape)

    return shapes.input_shape(node, image_shape, features_of, known)


def channels_last(module: M, yes: bool = True) -> M:
    """The module, its arrays in the layout in which PyTorch's CPU convolutions are fast.

    `yes`: False turns them back into PyTorch's usual layout.
    """
    layout = torch.channels_last if yes else torch.contiguous_format
    return module.to(memory_format=layout)  # type: ignore[call-overload]  # documented, untyped


def blank(network: NodeNetwork, shape: Shape) -> Tensor:
    """One image of zeros, [1, C, H, W], where and in what the network computes."""
    device, dtype = location(network)
    return torch.zeros(1, *shape, device=device, dtype=dtype)
