"""A node's network from outside: made from a seed, its shapes and costs, its features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trunk_torch_ref.baselines.layers import ScaledDotProduct, SelfAttention
from trunk_torch_ref.nodes import Node, Shape
from trunk_torch_ref.shrink.quantized import QuantizedConv2d, QuantizedLinear


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generators start from `seed` inside and are put back afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def initial(build: Callable[[], Node], seed: int) -> Node:
    """What `build` makes with parameters drawn from `seed`, on the CPU, the same everywhere."""
    with seeded(seed):
        return build()


def location(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a network, and the type in which it computes."""
    parameter = next(network.parameters())
    return parameter.device, parameter.dtype


@torch.no_grad()
def features(network: Node, x: Tensor) -> Tensor:
    """What the children are given, in eval mode, [B, C, H, W]."""
    return network.eval().features(x)


def feature_shape(network: Node, in_shape: Shape) -> Shape:
    """Channels, height and width of what the children are given."""
    return tuple(features(network, _image(network, in_shape)).shape[1:])


@torch.no_grad()
def cost(network: Node, in_shape: Shape) -> dict[str, int]:
    """Parameters, and multiply-adds for one image, of convolutions, linear layers and attention.

    Counted from a pass: every layer's own output shape, padding included, as the published
    figures are.
    """
    multiply_adds = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal multiply_adds
        if not isinstance(layer, attention):
            multiply_adds += output.numel() * layer.weight[0].numel()
        else:  # scores and weighted values; PyTorch's own attention has its projections inside
            multiply_adds += 2 * output.numel() * output.shape[1]
            if isinstance(layer, SelfAttention):
                matrices = layer.in_proj_weight.numel() + layer.out_proj.weight.numel()
                multiply_adds += output.shape[:2].numel() * matrices

    attention = (SelfAttention, ScaledDotProduct)
    kinds = (nn.Conv2d, nn.Linear, QuantizedConv2d, QuantizedLinear, *attention)
    layers = [m for m in network.modules() if isinstance(m, kinds)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network.eval()(_image(network, in_shape))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    parameters += sum(b.numel() for b in network.buffers() if b.dtype == torch.int8)
    return {"parameters": parameters, "multiply_adds": multiply_adds}


def _image(network: Node, shape: Shape) -> Tensor:
    device, dtype = location(network)
    return torch.zeros(1, *shape, device=device, dtype=dtype)
