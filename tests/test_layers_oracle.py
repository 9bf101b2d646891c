"""Our JAX layers against somebody else's blocks, from the same weights.

`transformers` was written by others, for other models: a misreading that our two ports share
would show here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from trunk_jax.layers import basic as layers
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import merge, split

resnet = pytest.importorskip("transformers.models.resnet.modeling_resnet")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("train", [False, True])
def test_convolution_batch_norm_relu(stride, train):
    torch.manual_seed(0)
    theirs = resnet.ResNetConvLayer(5, 7, kernel_size=3, stride=stride).double().train(train)
    names = {"convolution": "0", "normalization": "1"}
    weights = {}
    for key, tensor in theirs.state_dict().items():
        layer, _, leaf = key.partition(".")
        weights[f"{names[layer]}.{leaf}"] = tensor.numpy().copy()
    x = np.random.default_rng(0).normal(size=(4, 5, 9, 8))
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        block = layers.Sequential(
            [
                layers.Conv(5, 7, 3, stride=stride, padding=1, bias=False, rng=rng),
                layers.BatchNorm(7),
                layers.Relu(),
            ]
        )
        module: nnx.Module = merge(from_state_dict(split(block), weights))
        y = module(jnp.asarray(x.transpose(0, 2, 3, 1)), layers.Mode(train=train))
        after = to_state_dict(split(module))
    # float64: rounding of 45 terms is some 1e-15
    np.testing.assert_allclose(np.asarray(y).transpose(0, 3, 1, 2), expected, atol=1e-13)
    for leaf in ("running_mean", "running_var", "num_batches_tracked"):
        theirs_after = theirs.normalization.state_dict()[leaf].numpy()
        np.testing.assert_allclose(after[f"1.{leaf}"], theirs_after, atol=1e-13)
