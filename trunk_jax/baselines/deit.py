"""DeiT with timm's keys and semantics, DINOv2 with its hub's; they share their blocks."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data.recipes.baselines.architectures import Deit, Dinov2, Vit
from trunk_jax.baselines import initial
from trunk_jax.baselines.layers import (
    Gelu,
    LayerNorm,
    LayerScale,
    MaskToken,
    PatchConv,
    Resize,
    ScaledDotProduct,
    Token,
    bicubic,
)
from trunk_jax.layers.basic import EVAL, Identity, Linear, Mode, Sequential
from trunk_jax.nodes.node import NodeNetwork


class _Attention(nnx.Module):
    def __init__(self, spec: Vit):
        self.qkv = Linear(spec.width, 3 * spec.width, rng=None)
        self.attend = ScaledDotProduct(spec.heads)
        self.proj = Linear(spec.width, spec.width, rng=None)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.proj(self.attend(self.qkv(x, mode), mode), mode)


class _Mlp(nnx.Module):
    def __init__(self, spec: Vit):
        self.fc1 = Linear(spec.width, spec.hidden, rng=None)
        self.act = Gelu()
        self.fc2 = Linear(spec.hidden, spec.width, rng=None)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.fc2(self.act(self.fc1(x, mode), mode), mode)


class _Block(nnx.Module):
    """Attention, then two Linear layers, each after a layer norm and added to its input."""

    def __init__(self, spec: Vit):
        scaled = isinstance(spec, Dinov2)
        self.norm1 = LayerNorm(spec.width)
        self.attn = _Attention(spec)
        self.ls1 = LayerScale(spec.width) if scaled else Identity()
        self.norm2 = LayerNorm(spec.width)
        self.mlp = _Mlp(spec)
        self.ls2 = LayerScale(spec.width) if scaled else Identity()

    def __call__(self, x: Array, mode: Mode) -> Array:
        x = x + self.ls1(self.attn(self.norm1(x, mode), mode), mode)
        return x + self.ls2(self.mlp(self.norm2(x, mode), mode), mode)


class _Patches(nnx.Module):
    def __init__(self, spec: Vit, channels: int):
        self.proj = PatchConv(channels, spec.width, spec.patch, rng=None)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.proj(x, mode)


class DeitModel(NodeNetwork):
    """Scores; the features are all tokens after the last layer norm, the class token first."""

    def __init__(self, spec: Deit | Dinov2, channels: int, outputs: int, *, size: int = 0):
        self.resize = Resize(size)
        self.side = spec.image // spec.patch
        self.cls_token = Token(1, spec.width)
        self.pos_embed = Token(self.side**2 + 1, spec.width)
        self.patch_embed = _Patches(spec, channels)
        self.blocks = Sequential([_Block(spec) for _ in range(spec.depth)])
        self.norm = LayerNorm(spec.width)
        self.head: Linear | Identity = Linear(spec.width, outputs, rng=None)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as timm does, the patches' projection with PyTorch's default."""
        initial.fill(self, rng, conv=initial.uniform, linear=initial.small(0.02))
        initial.normal(rng, self.pos_embed.value, 0.02)
        initial.normal(rng, self.cls_token.value, 1e-6)

    def positions(self, rows: int, columns: int) -> Float[Array, "1 n d"]:
        """The position embeddings of the class token and of rows x columns patches."""
        return self.pos_embed.value[...]

    def tokens(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b n d"]:
        """Class token and patches, with their positions."""
        patches = self.patch_embed(self.resize(x), mode)
        batch, rows, columns, width = patches.shape
        first = jnp.broadcast_to(self.cls_token.value[...], (batch, 1, width))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, width)], axis=1)
        return tokens + self.positions(rows, columns)

    def features(self, x: Array, mode: Mode = EVAL) -> Float[Array, "b n d"]:
        """All tokens after the last layer norm."""
        return self.norm(self.blocks(self.tokens(x, mode), mode), mode)

    def __call__(
        self, x: Float[Array, "b h w c"], mode: Mode = EVAL
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b outputs"]]:
        features = self.features(x, mode)
        return features, self.head(features[:, 0], mode)


class Dinov2Model(DeitModel):
    """With registers between class token and patches, and positions interpolated to the input.

    The hub's model has no head: its normalised class token is what one is given. Ours is
    called `head`; without one (as in the release) that token is the scores.
    """

    def __init__(self, spec: Dinov2, channels: int, outputs: int, *, size: int = 0):
        super().__init__(spec, channels, outputs, size=size)
        self.register_tokens = Token(spec.registers, spec.width)
        self.mask_token = MaskToken(spec.width)
        if not spec.head:
            self.head = Identity()

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights as the hub does."""
        super().initialise(rng)
        initial.normal(rng, self.register_tokens.value, 1e-6)

    def positions(self, rows: int, columns: int) -> Float[Array, "1 n d"]:
        embeddings = self.pos_embed.value[...]
        if rows == columns == self.side:
            return embeddings
        first, rest = embeddings[:, :1], embeddings[:, 1:]
        width = rest.shape[-1]
        grid = rest.reshape(self.side, self.side, width)
        down, across = (jnp.asarray(bicubic(self.side, n), rest.dtype) for n in (rows, columns))
        grid = jnp.einsum("hwd,sh,tw->std", grid, down, across)
        return jnp.concatenate([first, grid.reshape(1, rows * columns, width)], axis=1)

    def tokens(self, x: Float[Array, "b h w c"], mode: Mode) -> Float[Array, "b n d"]:
        tokens = super().tokens(x, mode)
        registers = self.register_tokens.value[...]
        registers = jnp.broadcast_to(registers, (x.shape[0], *registers.shape[1:]))
        return jnp.concatenate([tokens[:, :1], registers, tokens[:, 1:]], axis=1)
