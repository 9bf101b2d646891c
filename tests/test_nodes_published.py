"""Every node's shapes, counts, names and shortcuts (docs/trunk.md, section 2)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.base.errors import UserError
from trunk_jax import nodes
from trunk_jax.layers.basic import EVAL, Conv, Linear, record
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import apply, cost, feature_shape, merge, split, warmed

PADDED = ("pointwise_padding",)


def build(dataset, backbone, name, shape, outputs, faults=(), seed=0):
    rng = np.random.default_rng(seed)
    return split(nodes.build(dataset, backbone, name, shape, outputs, faults=faults, rng=rng))


@pytest.mark.parametrize(
    ("dataset", "backbone", "name", "shape", "outputs", "parameters", "millions", "features"),
    [
        ("svhn", "mobilenet", "root", (32, 32, 3), 6, 42_230, 39.8, (40, 40, 32)),
        ("svhn", "mobilenet", "sg1", (40, 40, 32), 4, 54_244, 118.3, (52, 52, 48)),
        ("cifar10", "vgg", "root", (32, 32, 3), 5, 161_413, 80.7, (16, 16, 64)),
        ("cifar10", "vgg", "sg5", (16, 16, 64), 3, 292_995, 40.1, (8, 8, 128)),
    ],
)
def test_published_nodes_have_the_published_costs(
    dataset, backbone, name, shape, outputs, parameters, millions, features
):
    network = build(dataset, backbone, name, shape, outputs, PADDED)
    found = cost(network, shape)
    assert found["parameters"] == parameters
    assert round(found["multiply_adds"] / 1e6, 1) == millions
    assert feature_shape(network, shape) == features


def residuals(channels, rows, outputs, stem=None):
    """Parameters of a mobilenet node, block by block, as the table of section 2 states them."""
    total = 0
    if stem is not None:  # 3x3 with bias, batch norm's two
        total += stem * 9 * 24 + 24 + 2 * 24
    for out, times in rows:
        wide = times * channels
        total += channels * wide + 2 * wide + 9 * wide + 2 * wide + wide * out + 2 * out
        channels = out
    return total + channels * outputs + outputs


def plain(channels, widths, pixels, outputs):
    """Parameters of a vgg node whose last map has so many pixels."""
    total = 0
    for out in widths:
        total += 9 * channels * out + out + 2 * out
        channels = out
    return total + channels * pixels * outputs + outputs


ROOT = ((24, 2), (24, 4), (24, 4), (32, 4), (32, 4), (32, 4))
CHILD = ((48, 4), (48, 4), (48, 4))
DEEP = (*CHILD, (96, 8), (192, 8), (192, 4))
NODES = {
    # name: (input, outputs, features without and with pointwise padding, parameters)
    "svhn mobilenet root": ((32, 32, 3), 6, (16, 16, 32), (40, 40, 32), residuals(24, ROOT, 6, 3)),
    "svhn mobilenet sg1": ((40, 40, 32), 4, (40, 40, 48), (52, 52, 48), residuals(32, CHILD, 4)),
    "emnist mobilenet root": (
        (28, 28, 1),
        20,
        (14, 14, 32),
        (38, 38, 32),
        residuals(24, ROOT, 20, 1),
    ),
    "emnist mobilenet sg22": ((38, 38, 32), 3, (38, 38, 48), (50, 50, 48), residuals(32, CHILD, 3)),
    "cifar10 mobilenet root": (
        (32, 32, 3),
        5,
        (16, 16, 32),
        (40, 40, 32),
        residuals(24, ROOT, 5, 3),
    ),
    # 40 -> 52, then stride 2: 54 -> 27 -> 29, again 31 -> 16 -> 18, and 4 more
    "cifar10 mobilenet sg1": (
        (40, 40, 32),
        2,
        (10, 10, 192),
        (22, 22, 192),
        residuals(32, DEEP, 2),
    ),
    "digits mobilenet root": ((8, 8, 1), 10, (4, 4, 24), (16, 16, 24), None),
    "digits mobilenet sg1": (
        (4, 4, 24),
        3,
        (4, 4, 32),
        (12, 12, 32),
        residuals(24, ((32, 4), (32, 4)), 3),
    ),
    "cifar10 vgg root": (
        (32, 32, 3),
        5,
        (16, 16, 64),
        None,
        plain(3, (16, 32, 32, 32, 64, 64), 256, 5),
    ),
    "cifar10 vgg sg1": ((16, 16, 64), 2, (16, 16, 32), None, plain(64, (64, 32), 256, 2)),
    "cifar10 vgg sg3": ((16, 16, 64), 2, (16, 16, 32), None, plain(64, (64, 32), 256, 2)),
    "cifar10 vgg sg5": (
        (16, 16, 64),
        3,
        (8, 8, 128),
        None,
        plain(64, (32, 32, 64, 128, 128), 64, 3),
    ),
    "cifar10 vgg sg7": (
        (16, 16, 64),
        2,
        (4, 4, 128),
        None,
        plain(64, (16, 32, 32, 64, 64, 128), 16, 2),
    ),
    "emnist vgg root": ((28, 28, 1), 20, (14, 14, 16), None, plain(1, (16, 16), 196, 20)),
    "emnist vgg sg1": ((14, 14, 16), 3, (7, 7, 48), None, plain(16, (32, 48), 49, 3)),
    "svhn vgg root": ((32, 32, 3), 6, (16, 16, 32), None, plain(3, (16, 32, 32), 256, 6)),
    "svhn vgg sg1": ((16, 16, 32), 4, (8, 8, 64), None, plain(32, (32, 64), 64, 4)),
    "digits vgg root": ((8, 8, 1), 10, (4, 4, 32), None, plain(1, (16, 32), 16, 10)),
    "digits vgg sg1": ((4, 4, 32), 3, (4, 4, 64), None, plain(32, (32, 64), 16, 3)),
}


@pytest.mark.parametrize("which", NODES)
def test_shapes_and_parameter_counts(which):
    shape, outputs, features, padded, parameters = NODES[which]
    network = build(*which.split(), shape, outputs)
    assert feature_shape(network, shape) == features
    grown = build(*which.split(), shape, outputs, PADDED)
    assert feature_shape(grown, shape) == (padded or features)
    image = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    scores = jax.eval_shape(lambda network, x: apply(network, x)[0][1], network, image)
    assert scores.shape == (3, outputs)
    if parameters:
        assert cost(network, shape)["parameters"] == parameters
        assert cost(grown, shape)["parameters"] == parameters


def test_multiply_adds_are_those_of_each_layer():
    """By hand, for the vgg root of digits: 8x8 maps, 3x3 kernels, then 4x4 into a Linear."""
    network = build("digits", "vgg", "root", (8, 8, 1), 10)
    by_hand = 64 * 9 * 1 * 16 + 64 * 9 * 16 * 32 + 16 * 32 * 10
    assert cost(network, (8, 8, 1))["multiply_adds"] == by_hand


def test_svhn_child_has_the_published_names_in_the_published_shapes():
    found = {
        key: value.shape
        for key, value in to_state_dict(build("svhn", "mobilenet", "sg1", (40, 40, 32), 4)).items()
    }
    expected = {"classifier.0.weight": (4, 48, 1, 1), "classifier.0.bias": (4,)}
    for index, (inputs, wide) in enumerate(((32, 128), (48, 192), (48, 192))):
        for part, word, shape in (
            (0, "conv_1x1", (wide, inputs, 1, 1)),
            (1, "depthwise_convolution", (wide, 1, 3, 3)),
            (2, "conv_1x1", (48, wide, 1, 1)),
        ):
            stem = f"features.{index}.inverted_residual.{part}.{word}_block"
            expected[f"{stem}.0.weight"] = shape
            for name in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{stem}.1.{name}"] = shape[:1]
            expected[f"{stem}.1.num_batches_tracked"] = ()
    assert found == expected


def test_names_of_the_roots():
    root = to_state_dict(build("svhn", "mobilenet", "root", (32, 32, 3), 6))
    indices = {key.split(".")[1] for key in root if key.startswith("features")}
    assert indices == {"0", "1", "3", "4", "5", "6", "7", "8"}
    assert root["features.0.weight"].shape == (24, 3, 3, 3)
    assert root["features.1.num_batches_tracked"].dtype == np.int64
    vgg = to_state_dict(build("cifar10", "vgg", "root", (32, 32, 3), 5))
    convolutions = {int(k.split(".")[1]) for k, v in vgg.items() if v.ndim == 4}
    assert convolutions == {0, 3, 6, 9, 12, 15}  # conv, batch norm, ReLU each
    assert vgg["classifier.0.weight"].shape == (5, 64 * 16 * 16)


@pytest.mark.parametrize("name", ["root", "sg1", "sg3", "sg5", "sg7"])
def test_published_weights_load_as_they_are(name, shared):
    torch = pytest.importorskip("torch")
    folder = shared / "published" / "cifar10-vgg" / "model_weights"
    (channels, height, width), outputs = json.loads((folder / "inputs_to_models.json").read_text())[
        name
    ]
    file = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
    weights = {key: value.numpy() for key, value in file["model_state_dict"].items()}
    network = build("cifar10", "vgg", name, (height, width, channels), outputs)
    again = to_state_dict(from_state_dict(network, weights))
    assert again.keys() == weights.keys()
    for key, value in weights.items():
        assert again[key].dtype == value.dtype
        np.testing.assert_array_equal(again[key], value)


def test_weights_that_do_not_fit_are_all_listed():
    network = build("digits", "vgg", "root", (8, 8, 1), 10)
    weights = to_state_dict(network)
    weights["features.0.weight"] = weights["features.0.weight"][:, :, :2]
    weights["extra"] = weights.pop("classifier.0.bias")
    with pytest.raises(UserError) as caught:
        from_state_dict(network, weights)
    for part in (
        "missing classifier.0.bias",
        "unexpected extra",
        "features.0.weight is 16x1x2x3, not 16x1x3x3",
    ):
        assert part in str(caught.value)


def test_the_layouts_are_pytorchs():
    """A convolution and a Linear computed from the state_dict alone, in PyTorch's layout."""
    network = build("digits", "vgg", "root", (8, 8, 1), 10)
    weights = to_state_dict(network)
    x = np.random.default_rng(0).uniform(size=(1, 8, 8, 1)).astype(np.float32)
    with record() as tape:
        merge(network)(jnp.asarray(x), EVAL)
    _, given, y = next(step for step in tape if isinstance(step[0], Conv))
    patch = np.pad(np.asarray(given)[0, :, :, 0], 1)[2:5, 4:7]  # around row 2, column 4
    expected = (weights["features.0.weight"][:, 0] * patch).sum((1, 2)) + weights["features.0.bias"]
    np.testing.assert_allclose(np.asarray(y)[0, 2, 4], expected, rtol=1e-5, atol=1e-6)  # float32
    _, given, y = next(step for step in tape if isinstance(step[0], Linear))
    expected = weights["classifier.0.weight"] @ np.asarray(given)[0] + weights["classifier.0.bias"]
    np.testing.assert_allclose(np.asarray(y)[0], expected, rtol=1e-4, atol=1e-5)  # 512 terms


def test_shortcuts_are_taken_only_without_pointwise_padding():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 24)).astype(np.float32))
    for faults in ((), PADDED):
        node = merge(build("svhn", "mobilenet", "root", (32, 32, 3), 6, faults))
        # block 4 keeps its 24 channels, block 6 makes 32 of them
        for index, taken in ((4, not faults), (6, False)):
            block = node.features[index]
            inner = block.inverted_residual(x, EVAL)
            added = np.asarray(block(x, EVAL) - inner)
            if taken:  # two roundings of values up to 7
                np.testing.assert_allclose(added, x, rtol=0, atol=1e-6)
            else:
                assert not added.any()


def test_a_warm_start_is_one_update_of_the_features_statistics():
    network = build("digits", "mobilenet", "root", (8, 8, 1), 10)
    warm = to_state_dict(warmed(network, jnp.ones((8, 8, 1))))
    cold = to_state_dict(network)
    assert int(cold["features.1.num_batches_tracked"]) == 0
    counts = [int(v) for k, v in warm.items() if k.endswith("num_batches_tracked")]
    assert counts == [1] * 10
    with record() as tape:
        merge(network).features(jnp.ones((1, 8, 8, 1)), EVAL)
    stem = np.asarray(tape[0][2])
    # momentum 0.1: nine tenths of the initial 0 and 1; 1e-6: float32 means of 16 values
    mean, var = stem.mean((0, 1, 2)), stem.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(warm["features.1.running_mean"], 0.1 * mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(warm["features.1.running_var"], 0.9 + 0.1 * var, rtol=1e-6)
    for key, value in cold.items():
        if "running" not in key and "tracked" not in key:
            np.testing.assert_array_equal(value, warm[key])


def test_scores_are_log_probabilities_for_mobilenet_and_raw_for_vgg():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32))
    (_, scores), _ = apply(build("digits", "mobilenet", "root", (8, 8, 1), 10), x)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)  # ten terms of float32
    (_, scores), _ = apply(build("digits", "vgg", "root", (8, 8, 1), 10), x)
    assert np.abs(np.exp(scores).sum(1) - 1).max() > 0.1


def test_weights_depend_on_the_seed_alone():
    one, same, other = (
        to_state_dict(build("digits", "vgg", "sg1", (4, 4, 32), 3, seed=s)) for s in (1, 1, 2)
    )
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert not np.array_equal(one["features.0.weight"], other["features.0.weight"])
