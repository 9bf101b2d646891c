"""What every network of a tree is to the rest of the code, a node's or a baseline's."""

from collections.abc import Callable

from flax import nnx
from jax import Array

from trunk_jax.layers.basic import EVAL, Mode

Shape = tuple[int, int, int]


class NodeNetwork(nnx.Module):
    """A module that turns inputs [b, h, w, c] into (features, scores [b, outputs]).

    `features`: what the children are given, [b, h2, w2, c2]; of a transformer tokens, [b, n, d].
    """

    features: Callable[[Array, Mode], Array]

    def __call__(self, x: Array, mode: Mode = EVAL) -> tuple[Array, Array]:
        raise NotImplementedError
