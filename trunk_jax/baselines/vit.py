"""Vision transformer; keys and semantics of torchvision's vit_b_16."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import Vit
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import (
    Gelu,
    LayerNorm,
    MultiHeadAttention,
    PatchConv,
    Resize,
    Token,
)
from trunk_jax.layers.basic import EVAL, Conv, Identity, Linear, Mode, Sequential
from trunk_jax.nodes.node import NodeNetwork


class _Block(nnx.Module):
    """Attention, then two Linear layers, each after a layer norm and added to its input."""

    def __init__(self, spec: Vit):
        self.ln_1 = LayerNorm(spec.width)
        self.self_attention = MultiHeadAttention(spec.width, spec.heads, rng=None)
        self.ln_2 = LayerNorm(spec.width)
        self.mlp = Sequential(
            [
                Linear(spec.width, spec.hidden, rng=None),
                Gelu(),
                Identity(),  # torchvision's dropout, of rate 0
                Linear(spec.hidden, spec.width, rng=None),
                Identity(),
            ]
        )

    def __call__(self, x: Array, mode: Mode) -> Array:
        x = x + self.self_attention(self.ln_1(x, mode), mode)
        return x + self.mlp(self.ln_2(x, mode), mode)


class _Layers(nnx.Module):
    def __init__(self, spec: Vit):
        self.depth = spec.depth
        for number in range(spec.depth):
            setattr(self, f"encoder_layer_{number}", _Block(spec))

    def __call__(self, x: Array, mode: Mode) -> Array:
        for number in range(self.depth):
            x = getattr(self, f"encoder_layer_{number}")(x, mode)
        return x


class _Encoder(nnx.Module):
    def __init__(self, spec: Vit):
        self.pos_embedding = Token((spec.image // spec.patch) ** 2 + 1, spec.width)
        self.layers = _Layers(spec)
        self.ln = LayerNorm(spec.width)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.ln(self.layers(x + self.pos_embedding.value[...], mode), mode)


class _Heads(nnx.Module):
    def __init__(self, width: int, outputs: int):
        self.head = Linear(width, outputs, rng=None)


class VitModel(NodeNetwork):
    """Scores; the features are all tokens after the last layer norm, the class token first."""

    def __init__(self, spec: Vit, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        self.class_token = Token(1, spec.width)
        self.conv_proj = PatchConv(channels, spec.width, spec.patch, rng=None)
        self.encoder = _Encoder(spec)
        self.heads = _Heads(spec.width, outputs)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as torchvision does; the head starts at zero."""

        def linear(rng: np.random.Generator, layer: Conv | Linear) -> None:
            initial.xavier(rng, layer.kernel)
            assert layer.bias is not None
            initial.normal(rng, layer.bias, 1e-6)

        patch = math.sqrt(1 / math.prod(self.conv_proj.kernel.shape[:3]))
        initial.fill(self, rng, conv=initial.small(patch), linear=linear)
        initial.normal(rng, self.encoder.pos_embedding.value, 0.02)
        for _, layer in nnx.iter_modules(self):
            if isinstance(layer, MultiHeadAttention):
                # Xavier takes PyTorch's packed matrix for what it is: [3 d, d]
                initial.xavier(rng, layer.kernel)
                initial.zero(layer.out_proj.bias)
                initial.uniform(rng, layer.out_proj)
                initial.zero(layer.out_proj.bias)
        initial.zero(self.heads.head.kernel)
        initial.zero(self.heads.head.bias)

    def features(self, x: Array, mode: Mode = EVAL) -> Float[Array, "b n d"]:
        """All tokens after the last layer norm."""
        patches = self.conv_proj(self.resize(x), mode)
        tokens = patches.reshape(x.shape[0], -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_token.value[...], (x.shape[0], 1, tokens.shape[-1]))
        return self.encoder(jnp.concatenate([first, tokens], axis=1), mode)

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.heads.head(features[:, 0], mode)
