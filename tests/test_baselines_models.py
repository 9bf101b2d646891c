"""The monolithic baselines: sizes, state_dict keys, and somebody else's implementations."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from data.base.errors import UserError
from data.recipes.baselines.architectures import (
    ARCHITECTURES,
    ConvNext,
    Deit,
    Dinov2,
    MobileNetV2,
    ResNet,
    Vgg,
    Vit,
    architecture,
)
from parity.checks.baselines import SMALL, build, check_baseline, inputs
from parity.pairs.passes import jax_pass, torch_pass
from trunk_jax import baselines
from trunk_jax.baselines import layers as own
from trunk_jax.layers.basic import EVAL, Mode
from trunk_jax.network import exchange
from trunk_jax.network.network import apply, cost, split
from trunk_torch_ref import baselines as torch_baselines
from trunk_torch_ref.measure.costs import cost as torch_cost
from trunk_torch_ref.network.exchange import from_state_dict as torch_from_state_dict

# Parameters of the public models; tensors in their state_dicts; some keys with their shapes.
PUBLIC = {
    "resnet50": (
        25_557_032,
        320,
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.downsample.1.running_var": (256,),
            "layer4.2.bn3.num_batches_tracked": (),
            "layer3.0.conv2.weight": (256, 256, 3, 3),
            "fc.bias": (1000,),
        },
    ),
    "vgg16": (
        138_357_544,
        32,
        {
            "features.28.weight": (512, 512, 3, 3),
            "classifier.0.weight": (4096, 25088),
            "classifier.6.weight": (1000, 4096),
        },
    ),
    "convnext_base": (
        88_591_464,
        344,
        {
            "features.0.1.weight": (128,),
            "features.5.26.layer_scale": (512, 1, 1),
            "features.5.26.block.0.weight": (512, 1, 7, 7),
            "features.6.1.weight": (1024, 512, 2, 2),
            "features.7.2.block.3.weight": (4096, 1024),
            "classifier.0.bias": (1024,),
            "classifier.2.weight": (1000, 1024),
        },
    ),
    "mobilenet_v2": (
        3_504_872,
        314,
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.1.running_mean": (32,),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.17.conv.1.0.weight": (960, 1, 3, 3),
            "features.17.conv.3.bias": (320,),
            "features.18.1.weight": (1280,),
            "classifier.1.weight": (1000, 1280),
        },
    ),
    "vit_b_16": (
        86_567_656,
        152,
        {
            "class_token": (1, 1, 768),
            "conv_proj.weight": (768, 3, 16, 16),
            "encoder.pos_embedding": (1, 197, 768),
            "encoder.layers.encoder_layer_11.self_attention.in_proj_weight": (2304, 768),
            "encoder.layers.encoder_layer_11.self_attention.out_proj.bias": (768,),
            "encoder.layers.encoder_layer_0.mlp.3.weight": (768, 3072),
            "encoder.ln.weight": (768,),
            "heads.head.weight": (1000, 768),
        },
    ),
    # timm counts 86,582,016: it keeps no mask token (768 numbers) and adds the class token's
    # position (768) to the token itself.
    "dinov2_vitb14_reg": (
        86_582_016 + 2 * 768,
        176,
        {
            "cls_token": (1, 1, 768),
            "pos_embed": (1, 1370, 768),
            "register_tokens": (1, 4, 768),
            "mask_token": (1, 768),
            "patch_embed.proj.weight": (768, 3, 14, 14),
            "blocks.11.ls2.gamma": (768,),
            "blocks.0.attn.qkv.weight": (2304, 768),
            "blocks.0.mlp.fc1.bias": (3072,),
            "norm.weight": (768,),
        },
    ),
    "deit_tiny": (
        5_717_416,
        152,
        {
            "pos_embed": (1, 197, 192),
            "blocks.11.attn.proj.weight": (192, 192),
            "blocks.0.norm2.bias": (192,),
            "head.weight": (1000, 192),
        },
    ),
}


def public(name):
    spec = ARCHITECTURES[name]
    return Dinov2(head=False) if name == "dinov2_vitb14_reg" else spec


@pytest.mark.parametrize("name", PUBLIC)
def test_both_frameworks_have_the_public_models_tensors(name):
    parameters, tensors, some = PUBLIC[name]
    network = jax.eval_shape(lambda: split(baselines.build(public(name), size=224)))
    ours = exchange.shapes(network)
    with torch.device("meta"):
        module = torch_baselines.build(public(name), size=224)
    theirs = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert ours == theirs
    assert len(ours) == tensors
    assert some.items() <= ours.items()
    assert cost(network, (32, 32, 3))["parameters"] == parameters
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    # torchvision's and timm's own tables: 4.09, 15.47, 15.36, 0.30, 17.56 and 1.26 G; the
    # release's tables leave out attention's own products
    [
        ("resnet50", 4089),
        ("vgg16", 15470),
        ("convnext_base", 15355),
        ("mobilenet_v2", 301),
        ("vit_b_16", 17564),
        ("deit_tiny", 1254),
    ],
)
def test_multiply_adds_at_224(name, millions):
    network = jax.eval_shape(lambda: split(baselines.build(public(name), size=224)))
    assert round(cost(network, (32, 32, 3))["multiply_adds"] / 1e6) == millions


def test_the_released_vgg_before_pruning_has_the_published_size():
    """14.7 M parameters and 399 M multiply-adds (1 M of which are batch norm's)."""
    spec = architecture("vgg16_bn_small")
    network = jax.eval_shape(lambda: split(baselines.build(spec, 3, 10)))
    found = cost(network, (32, 32, 3))
    assert round(found["parameters"] / 1e6, 1) == 14.7
    assert 397e6 < found["multiply_adds"] < 400e6


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.model)
def test_both_frameworks_count_alike(case):
    both = build(case, 0)
    shape = (case.image, case.image, case.channels)
    ours = cost(both.jax, shape)
    theirs = torch_cost(both.torch, (case.channels, case.image, case.image))
    assert ours == theirs


def test_an_unknown_model_is_one_line():
    with pytest.raises(UserError, match="no model 'resnet51'; the models: resnet50, vgg16"):
        architecture("resnet51")


def small(model):
    return next(case for case in SMALL if case.model == model)


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=pytest.mark.slow) for model in ("vit_b_16", "dinov2_vitb14_reg")],
)
def test_both_frameworks_compute_the_same(model):
    """A vgg16's quick turn is in tests/test_parity_processes.py.

    The other models' turn is `python -m parity.check --baselines`.
    """
    checks = check_baseline(small(model), seed=1)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    whats = {check.what for check in checks}
    assert "gradients of all parameters and the input" in whats
    if model == "vit_b_16":
        block = "encoder.layers.encoder_layer_1"
        assert f"{block}.self_attention: gradient of in_proj_weight" in whats
        assert f"{block}.mlp.1: gradient of input" in whats


@pytest.mark.slow  # tests/test_parity_processes.py trains a smaller model in both
def test_both_frameworks_train_convnext_alike():
    """In float64, stochastic depth's masks shared."""
    case = small("convnext_base")
    both, (x, targets) = build(case, 2), inputs(case, 2)
    theirs, masks = torch_pass(both, "float64", x, targets, 2, case.loss)
    assert masks.keys() == {f"features.{k}.stochastic_depth" for k in ("1.0", "1.1", "3.0")}
    assert not all(mask.all() for mask in masks.values()), "nothing was dropped"
    ours = jax_pass(both, "float64", x, targets, masks, case.loss)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        scale = np.abs(value).max() or 1.0
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-10 * scale, err_msg=key)


# --- layers that others have not


def test_resizing_is_pytorchs():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3))
    with jax.enable_x64(True):
        ours = own.Resize(16)(jnp.asarray(x))
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), (16, 16), mode="bilinear"
    )
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-13)


@pytest.mark.parametrize(("length", "size"), [(37, 16), (7, 4), (4, 9), (5, 5)])
def test_bicubic_weights_are_pytorchs(length, size):
    eye = torch.eye(length, dtype=torch.float64).reshape(1, length, length, 1).repeat(1, 1, 1, 2)
    resized = torch.nn.functional.interpolate(eye, (size, 2), mode="bicubic", antialias=True)
    theirs = resized[0, :, :, 0].T
    np.testing.assert_allclose(own.bicubic(length, size), theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize(("height", "cells"), [(7, 3), (1, 7), (6, 6), (9, 2)])
def test_adaptive_pooling_is_pytorchs(height, cells):
    x = np.random.default_rng(0).normal(size=(2, height, height + 1, 3))
    with jax.enable_x64(True):
        ours = own.AdaptiveAvgPool(cells)(jnp.asarray(x))
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), cells)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-13)


def test_stochastic_depth_drops_whole_images():
    layer = own.StochasticDepth(0.25)
    x = jnp.ones((400, 2, 3, 4))
    y = np.asarray(layer(x, Mode(train=True, key=jax.random.key(0))))
    whole = y.reshape(400, -1)
    assert np.array_equal(whole.min(1), whole.max(1))
    assert set(np.unique(whole)) == {0.0, np.float32(1 / 0.75)}
    assert abs((whole[:, 0] == 0).mean() - 0.25) < 0.07  # three deviations
    assert np.array_equal(layer(x, EVAL), x)


def test_initial_weights_have_the_documented_spread():
    module = baselines.build(
        MobileNetV2(rows=((1, 16, 1, 1),)), outputs=50, rng=np.random.default_rng(0)
    )
    first = np.asarray(module.features[0][0].kernel[...])
    assert abs(first.std() / np.sqrt(2 / (9 * 32)) - 1) < 0.1
    last = np.asarray(module.classifier[1].kernel[...])
    assert abs(last.std() / 0.01 - 1) < 0.02
    assert not np.asarray(module.classifier[1].bias[...]).any()


# --- somebody else's implementations, with the same weights

transformers = pytest.importorskip("transformers")

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
BATCH_NORM = [(r"\.convolution\.", ".0."), (r"\.normalization\.", ".1.")]


def _resnet():
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64],
        depths=[2, 1],
        layer_type="bottleneck",
        num_labels=7,
    )
    rules = [
        (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
        (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
        (r"^resnet\.encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
        (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
        (r"\.shortcut\.convolution", ".downsample.0"),
        (r"\.shortcut\.normalization", ".downsample.1"),
        (r"^classifier\.1", "fc"),
    ]
    model = transformers.ResNetForImageClassification(config)
    return ResNet(blocks=(2, 1), width=8), 64, model, rules


def _convnext():
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 12], depths=[2, 1], num_stages=2, num_labels=7
    )
    rules = [
        (r"^convnext\.embeddings\.patch_embeddings", "features.0.0"),
        (r"^convnext\.embeddings\.layernorm", "features.0.1"),
        (
            r"^convnext\.encoder\.stages\.(\d)\.downsampling_layer",
            lambda m: f"features.{2 * int(m[1])}",
        ),
        (r"^convnext\.encoder\.stages\.(\d)\.layers", lambda m: f"features.{2 * int(m[1]) + 1}"),
        (r"layer_scale_parameter", "layer_scale"),
        (r"dwconv", "block.0"),
        (r"(\.\d+)\.layernorm", r"\1.block.2"),
        (r"pwconv1", "block.3"),
        (r"pwconv2", "block.5"),
        (r"^convnext\.layernorm", "classifier.0"),
        (r"^classifier\.(weight|bias)", r"classifier.2.\1"),
    ]
    model = transformers.ConvNextForImageClassification(config)
    # their last layer norm has another epsilon than their others and than torchvision's
    model.convnext.layernorm.eps = 1e-6
    return ConvNext(depths=(2, 1), widths=(8, 12), drop=0.0), 32, model, rules


def _mobilenet():
    config = transformers.MobileNetV2Config(num_labels=7, tf_padding=False, layer_norm_eps=1e-5)
    rules = [
        (r"^mobilenet_v2\.conv_stem\.first_conv", "features.0"),
        (r"^mobilenet_v2\.conv_stem\.conv_3x3", "features.1.conv.0"),
        (r"^mobilenet_v2\.conv_stem\.reduce_1x1\.convolution", "features.1.conv.1"),
        (r"^mobilenet_v2\.conv_stem\.reduce_1x1\.normalization", "features.1.conv.2"),
        (r"^mobilenet_v2\.layer\.(\d+)", lambda m: f"features.{int(m[1]) + 2}.conv"),
        (r"expand_1x1", "0"),
        (r"conv_3x3", "1"),
        (r"reduce_1x1\.convolution", "2"),
        (r"reduce_1x1\.normalization", "3"),
        (r"^mobilenet_v2\.conv_1x1", "features.18"),
        *BATCH_NORM,
        (r"^classifier", "classifier.1"),
    ]
    return MobileNetV2(), 32, transformers.MobileNetV2ForImageClassification(config), rules


TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
OURS = {"width": 24, "depth": 2, "heads": 3, "patch": 4}


def _vit():
    config = transformers.ViTConfig(
        intermediate_size=40, image_size=16, num_labels=7, layer_norm_eps=1e-6, **TINY
    )
    rules = [
        (r"^vit\.embeddings\.cls_token", "class_token"),
        (r"^vit\.embeddings\.position_embeddings", "encoder.pos_embedding"),
        (r"^vit\.embeddings\.patch_embeddings\.projection", "conv_proj"),
        (r"^vit\.layers\.", "encoder.layers.encoder_layer_"),
        (r"layernorm_before", "ln_1"),
        (r"layernorm_after", "ln_2"),
        (r"attention\.qkv\.(weight|bias)", r"self_attention.in_proj_\1"),
        (r"attention\.o_proj", "self_attention.out_proj"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"^vit\.layernorm", "encoder.ln"),
        (r"^classifier", "heads.head"),
    ]
    model = transformers.ViTForImageClassification(config)
    return Vit(hidden=40, image=16, **OURS), 16, model, rules


BLOCKS = [
    (r"^(\w+\.)?embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(\w+\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"^(\w+\.)?embeddings\.", ""),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.qkv", "attn.qkv"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
]


def _deit():
    """timm's model has no distillation token; HF's plain ViT is the same network then."""
    config = transformers.ViTConfig(
        intermediate_size=40, image_size=16, num_labels=7, layer_norm_eps=1e-6, **TINY
    )
    rules = [
        *BLOCKS,
        (r"^vit\.layers", "blocks"),
        (r"^vit\.layernorm", "norm"),
        (r"^classifier", "head"),
    ]
    model = transformers.ViTForImageClassification(config)
    return Deit(hidden=40, image=16, **OURS), 16, model, rules


def _dinov2(side):
    config = transformers.Dinov2WithRegistersConfig(
        mlp_ratio=2, image_size=28, num_register_tokens=4, **TINY
    )
    rules = [*BLOCKS, (r"^encoder\.layer", "blocks"), (r"^layernorm", "norm")]
    model = transformers.Dinov2WithRegistersModel(config)
    return Dinov2(hidden=48, image=28, registers=4, head=False, **OURS), side, model, rules


def random_weights(model):
    """All parameters and statistics random, so that none of them can be swapped unseen."""
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if value.dtype == torch.float64:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            scale = 0.3 if value.ndim < 2 else 1 / value[0].numel() ** 0.5
            positive = value.ndim == 1 and ("var" in key or "weight" in key or "lambda" in key)
            value.copy_(0.5 + noise.abs() if positive else scale * noise)


def renamed(weights, rules):
    """HF's state_dict under our names: separate q, k, v packed, the rules applied in order."""
    result = {}
    for key, value in weights.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            parts = [weights[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            key, value = key.replace("q_proj", "qkv"), torch.cat(parts)
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value.numpy().copy()
        if key.endswith("layer_scale"):
            result[key] = result[key][:, None, None]
    return result


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        pytest.param(_resnet, 1e-11, id="resnet"),
        pytest.param(_convnext, 1e-11, id="convnext"),
        pytest.param(_mobilenet, 1e-11, id="mobilenet_v2", marks=pytest.mark.slow),
        pytest.param(_vit, 1e-11, id="vit"),
        pytest.param(_deit, 1e-11, id="deit"),
        pytest.param(partial(_dinov2, 28), 1e-11, id="dinov2"),
        # HF interpolates positions in float32
        pytest.param(partial(_dinov2, 16), 1e-5, id="dinov2 interpolated"),
    ],
)
def test_transformers_computes_the_same(make, tolerance):
    """Scores, and the input's gradient, in eval mode and float64.

    Tolerance: of the largest value; rounding of sums of a thousand terms through 20 layers.
    """
    torch.manual_seed(0)
    spec, side, theirs, rules = make()
    theirs = theirs.double().eval()
    random_weights(theirs)
    weights = renamed(theirs.state_dict(), rules)
    x = np.random.default_rng(0).normal(size=(2, 3, side, side))
    image = torch.tensor(x, requires_grad=True)
    output = theirs(image)
    expected = output.logits if hasattr(output, "logits") else output.pooler_output
    toward = np.random.default_rng(1).normal(size=expected.shape)
    expected.backward(torch.tensor(toward))

    outputs = expected.shape[1]
    module = torch_baselines.build(spec, 3, outputs).double().eval()
    torch_from_state_dict(module, weights)
    with torch.no_grad():
        torch_scores = module(torch.tensor(x))[1].numpy()
    with jax.enable_x64(True):
        network = exchange.from_state_dict(split(baselines.build(spec, 3, outputs)), weights)

        def value(x):
            scores = apply(network, x)[0][1]
            return (scores * toward).sum(), scores

        gradient = jax.jit(jax.grad(value, has_aux=True))
        dx, scores = gradient(jnp.asarray(x.transpose(0, 2, 3, 1)))

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())

    close(torch_scores, expected.detach().numpy())
    close(np.asarray(scores), expected.detach().numpy())
    close(np.asarray(dx).transpose(0, 3, 1, 2), image.grad.numpy())


def test_a_wider_vgg_is_not_taken_for_a_narrow_one():
    narrow = split(baselines.build(Vgg(stages=((4,),), pools=1, pool=1, hidden=()), 3, 2))
    wide = split(baselines.build(Vgg(stages=((5,),), pools=1, pool=1, hidden=()), 3, 2))
    with pytest.raises(UserError, match=r"features.0.weight is 5x3x3x3, not 4x3x3x3"):
        exchange.from_state_dict(narrow, exchange.to_state_dict(wide))
