"""A tree with its networks in PyTorch, and the decisions that it takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

import data.inference.model
from data.images.on_disk import Images
from data.inference.model import Visit
from data.tree.hierarchy import Node
from trunk_torch_ref.inference import route
from trunk_torch_ref.nodes import NodeNetwork


@dataclass(frozen=True, repr=False)
class Model(data.inference.model.Model):
    """A tree and the network of each of its nodes, in PyTorch; the networks are `nn.Module`s."""

    networks: dict[Node, NodeNetwork]

    def visits(self, pixels: Images) -> Iterator[Visit]:
        return route.walk(self, pixels)

    def features_of(self, pixels: Images, node: Node) -> Float[np.ndarray, "n *features"]:
        return route.features(self, pixels, node)
