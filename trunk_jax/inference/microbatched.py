"""Many images through networks in eval mode, in the pieces that are fast where it runs.

Layer by layer a batch's maps leave the cache before the next layer reads them. On a CPU a few
images at a time are taken through all layers instead; the values are the same.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Float

from trunk_jax.layers import microbatch
from trunk_jax.layers.basic import Conv, layer_shapes
from trunk_jax.network.network import Network, apply

T = TypeVar("T")

# So many values the largest map of a piece may have. A depthwise convolution takes few products
# of each value, so its maps should stay in the cache; dense ones are bound by arithmetic, and
# XLA's are slow for few images.
DEPTHWISE, DENSE = 2**20, 2**22


def infer(
    network: Network, x: Float[Array, "b h w c"], mesh: Mesh | None = None
) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b outputs"]]:
    """(features, scores) of a node. `mesh`: as in `in_microbatches`."""
    return in_microbatches(lambda x: apply(network, x)[0], x, mesh)


def in_microbatches(
    f: Callable[[Array], T], x: Float[Array, "b h w c"], mesh: Mesh | None = None
) -> T:
    """`f(x)`, where `f` treats each image by itself and all that it returns has their axis first.

    A batch that is split over the devices of a `mesh` stays whole: a piece would need images of
    all of them.
    """
    if mesh:
        return f(x)

    def some(x: Array) -> T:
        size = images_at_once(f, x)
        if len(x) <= size:
            return f(x)
        return microbatch.scan(lambda _, part: ((), f(part)), (), x, size)[1]

    return lax.platform_dependent(x, cpu=some, default=f)


def images_at_once(
    f: Callable[[Array], object], x: Float[Array, "b h w c"] | jax.ShapeDtypeStruct
) -> int:
    """The power of two of images whose largest map in `f` is within the bound; at least 1."""
    layers = layer_shapes(f, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    depthwise = any(isinstance(layer, Conv) and layer.groups > 1 for layer, _, _ in layers)
    largest = max((y.size for _, _, y in layers), default=1)
    return 2 ** (max(1, (DEPTHWISE if depthwise else DENSE) // largest).bit_length() - 1)
