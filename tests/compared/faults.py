"""Faults in models of users' style, written down before there was anything to find them.

Each says what must be reported: the layer of the PyTorch model (a part of its path) in which the
models first differ, and the cause, in one of the words of `CAUSES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
import torch
from flax import nnx

from tests.compared import models

CAUSES = (
    "epsilon",
    "momentum",
    "running variance",
    "padding",
    "channel order",
    "batch statistics in evaluation",
    "running statistics in training",
    "activation",
    "tanh GELU",
    "bias",
    "scale",
    "softmax axis",
    "dropout",
    "bfloat16",
    "rotary pairs",
    "rotary base",
    "causal mask",
    "mask polarity",
    "head order",
    "gate order",
    "flatten order",
    "group order",
    "count_include_pad",
    "ceil_mode",
    "align_corners",
    "antialias",
    "transposed kernel",
    "flipped kernel",
    "biased variance",
    "dilation",
    "slope",
    "gradient stopped",
    "decoupled weight decay",
    "weight decay",
    "place of epsilon",
    "nesterov",
)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
      name: its own.
      model: of `PAIRS`.
      cause: what must be said.
      where: a part of the PyTorch path that must be named; for weights the weight, "" for
        optimisers.
      jax: options of the NNX model that plant it.
      torch: options of the PyTorch model.
      both: options that both models are made with.
      spoil: changes the NNX model's weights, which are then not carried again.
      optimizer: a pair of optimisers to compare.

    """

    name: str
    model: str
    cause: str
    where: str
    jax: dict[str, Any] = field(default_factory=dict)
    torch: dict[str, Any] = field(default_factory=dict)
    both: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[nnx.Module], None] | None = None
    optimizer: tuple[Any, Any] | None = None


PAIRS = {
    "resnet": (models.torch_resnet, models.ResNet),
    "vit": (models.torch_vit, models.ViT),
    "decoder": (models.torch_decoder, models.Decoder),
    "lstm": (models.TorchLSTM, models.LSTM),
    "cnn": (models.TorchCNN, models.CNN),
}


def _gates(module):
    """Gates i, f, g, o read as i, f, o, g."""
    cell = module.rnn.cell
    for side in "ih":
        g, o = getattr(cell, f"{side}g"), getattr(cell, f"{side}o")
        for name in ("kernel", "bias"):
            if getattr(g, name) is not None:
                a, b = getattr(g, name), getattr(o, name)
                a[...], b[...] = b[...], a[...]


def _transposed(module):
    module.project.kernel[...] = module.project.kernel[...].T


def _flipped(module):
    module.up.kernel[...] = module.up.kernel[...][::-1, ::-1]


def _no_bias(module):
    module.head.bias[...] = jnp.zeros_like(module.head.bias[...])


ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
GAP = {"flat": False}
STEM = "embedder.embedder"

FAULTS = [
    # ResNet
    Fault(
        "Flax's usual epsilon", "resnet", "epsilon", f"{STEM}.normalization", {"bn_epsilon": 1e-3}
    ),
    Fault(
        "an epsilon that differs little",
        "resnet",
        "epsilon",
        f"{STEM}.normalization",
        {"bn_epsilon": 1e-6},
    ),
    Fault(
        "momentum as PyTorch counts it",
        "resnet",
        "momentum",
        f"{STEM}.normalization",
        {"bn_momentum": 0.1},
    ),
    Fault(
        "Flax's default momentum",
        "resnet",
        "momentum",
        f"{STEM}.normalization",
        {"bn_momentum": 0.99},
    ),
    Fault(
        "Flax's biased running variance",
        "resnet",
        "running variance",
        f"{STEM}.normalization",
        {"bn_class": nnx.BatchNorm},
    ),
    Fault("SAME at stride 2", "resnet", "padding", f"{STEM}.convolution", {"stem_padding": "SAME"}),
    Fault("a pool with SAME", "resnet", "padding", "embedder.pooler", {"pool_padding": "SAME"}),
    Fault("BGR", "resnet", "channel order", f"{STEM}.convolution", {"bgr": True}),
    Fault(
        "batch statistics in evaluation",
        "resnet",
        "batch statistics in evaluation",
        f"{STEM}.normalization",
        {"bn_class": models.FrozenInEval},
    ),
    Fault(
        "running statistics in training",
        "resnet",
        "running statistics in training",
        f"{STEM}.normalization",
        {"bn_class": models.AlwaysRunning},
    ),
    Fault("a gradient that ends", "resnet", "gradient stopped", "resnet", {"stop": True}),
    # ViT
    Fault("GELU by tanh", "vit", "tanh GELU", "mlp", {"act": nnx.gelu}),
    Fault("SiLU for GELU", "vit", "activation", "mlp", {"act": nnx.silu}),
    Fault("Flax's default epsilon", "vit", "epsilon", "norm", {"epsilon": 1e-6}),
    Fault("projections without bias", "vit", "bias", "attention", {"bias": False}),
    Fault("scores without their scale", "vit", "scale", "attention", {"scaled": False}),
    Fault("softmax over queries", "vit", "softmax axis", "attention", {"axis": -2}),
    Fault("dropout that stays on", "vit", "dropout", "dropout", {"drop": True}),
    Fault("bfloat16 in one layer", "vit", "bfloat16", "mlp", {"dtype": jnp.bfloat16}),
    # decoder
    Fault(
        "rotary pairs interleaved", "decoder", "rotary pairs", "self_attn", {"interleaved": True}
    ),
    Fault("another rotary base", "decoder", "rotary base", "rotary", {"base": 500000.0}),
    Fault("no causal mask", "decoder", "causal mask", "self_attn", {"mask": ""}),
    Fault(
        "the mask's other polarity", "decoder", "mask polarity", "self_attn", {"mask": "inverted"}
    ),
    Fault("RMS norm's epsilon", "decoder", "epsilon", "layernorm", {"epsilon": 1e-5}),
    Fault("heads tiled, not repeated", "decoder", "head order", "self_attn", {"tiled": True}),
    # LSTM
    Fault("gates i f o g", "lstm", "gate order", "lstm", spoil=_gates),
    Fault("a bias forgotten", "lstm", "bias", "fc", spoil=_no_bias),
    # CNN
    Fault("flattened as NHWC", "cnn", "flatten order", "head", {"order": "nhwc"}),
    Fault(
        "channels shuffled the other way",
        "cnn",
        "group order",
        "shuffle",
        {"shuffle": False},
        both={"width": 12, "groups": 3},
    ),
    Fault("padding not counted", "cnn", "count_include_pad", "pool", {"count": False}),
    Fault(
        "a pool that rounds up",
        "cnn",
        "ceil_mode",
        "pool",
        {"ceil": True},
        both={**GAP, "size": 10},
    ),
    Fault("corners aligned", "cnn", "align_corners", "", torch={"corners": True}),
    Fault("JAX's default antialias", "cnn", "antialias", "", {"antialias": True}),
    Fault("biased variance", "cnn", "biased variance", "standardise", {"unbiased": False}),
    Fault("no dilation", "cnn", "dilation", "dilated", {"dilation": 1}),
    Fault("another slope", "cnn", "slope", "act", {"slope": 0.2}),
    Fault("a kernel not transposed", "cnn", "transposed kernel", "project", spoil=_transposed),
    Fault("a kernel not flipped", "cnn", "flipped kernel", "up", spoil=_flipped),
    # optimisers
    Fault(
        "L2 for decoupled decay",
        "lstm",
        "decoupled weight decay",
        "",
        optimizer=(ADAMW, optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))),
    ),
    Fault(
        "optax's default decay",
        "lstm",
        "weight decay",
        "",
        optimizer=(partial(torch.optim.AdamW, lr=1e-2), optax.adamw(1e-2)),
    ),
    Fault(
        "epsilon under the root",
        "lstm",
        "place of epsilon",
        "",
        optimizer=(
            partial(torch.optim.Adam, lr=1e-2, eps=1e-4),
            optax.adam(1e-2, eps=0, eps_root=1e-8),
        ),
    ),
    Fault(
        "Nesterov on one side",
        "lstm",
        "nesterov",
        "",
        optimizer=(
            partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
            optax.sgd(1e-2, momentum=0.9, nesterov=True),
        ),
    ),
]


def made(
    model: str,
    seed: int = 0,
    both: dict[str, Any] | None = None,
    jax: dict[str, Any] | None = None,
    torch_options: dict[str, Any] | None = None,
):
    """The two models and an input."""
    both = both or {}
    torch.manual_seed(seed)
    theirs = PAIRS[model][0](**both, **(torch_options or {}))
    ours = PAIRS[model][1](**both, **(jax or {}), rngs=nnx.Rngs(seed))
    return theirs, ours, inputs(model, both, seed)


def inputs(model: str, both: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """A batch for a model, NCHW."""
    generator = torch.Generator().manual_seed(seed)
    if model == "decoder":
        return torch.randint(both.get("vocabulary", 23), (2, 7), generator=generator)
    if model == "lstm":
        return torch.randn(3, 6, both.get("features", 5), generator=generator)
    size = {"resnet": 32, "vit": both.get("image", 8), "cnn": both.get("size", 9)}[model]
    return torch.randn(3, 3, size, size, generator=generator)


def carried(theirs, ours, x) -> None:
    """Give the NNX model PyTorch's weights, as its user did."""
    from parity.comparing.comparison import carry_weights

    carry_weights(theirs, ours, x)
