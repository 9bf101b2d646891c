"""Each layer of a network by itself: the same input and output gradient in both frameworks."""

import copy
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.checks import cancellation
from parity.pairs.passes import (
    DEVICE,
    DTYPES,
    Arrays,
    Pair,
    cast,
    channel_first,
    channel_last,
    gradient_of,
    keeps_channels_last,
    leaves,
    recorded_masks,
)
from trunk_jax.layers import basic as layers
from trunk_jax.network import exchange
from trunk_jax.network.network import Network, merge, split
from trunk_torch_ref.baselines.layers import LayerScale, ScaledDotProduct, SelfAttention
from trunk_torch_ref.training import objective

Passes = dict[str, Arrays]  # by layer name; in each: output, gradient of input, gradient of ...


def truth(
    both: Pair, x: np.ndarray, targets: np.ndarray, seed: int, kind: str
) -> tuple[Passes, Arrays]:
    """By layer, its `x` and the gradient `dy` of its output in a float64 training pass of PyTorch.

    Both are rounded to float32, so that either type starts from the same numbers. Also the
    dropout masks that were drawn.
    """
    module = copy.deepcopy(both.torch).to(DEVICE, torch.float64).train()
    found: Passes = {}
    hooks = []

    def forward(name, layer, inputs, output):
        found[name] = {"x": inputs[0].detach().float().cpu().numpy()}

        def backward(gradient):
            found[name]["dy"] = gradient.float().cpu().numpy()

        output.register_hook(backward)

    for name, layer in leaves(module).items():
        hooks.append(layer.register_forward_hook(partial(forward, name)))
    image = torch.tensor(x, dtype=torch.float64, device=DEVICE, requires_grad=True)
    with recorded_masks(module) as masks, torch.random.fork_rng():
        torch.manual_seed(seed)
        _, scores = module(image)
    labels = torch.tensor(targets, dtype=torch.int64, device=DEVICE)
    objective.loss(scores, labels, kind).backward()
    for hook in hooks:
        hook.remove()
    return found, masks


def torch_passes(both: Pair, dtype: str, given: Passes, masks: Arrays) -> Passes:
    """Each layer's output and gradients in PyTorch, in train mode."""
    result: Passes = {}
    for name, layer in leaves(copy.deepcopy(both.torch)).items():
        if name not in given:
            continue
        if name in masks:
            assert isinstance(layer.p, float)
            layer = _Masked(masks[name], layer.p)
        layer = layer.to(DEVICE, DTYPES[dtype][1]).train()
        x, dy = (
            torch.tensor(given[name][key], dtype=DTYPES[dtype][1], device=DEVICE)
            for key in ("x", "dy")
        )
        y = layer(x.requires_grad_())
        y.backward(dy)
        result[name] = {
            "output": y.detach().cpu().numpy(),
            "gradient of input": gradient_of(x).cpu().numpy(),
        }
        for key, parameter in layer.named_parameters():
            result[name][f"gradient of {key}"] = gradient_of(parameter).cpu().numpy()
        for key, buffer in layer.named_buffers():
            result[name][f"after {key}"] = buffer.cpu().numpy()
    return result


class _Masked(torch.nn.Module):
    """Dropout with a given mask; whether PyTorch's own scales alike is checked on whole nodes."""

    def __init__(self, mask: np.ndarray, rate: float):
        super().__init__()
        self._mask, self._rate = torch.tensor(channel_first(mask)), rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._mask.to(x) / (1 - self._rate)


@jax.jit
def _pass(layer: Network, x, dy, keep):
    """One layer; layers of one kind and shape share a program, within and across networks."""

    def run(params, x):
        module = merge(replace(layer, params=params))
        return module(x, layers.Mode(train=True, masks=keep)), split(module).stats

    y, backward, stats = jax.vjp(run, layer.params, x, has_aux=True)
    dparams, dx = backward(dy)
    return y, dx, replace(layer, params=dparams, stats=stats)


def jax_passes(both: Pair, dtype: str, given: Passes, masks: Arrays) -> Passes:
    """Each layer's output and gradients in JAX, in train mode."""
    result: Passes = {}
    with jax.enable_x64(dtype == "float64"):
        kind = DTYPES[dtype][0]
        for name, layer in _layers(merge(cast(both.jax, dtype))).items():
            if name not in given:
                continue
            same = keeps_channels_last(both.torch.get_submodule(name))
            pair = (given[name][key] for key in ("x", "dy"))
            x, dy = (jnp.asarray(a if same else channel_last(a), kind) for a in pair)
            keep = None
            if name in masks:
                assert isinstance(layer, layers.Dropout)
                keep = {layer.stream: jnp.asarray(masks[name])}
            y, dx, gradients = _pass(split(layer), x, dy, keep)
            y, dx = (np.asarray(a) if same else channel_first(a) for a in (y, dx))
            result[name] = {"output": y, "gradient of input": dx}
            for key, array in exchange.to_state_dict(gradients).items():
                statistic = key.startswith(("running", "num_batches"))
                result[name][f"{'after' if statistic else 'gradient of'} {key}"] = array
    return result


def _layers(module: nnx.Module) -> dict[str, layers.Layer]:
    return {
        ".".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(module)
        if isinstance(layer, layers.Layer)
    }


def accumulated(layer: torch.nn.Module, given: Arrays) -> dict[str, float]:
    """How many terms are summed for each value of a layer's results; 1 where nothing is.

    For sums one after another the square of the sum of the roots.
    """
    x, dy = given["x"].shape, given["dy"].shape
    batch = x[0]
    if isinstance(layer, torch.nn.Conv2d):
        taps = layer.kernel_size[0] ** 2
        positions = batch * dy[2] * dy[3]
        return {
            "output": taps * layer.in_channels // layer.groups,
            "gradient of input": taps * layer.out_channels // layer.groups,
            "gradient of weight": positions,
            "gradient of bias": positions,
        }
    if isinstance(layer, torch.nn.Linear):
        rows = int(np.prod(x[:-1]))
        return {
            "output": layer.in_features,
            "gradient of input": layer.out_features,
            "gradient of weight": rows,
            "gradient of bias": rows,
        }
    if isinstance(layer, torch.nn.LayerNorm):
        width, rows = layer.normalized_shape[0], given["x"].size // layer.normalized_shape[0]
        return {
            "output": width,
            "gradient of input": width,
            "gradient of weight": rows,
            "gradient of bias": rows,
        }
    if isinstance(layer, SelfAttention | ScaledDotProduct):
        # one sum after another: scores over a head's features, values over tokens, and before
        # and after them projections; backward as many, on terms that cancel
        tokens, width = x[1], dy[2]
        packed = isinstance(layer, SelfAttention)
        each = layer.head_dim if isinstance(layer, SelfAttention) else width // layer.heads
        inner = math.sqrt(each) + math.sqrt(tokens)
        outer = 2 * math.sqrt(width) if packed else 0.0
        lost = cancellation.of_attention(layer, given["x"], given["dy"])
        backward = (lost * inner + outer) ** 2
        return {
            "output": (inner + outer) ** 2,
            "gradient of input": backward,
            "gradient of in_proj_weight": backward + batch * tokens,
            "gradient of in_proj_bias": backward + batch * tokens,
            "gradient of out_proj.weight": (inner + outer) ** 2 + batch * tokens,
            "gradient of out_proj.bias": batch * tokens,
        }
    if isinstance(layer, torch.nn.GELU):
        # the error function is a polynomial of a dozen terms, times a power
        return {"output": 16, "gradient of input": 16}
    if isinstance(layer, LayerScale):
        return {"gradient of gamma": batch * x[1]}
    values = batch * int(np.prod(x[2:]))
    if isinstance(layer, torch.nn.BatchNorm2d):
        return dict.fromkeys(
            [
                "output",
                "gradient of input",
                "gradient of weight",
                "gradient of bias",
                "after running_mean",
                "after running_var",
            ],
            values,
        )
    if isinstance(layer, torch.nn.AdaptiveAvgPool2d):
        return {"output": int(np.prod(x[2:]))}
    if isinstance(layer, torch.nn.LogSoftmax):
        return {"output": x[1], "gradient of input": x[1]}
    return {}
