"""Annotations are checked while tests run: a wrong array is refused, whoever hands it over."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from data.images import strata
from data.recipes.networks import Block, ResNet
from data.tree import grouping
from trunk_jax.layers.basic import Flatten
from trunk_jax.nodes.resnet import ResNetNode

NODE = ResNetNode(ResNet(4, (Block(4),)), (8, 8, 3), 2, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: grouping.average_softmax(np.zeros((6, 2)), np.zeros(5, np.int32)),
        lambda: strata.stratified(np.zeros((4, 1), np.int32), 0.5, 0),
        lambda: Flatten()(jnp.zeros((2, 3))),
        lambda: NODE(jnp.zeros((8, 8, 3))),
        lambda: NODE(jnp.zeros((1, 8, 8, 3), jnp.int32)),
    ],
    ids=["data.tree", "data.images", "layers", "nodes", "a node's dtype"],
)
def test_an_array_of_another_shape_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()
