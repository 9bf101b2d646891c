"""What a network costs: parameters and multiply-adds."""

import torch
from torch import Tensor, nn

from trunk_torch_ref.baselines.layers import ScaledDotProduct, SelfAttention
from trunk_torch_ref.network.network import blank
from trunk_torch_ref.nodes import NodeNetwork, Shape
from trunk_torch_ref.shrink.quantized import QuantizedConv2d, QuantizedLinear


@torch.no_grad()
def cost(network: NodeNetwork, in_shape: Shape) -> dict[str, int]:
    """Parameters, and multiply-adds for one image, of convolutions, linear layers and attention.

    Counted from a pass: every layer's own output shape, padding included, as the published
    figures are.
    """
    multiply_adds = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal multiply_adds
        if not isinstance(layer, attention):
            assert isinstance(layer.weight, Tensor)
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
        network.eval()(blank(network, in_shape))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    parameters += sum(b.numel() for b in network.buffers() if b.dtype == torch.int8)
    return {"parameters": parameters, "multiply_adds": multiply_adds}
