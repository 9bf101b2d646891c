"""A node's network from outside: made from a seed, its shapes and costs, its features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trunk_torch_ref.nodes import NodeNetwork, Shape


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


def feature_shape(network: NodeNetwork, in_shape: Shape) -> Shape:
    """Channels, height and width of what the children are given."""
    return tuple(features(network, blank(network, in_shape)).shape[1:])


def blank(network: NodeNetwork, shape: Shape) -> Tensor:
    """One image of zeros, [1, C, H, W], where and in what the network computes."""
    device, dtype = location(network)
    return torch.zeros(1, *shape, device=device, dtype=dtype)
