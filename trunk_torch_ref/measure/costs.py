"""What a network costs: parameters and multiply-adds."""

import torch
from torch import Tensor, nn

from trunk_torch_ref.baselines.layers import ScaledDotProduct, SelfAttention
from trunk_torch_ref.network.calls import recorded
from trunk_torch_ref.network.network import blank
from trunk_torch_ref.nodes import NodeNetwork, Shape
from trunk_torch_ref.shrink.quantized import QuantizedConv2d, QuantizedLinear

_COUNTED = (
    nn.Conv2d,
    nn.Linear,
    QuantizedConv2d,
    QuantizedLinear,
    SelfAttention,
    ScaledDotProduct,
)


@torch.no_grad()
def cost(network: NodeNetwork, in_shape: Shape) -> dict[str, int]:
    """Parameters, and multiply-adds for one image, of convolutions, linear layers and attention.

    Counted from a pass: every layer's own output shape, padding included, as the published
    figures are.
    """
    with recorded(m for m in network.modules() if isinstance(m, _COUNTED)) as calls:
        network.eval()(blank(network, in_shape))
    multiply_adds = sum(_multiply_adds(layer, output) for layer, _, output in calls)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    parameters += sum(b.numel() for b in network.buffers() if b.dtype == torch.int8)
    return {"parameters": parameters, "multiply_adds": multiply_adds}


def _multiply_adds(layer: nn.Module, output: Tensor) -> int:
    if not isinstance(layer, SelfAttention | ScaledDotProduct):
        assert isinstance(layer.weight, Tensor)
        return output.numel() * layer.weight[0].numel()
    # scores and weighted values; PyTorch's own attention has its projections inside
    count = 2 * output.numel() * output.shape[1]
    if isinstance(layer, SelfAttention):
        matrices = layer.in_proj_weight.numel() + layer.out_proj.weight.numel()
        count += output.shape[:2].numel() * matrices
    return count
