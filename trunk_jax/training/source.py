"""Images, and how the node that trains on them sees them."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from data.images.on_disk import OnDisk
from trunk_jax.network.network import Network

Some = Array | np.ndarray  # on the device, or on the way there
Draws = Mapping[str, Some]  # the augmentation's random numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Images, on the device or on disk, and how a node sees them.

    `targets`: the node's output for each image, -1 for images that are not its own.
    `above`: the networks of its ancestors, root first; frozen, in eval mode. `cached`: their
    features, computed already (`feature_cache`), at `cached_rows` of each image; `above` is then
    empty.
    """

    images: UInt8[Some, "n h w c"] | OnDisk
    targets: Int[Some, " n"]
    above: tuple[Network, ...]
    cached: Float[Array, "m h2 w2 c2"] | None = None
    cached_rows: Int[Array, " n"] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width, _ = self.images.shape
        return height, width
