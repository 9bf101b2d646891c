"""What every network of a tree is to the rest of the code, a node's or a baseline's."""

from collections.abc import Callable

from torch import Tensor, nn

Shape = tuple[int, int, int]


class NodeNetwork(nn.Module):
    """A module that turns inputs [B, C, H, W] into (features, scores [B, outputs]).

    `features`: what the children are given, [B, C2, H2, W2]; of a transformer tokens, [B, N, D].
    """

    features: Callable[[Tensor], Tensor]
