"""Models as users of Flax NNX write them, each beside the PyTorch model that it was ported from.

The PyTorch side comes from `transformers` where it has one. Every option's default is right; a
fault is another value of one option.
"""

from functools import partial

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional


class TorchBatchNorm(nnx.BatchNorm):
    """The running variance as PyTorch keeps it: unbiased."""

    def __call__(self, x, **keywords):
        before = self.var[...]
        y = super().__call__(x, **keywords)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            fresh = self.var[...] - self.momentum * before
            self.var[...] = self.momentum * before + fresh * count / (count - 1)
        return y


# ------------------------------------------------------------------ ResNet


class BasicBlock(nnx.Module):
    def __init__(self, cin, cout, stride, norm, *, rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.conv1 = conv(cin, cout, strides=stride, padding=1)
        self.bn1 = norm(cout)
        self.conv2 = conv(cout, cout, padding=1)
        self.bn2 = norm(cout)
        self.projects = stride != 1 or cin != cout
        if self.projects:
            self.downsample = nnx.Conv(
                cin, cout, (1, 1), strides=stride, padding=0, use_bias=False, rngs=rngs
            )
            self.downsample_bn = norm(cout)

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.projects:
            x = self.downsample_bn(self.downsample(x))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    def __init__(
        self,
        widths=(6, 10),
        depths=(1, 1),
        classes=5,
        *,
        bn_class=TorchBatchNorm,
        bn_epsilon=1e-5,
        bn_momentum=0.9,
        bn_running=None,
        stem_padding=3,
        pool_padding=((1, 1), (1, 1)),
        bgr=False,
        stop=False,
        rngs,
    ):
        norm = partial(
            bn_class,
            epsilon=bn_epsilon,
            momentum=bn_momentum,
            rngs=rngs,
            **({} if bn_running is None else {"use_running_average": bn_running}),
        )
        self.stem = nnx.Conv(
            3, widths[0], (7, 7), strides=2, padding=stem_padding, use_bias=False, rngs=rngs
        )
        self.stem_bn = norm(widths[0])
        blocks, cin = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for place in range(depth):
                stride = 2 if place == 0 and stage else 1
                blocks.append(BasicBlock(cin, width, stride, norm, rngs=rngs))
                cin = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(cin, classes, rngs=rngs)
        self.pool_padding, self.bgr, self.stop = pool_padding, bgr, stop

    def __call__(self, x):
        x = x[..., ::-1] if self.bgr else x
        x = nnx.relu(self.stem_bn(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=self.pool_padding)
        for block in self.blocks:
            x = block(x)
        x = x.mean(axis=(1, 2))
        x = jax.lax.stop_gradient(x) if self.stop else x
        return self.head(x)


class FrozenInEval(TorchBatchNorm):
    """Somebody's batch norm that never looks at whether it is trained."""

    always = False

    def __call__(self, x, **keywords):
        return super().__call__(x, use_running_average=self.always)


class AlwaysRunning(FrozenInEval):
    always = True


def torch_resnet(widths=(6, 10), depths=(1, 1), classes=5):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type="basic",
        num_labels=classes,
    )
    return ResNetForImageClassification(config)


# ------------------------------------------------------------------ ViT


exact_gelu = partial(nnx.gelu, approximate=False)


class OwnAttention(nnx.Module):
    """Attention as many write it, with `einsum`."""

    def __init__(self, width, heads, *, bias=True, scaled=True, axis=-1, rngs):
        linear = partial(nnx.Linear, width, width, rngs=rngs)
        self.query, self.key, self.value = (linear(use_bias=bias) for _ in range(3))
        self.out = linear()
        self.heads, self.scaled, self.axis = heads, scaled, axis

    def __call__(self, x):
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if self.scaled:
            scores = scores / jnp.sqrt(width // self.heads)
        weights = jax.nn.softmax(scores, axis=self.axis)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


class ViTBlock(nnx.Module):
    def __init__(self, width, heads, hidden, epsilon, attention, act, dtype, drop, own, *, rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        if own:
            self.attn = OwnAttention(width, heads, rngs=rngs, **attention)
        else:
            self.attn = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.fc1 = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.act, self.drop = act, drop

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        y = self.fc2(self.act(self.fc1(self.norm2(x))))
        y = self.dropout(y, deterministic=False) if self.drop else self.dropout(y)
        return x + y


class ViT(nnx.Module):
    def __init__(
        self,
        width=12,
        heads=3,
        hidden=20,
        layers=2,
        image=8,
        patch=4,
        classes=5,
        *,
        epsilon=1e-12,
        act=exact_gelu,
        dtype=None,
        drop=False,
        own=True,
        rngs,
        **attention,
    ):
        self.patch_embed = nnx.Conv(3, width, (patch, patch), strides=patch, padding=0, rngs=rngs)
        tokens = (image // patch) ** 2 + 1
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.pos_embed = nnx.Param(jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List(
            ViTBlock(width, heads, hidden, epsilon, attention, act, dtype, drop, own, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        x = self.patch_embed(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        cls = jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.pos_embed[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def torch_vit(width=12, heads=3, hidden=20, layers=2, image=8, patch=4, classes=5):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        image_size=image,
        patch_size=patch,
        num_labels=classes,
    )
    module = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in module.parameters():  # zero biases and tokens would hide faults
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


# ------------------------------------------------------------------ decoder


def rope(x, base, interleaved):
    """x: (batch, tokens, heads, dim)"""
    dim = x.shape[-1]
    freq = 1.0 / (base ** (jnp.arange(0, dim, 2) / dim))
    angle = jnp.arange(x.shape[1])[:, None] * freq[None]
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class DecoderBlock(nnx.Module):
    def __init__(self, width, heads, kv_heads, hidden, options, *, rngs):
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.dim = width // heads
        self.attn_norm = nnx.RMSNorm(width, epsilon=options["epsilon"], rngs=rngs)
        self.q_proj = linear(width, heads * self.dim)
        self.k_proj = linear(width, kv_heads * self.dim)
        self.v_proj = linear(width, kv_heads * self.dim)
        self.o_proj = linear(heads * self.dim, width)
        self.mlp_norm = nnx.RMSNorm(width, epsilon=options["epsilon"], rngs=rngs)
        self.gate = linear(width, hidden)
        self.up = linear(width, hidden)
        self.down = linear(hidden, width)
        self.heads, self.kv_heads, self.options = heads, kv_heads, nnx.static(options)

    def __call__(self, x):
        options = self.options
        batch, tokens, _ = x.shape
        y = self.attn_norm(x)
        q = self.q_proj(y).reshape(batch, tokens, self.heads, self.dim)
        k = self.k_proj(y).reshape(batch, tokens, self.kv_heads, self.dim)
        v = self.v_proj(y).reshape(batch, tokens, self.kv_heads, self.dim)
        q, k = (rope(a, options["base"], options["interleaved"]) for a in (q, k))
        times = self.heads // self.kv_heads
        if options["tiled"]:
            k, v = (jnp.tile(a, (1, 1, times, 1)) for a in (k, v))
        else:
            k, v = (jnp.repeat(a, times, axis=2) for a in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.dim**-0.5
        seen = jnp.tril(jnp.ones((tokens, tokens), bool))
        if options["mask"] == "causal":
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        elif options["mask"] == "inverted":
            scores = jnp.where(seen, jnp.finfo(scores.dtype).min, scores)
        y = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), v).reshape(batch, tokens, -1)
        x = x + self.o_proj(y)
        y = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


class Decoder(nnx.Module):
    def __init__(
        self,
        vocabulary=23,
        width=16,
        heads=4,
        kv_heads=2,
        hidden=20,
        layers=2,
        *,
        epsilon=1e-6,
        base=10000.0,
        interleaved=False,
        tiled=False,
        mask="causal",
        rngs,
    ):
        options = {
            "epsilon": epsilon,
            "base": base,
            "interleaved": interleaved,
            "tiled": tiled,
            "mask": mask,
        }
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.layers = nnx.List(
            DecoderBlock(width, heads, kv_heads, hidden, options, rngs=rngs) for _ in range(layers)
        )
        self.norm = nnx.RMSNorm(width, epsilon=epsilon, rngs=rngs)
        self.lm_head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def torch_decoder(vocabulary=23, width=16, heads=4, kv_heads=2, hidden=20, layers=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        max_position_embeddings=64,
        use_cache=False,
        tie_word_embeddings=False,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


# ------------------------------------------------------------------ LSTM


class LSTM(nnx.Module):
    def __init__(self, features=5, hidden=7, classes=4, *, cell=nnx.LSTMCell, rngs):
        self.rnn = nnx.RNN(cell(features, hidden, rngs=rngs))
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class TorchLSTM(nn.Module):
    def __init__(self, features=5, hidden=7, classes=4):
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.fc(y[:, -1])


# ------------------------------------------------------------------ a CNN of many kinds of layers


class Standardise(nnx.Module):
    """Takes mean and deviation over the channels off."""

    def __init__(self, unbiased):
        self.unbiased = unbiased

    def __call__(self, x):
        mean = x.mean(axis=-1, keepdims=True)
        variance = x.var(axis=-1, keepdims=True, ddof=int(self.unbiased))
        return (x - mean) / jnp.sqrt(variance + 1e-5)


class CNN(nnx.Module):
    def __init__(
        self,
        width=8,
        groups=2,
        size=9,
        classes=5,
        flat=True,
        *,
        shuffle=True,
        order="nchw",
        resize=12,
        antialias=False,
        count=True,
        ceil=False,
        unbiased=True,
        dilation=2,
        slope=0.01,
        rngs,
    ):
        conv = partial(nnx.Conv, rngs=rngs)
        self.conv1 = conv(3, width, (3, 3), padding=1)
        self.grouped = conv(width, width, (3, 3), padding=1, feature_group_count=groups)
        self.depthwise = conv(width, width, (3, 3), padding=1, feature_group_count=width)
        self.norm = nnx.GroupNorm(width, num_groups=groups, epsilon=1e-5, rngs=rngs)
        self.dilated = conv(
            width, width, (3, 3), padding=((dilation, dilation),) * 2, kernel_dilation=dilation
        )
        self.up = nnx.ConvTranspose(
            width, width, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=rngs
        )
        self.standardise = Standardise(unbiased)
        self.project = nnx.Linear(width, width, rngs=rngs)
        final = (size // 2 + 1 if size % 2 else size // 2) ** 2 * width if flat else width
        self.head = nnx.Linear(final, classes, rngs=rngs)
        self.groups, self.flat, self.shuffle, self.order = groups, flat, shuffle, order
        self.size, self.antialias, self.count, self.ceil = size, antialias, count, ceil
        self.resize, self.slope = resize, slope

    def __call__(self, x):
        x = nnx.relu(self.conv1(x))
        n, h, w, c = x.shape
        x = self.grouped(x)
        split, turned = (self.groups, c // self.groups), (0, 1, 2, 4, 3)
        split = split if self.shuffle else split[::-1]
        x = x.reshape(n, h, w, *split).transpose(turned).reshape(n, h, w, c)
        x = nnx.leaky_relu(self.norm(self.depthwise(x)), self.slope)
        x = x + self.dilated(x)
        x = self.up(x)
        x = self.standardise(x)
        x = jax.image.resize(
            x, (n, self.resize, self.resize, c), "bilinear", antialias=self.antialias
        )
        x = nnx.tanh(self.project(x))
        x = jax.image.resize(x, (n, h, w, c), "bilinear", antialias=self.antialias)
        padding = ((1, 2), (1, 2)) if self.ceil else ((1, 1), (1, 1))
        x = nnx.avg_pool(x, (3, 3), (2, 2), padding=padding, count_include_pad=self.count)
        if not self.flat:
            return self.head(x.mean(axis=(1, 2)))
        x = x.transpose(0, 3, 1, 2) if self.order == "nchw" else x
        return self.head(x.reshape(n, -1))


class TorchStandardise(nn.Module):
    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5)


class TorchCNN(nn.Module):
    def __init__(
        self, width=8, groups=2, size=9, classes=5, flat=True, *, resize=12, corners=False
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(groups, width)
        self.act = nn.LeakyReLU()
        self.dilated = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.standardise = TorchStandardise()
        self.project = nn.Linear(width, width)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        final = (size // 2 + 1 if size % 2 else size // 2) ** 2 * width if flat else width
        self.head = nn.Linear(final, classes)
        self.resize, self.size, self.corners, self.flat = resize, size, corners, flat
        for parameter in (self.norm.weight, self.norm.bias):
            nn.init.normal_(parameter)

    def forward(self, x):
        x = self.shuffle(self.grouped(torch.relu(self.conv1(x))))
        x = self.act(self.norm(self.depthwise(x)))
        x = x + self.dilated(x)
        x = self.standardise(self.up(x))
        to = partial(functional.interpolate, mode="bilinear", align_corners=self.corners)
        x = to(x, size=(self.resize, self.resize))
        x = torch.tanh(self.project(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = self.pool(to(x, size=(self.size, self.size)))
        return self.head(torch.flatten(x, 1) if self.flat else x.mean((2, 3)))
