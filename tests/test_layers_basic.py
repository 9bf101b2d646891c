"""Layers against naive loops, hand-computed numbers and float64, each with PyTorch's meaning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.stats import kstest, uniform

from trunk_jax.layers.basic import (
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    LogSoftmax,
    MaxPool,
    Mode,
    Relu,
    Relu6,
)
from trunk_jax.layers.conv import conv
from trunk_jax.layers.norm import normalise
from trunk_jax.layers.pool import max_pool
from trunk_jax.network.network import apply, merge, split

TRAIN = Mode(train=True)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


# --- convolution


def windows(x, kernel, stride, padding):
    """(row, column, slice of the padded image) of each output pixel."""
    kh, kw = kernel.shape[:2]
    for i in range((x.shape[1] + 2 * padding - kh) // stride + 1):
        for j in range((x.shape[2] + 2 * padding - kw) // stride + 1):
            top, left = i * stride, j * stride
            yield i, j, np.s_[:, top : top + kh, left : left + kw]


def padded(x, by):
    return np.pad(x, ((0, 0), (by, by), (by, by), (0, 0)))


def naive(x, kernel, stride, padding, groups):
    """Cross-correlation, a sum of products for each output pixel and group."""
    places = list(windows(x, kernel, stride, padding))
    out = kernel.shape[3]
    y = np.zeros((len(x), places[-1][0] + 1, places[-1][1] + 1, out))
    x = padded(x, padding)
    for i, j, at in places:
        for o in range(out):
            group = o // (out // groups)
            depth = kernel.shape[2]
            seen = x[at][..., group * depth : (group + 1) * depth]
            y[:, i, j, o] = (seen * kernel[..., o]).sum((1, 2, 3))
    return y


def naive_gradients(x, kernel, dy, stride, padding, groups):
    """Each product of the loop above sends its share back."""
    places = windows(x, kernel, stride, padding)
    dx, dkernel = np.zeros_like(padded(x, padding)), np.zeros_like(kernel)
    x = padded(x, padding)
    depth, out = kernel.shape[2:]
    for i, j, at in places:
        for o in range(out):
            group = o // (out // groups)
            channels = slice(group * depth, (group + 1) * depth)
            gradient = dy[:, i, j, o][:, None, None, None]
            dx[at][..., channels] += gradient * kernel[..., o]
            dkernel[..., o] += (gradient * x[at][..., channels]).sum(0)
    height, width = dx.shape[1] - padding, dx.shape[2] - padding
    return dx[:, padding:height, padding:width], dkernel


CONVOLUTIONS = {
    # name: kernel, in, out, stride, padding, groups, height, width
    "dense": (3, 3, 4, 1, 1, 1, 6, 7),
    "dense, no padding": (3, 2, 3, 1, 0, 1, 5, 5),
    "dense, wide padding": (3, 2, 3, 1, 3, 1, 4, 5),
    "dense, stride 2, even": (3, 3, 4, 2, 1, 1, 8, 6),
    "dense, stride 2, odd": (3, 3, 4, 2, 1, 1, 7, 9),
    "dense, stride 2, no padding, unreached": (3, 2, 2, 2, 0, 1, 6, 8),
    "dense, stride 3": (5, 2, 3, 3, 2, 1, 10, 11),
    "dense, even kernel": (2, 2, 3, 2, 0, 1, 7, 6),
    "depthwise": (3, 4, 4, 1, 1, 4, 6, 7),
    "depthwise, no padding": (3, 3, 3, 1, 0, 3, 5, 6),
    "depthwise, stride 2, even": (3, 4, 4, 2, 1, 4, 8, 6),
    "depthwise, stride 2, odd": (3, 4, 4, 2, 1, 4, 7, 9),
    "one channel": (3, 1, 1, 2, 1, 1, 6, 5),
    "one to many": (3, 1, 5, 2, 1, 1, 8, 7),
    "1x1": (1, 3, 5, 1, 0, 1, 4, 5),
    "1x1, padding": (1, 3, 5, 1, 1, 1, 4, 5),
    "1x1, stride 2": (1, 3, 5, 2, 0, 1, 5, 6),
    "1x1, stride 2, padding": (1, 3, 2, 2, 1, 1, 5, 6),
    "two groups": (3, 4, 6, 1, 1, 2, 5, 6),
    "two outputs a channel": (3, 3, 6, 2, 1, 3, 6, 5),
}


@pytest.fixture(params=CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def case(request, x64):
    k, inputs, outputs, stride, padding, groups, height, width = request.param
    x = rng(1).normal(size=(3, height, width, inputs))
    kernel = rng(2).normal(size=(k, k, inputs // groups, outputs))
    how = {"stride": stride, "padding": padding, "groups": groups}
    dy = rng(3).normal(size=naive(x, kernel, **how).shape)
    return x, kernel, dy, how


# float64 sums of at most 250 products of size 1: the roundings (1e-16 each) stay below 1e-13.
CLOSE = {"rtol": 0, "atol": 1e-13}


def general(x, kernel, stride, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_convolution_and_its_gradients_are_the_loops(case):
    """So are those of XLA's general form, which all devices but the CPU run."""
    x, kernel, dy, how = case
    expected = naive(x, kernel, **how), *naive_gradients(x, kernel, dy, **how)
    for function in (conv, general):

        @jax.jit
        def run(x, kernel, dy, function=function):
            y, back = jax.vjp(lambda x, kernel: function(x, kernel, **how), x, kernel)
            return y, *back(dy)

        for found, wanted in zip(run(x, kernel, dy), expected, strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_a_few_images_at_a_time_is_the_whole(stride, x64, monkeypatch):
    """Five images of 1,600 pixels: two pairs and one left over."""
    monkeypatch.setattr("trunk_jax.layers.conv.WINDOWS_IN_CACHE", 1)
    x = jnp.asarray(rng(1).normal(size=(5, 40, 40, 32)))
    kernel = jnp.asarray(rng(2).normal(size=(3, 3, 32, 4)))
    outcomes = []
    for function in (conv, partial(general, groups=1)):
        y, back = jax.vjp(partial(function, stride=stride, padding=1), x, kernel)
        outcomes.append((y, *back(jnp.cos(y))))
    for found, wanted in zip(*outcomes, strict=True):
        # float64 sums of at most 8,000 products of size 1
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_convolution_in_float32_loses_no_more_than_float32_must(groups):
    x = rng().normal(size=(16, 20, 20, 8)).astype(np.float32)
    kernel = rng(1).normal(size=(3, 3, 8 // groups, 8)).astype(np.float32)

    @jax.jit
    def run(x, kernel, dy):
        y, back = jax.vjp(lambda x, k: conv(x, k, padding=1, groups=groups), x, kernel)
        return y, *back(dy)

    dy = rng(2).normal(size=x.shape).astype(np.float32)
    found = run(x, kernel, dy)
    with jax.enable_x64(True):
        truth = run(*(array.astype(np.float64) for array in (x, kernel, dy)))
    for single, double, terms in zip(
        found, truth, (72 // groups, 72 // groups, 16 * 400), strict=True
    ):
        assert (single.dtype, double.dtype) == (np.float32, np.float64)
        # a sum of n products wanders by about sqrt(n) roundings of 6e-8 of its size
        error = np.abs(single - np.asarray(double)).max() / np.abs(double).max()
        assert error < 6e-8 * np.sqrt(terms)


def test_padding_is_symmetric_and_not_same():
    """At stride 2, "SAME" pads an even image on the right only: another image, half a pixel off."""
    layer = Conv(1, 1, 3, stride=2, padding=1, bias=False, rng=rng())
    layer.kernel[...] = jnp.ones((3, 3, 1, 1))
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    found = layer(x)[0, :, :, 0]
    # by hand: windows start at row and column -1 and 1, e.g. 0 + 1 + 4 + 5
    np.testing.assert_array_equal(found, [[10, 24], [51, 90]])
    same = lax.conv_general_dilated(
        x, layer.kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0, :, :, 0]
    assert same.shape == found.shape
    assert np.abs(same - found).max() > 1


def test_bias_is_added_once():
    layer = Conv(2, 3, 1, padding=1, rng=rng())
    y = layer(jnp.zeros((1, 2, 2, 2)))
    np.testing.assert_array_equal(y, np.broadcast_to(layer.bias[...], (1, 4, 4, 3)))


# --- batch norm


def double(layer):
    """The layer with its arrays in float64."""
    return merge(
        jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, split(layer))
    )


def test_batch_norm_by_hand(x64):
    layer = double(BatchNorm(1))
    layer.scale[...], layer.bias[...] = jnp.array([2.0]), jnp.array([5.0])
    x = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(2, 1, 2, 1)
    y = layer(x, TRAIN)
    # mean 3; squares of -2, -1, 0, 3 sum to 14: biased 14/4, unbiased 14/3
    expected = np.array([-2, -1, 0, 3]) / np.sqrt(3.5 + 1e-5) * 2 + 5
    np.testing.assert_allclose(np.ravel(y), expected, rtol=1e-14)
    np.testing.assert_allclose(layer.mean[...], [0.1 * 3], rtol=1e-14)
    np.testing.assert_allclose(layer.var[...], [0.9 + 0.1 * 14 / 3], rtol=1e-14)
    assert int(layer.count[...]) == 1
    layer(x, TRAIN)
    np.testing.assert_allclose(layer.mean[...], [0.9 * 0.3 + 0.3], rtol=1e-14)
    np.testing.assert_allclose(layer.var[...], [0.81 + 1.9 * 0.1 * 14 / 3], rtol=1e-14)
    assert int(layer.count[...]) == 2
    before = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    y = layer(x)
    expected = (np.array([1, 2, 3, 6]) - before[0]) / np.sqrt(before[1] + 1e-5) * 2 + 5
    np.testing.assert_allclose(np.ravel(y), expected, rtol=1e-14)
    np.testing.assert_array_equal(layer.mean[...], before[0])
    assert int(layer.count[...]) == 2


def test_batch_norm_of_a_padded_batch_is_that_of_its_images(x64):
    x = rng().normal(3, 2, size=(5, 4, 3, 6))
    valid = np.array([True, False, True, True, False])
    x[~valid] = 1e6  # would be seen in any statistic that it entered

    def run(x, valid):
        layer = double(BatchNorm(6))
        layer.scale[...] = jnp.asarray(rng(1).normal(size=6))
        y, back, stats = jax.vjp(
            lambda x: apply(split(layer), x, Mode(True, valid)), x, has_aux=True
        )
        return y, back, stats

    y, back, stats = run(jnp.asarray(x), jnp.asarray(valid))
    subset, subset_back, alone = run(jnp.asarray(x[valid]), None)
    np.testing.assert_allclose(y[valid], subset, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(stats["mean"], alone["mean"], rtol=1e-14)
    np.testing.assert_allclose(stats["var"], alone["var"], rtol=1e-14)
    dy = rng(2).normal(size=x.shape) * valid[:, None, None, None]
    np.testing.assert_allclose(
        back(jnp.asarray(dy))[0][valid],
        subset_back(jnp.asarray(dy[valid]))[0],
        rtol=1e-12,
        atol=1e-14,
    )


def test_batch_norm_keeps_float32s_digits_on_large_maps():
    """204,800 values a channel that all lie near 10, where a plain float32 sum loses digits."""
    x = rng().normal(10, 1, size=(128, 40, 40, 3)).astype(np.float32)
    layer = BatchNorm(3)
    network = split(layer)

    @jax.jit
    def run(x):
        layer = merge(network)
        layer(x, TRAIN)
        return layer.mean[...], layer.var[...]

    mean, var = run(x)
    truth = x.astype(np.float64)
    # Image by image, then over images: sqrt(1600) + sqrt(128) roundings of 6e-8, and one each
    # for what is stored. One sum of all would wander by sqrt(204,800) roundings, 3e-5.
    bound = 6e-8 * (40 + 12)
    np.testing.assert_allclose(mean, 0.1 * truth.mean((0, 1, 2)), rtol=bound)
    expected = 0.9 + 0.1 * truth.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(var, expected, rtol=bound)


# --- the rest


def test_relu6_and_relu_at_their_bounds():
    x = jnp.array([-1.0, 0.0, 0.5, 5.5, 6.0, 7.0])
    np.testing.assert_array_equal(Relu6()(x), [0, 0, 0.5, 5.5, 6, 6])
    np.testing.assert_array_equal(Relu()(x), [0, 0, 0.5, 5.5, 6, 7])
    np.testing.assert_array_equal(jax.grad(lambda x: Relu6()(x).sum())(x), [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(jax.grad(lambda x: Relu()(x).sum())(x), [0, 0, 1, 1, 1, 1])


def test_max_pool_gives_a_tie_to_the_first_and_leaves_an_odd_edge_out():
    x = jnp.array([[1.0, 3.0, 9.0], [3.0, 3.0, 9.0], [9.0, 9.0, 9.0]])[None, :, :, None]
    y, back = jax.vjp(MaxPool(), x)
    np.testing.assert_array_equal(y, np.full((1, 1, 1, 1), 3.0))
    (dx,) = back(jnp.full((1, 1, 1, 1), 7.0))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 7, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(y, MaxPool()(x))  # another program when not derived
    zeros = jax.vjp(MaxPool(), jnp.zeros((1, 4, 4, 1)))[1](jnp.ones((1, 2, 2, 1)))[0]
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(zeros[0, :, :, 0], expected)


@pytest.mark.parametrize("channels", [False, True], ids=["Dropout", "Dropout2d"])
def test_dropout(channels):
    layer = Dropout(0.25, channels=channels, stream=3)
    x = jnp.asarray(rng().uniform(1, 2, size=(64, 4, 4, 32)).astype(np.float32))
    y = np.asarray(layer(x, Mode(True, key=jax.random.key(0))))
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / 0.75, rtol=2e-7)
    whole = kept.all((1, 2)) | ~kept.any((1, 2))
    assert whole.all() if channels else whole.mean() < 0.1
    draws = kept[:, 0, 0] if channels else kept
    # a share of n draws lies within 5 standard deviations of 0.75
    assert abs(draws.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / draws.size)
    assert layer(x) is x
    again = layer(x, Mode(True, key=jax.random.key(0)))
    np.testing.assert_array_equal(y, again)
    assert (y != np.asarray(layer(x, Mode(True, key=jax.random.key(1))))).any()
    sister = Dropout(0.25, channels=channels, stream=4)
    assert (y != np.asarray(sister(x, Mode(True, key=jax.random.key(0))))).any()


def test_dropout_with_a_given_mask():
    layer = Dropout(0.5, channels=True, stream=3)
    keep = np.zeros((2, 1, 1, 3), bool)
    keep[0, 0, 0, 1] = keep[1, 0, 0, 2] = True
    y = layer(jnp.ones((2, 2, 2, 3)), Mode(True, masks={3: jnp.asarray(keep)}))
    np.testing.assert_array_equal(y, np.broadcast_to(2 * keep, (2, 2, 2, 3)))


def test_flatten_goes_by_channel_row_column():
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)  # value: 12 row + 4 column + channel
    expected = [12 * r + 4 * c + k for k in range(4) for r in range(2) for c in range(3)]
    np.testing.assert_array_equal(Flatten()(x)[0], expected)


def test_log_softmax_is_over_channels():
    x = jnp.log(jnp.array([[1.0, 3.0], [2.0, 2.0]])).reshape(2, 1, 1, 2)
    np.testing.assert_allclose(
        np.exp(LogSoftmax()(x)).reshape(2, 2), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6
    )


def test_average_pool_is_over_the_whole_map():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(GlobalAvgPool()(x), [[[[5.0, 6.0]]]])


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (Conv(8, 64, 3, rng=rng(1)), 72),
        (Conv(64, 64, 3, groups=64, rng=rng(2)), 9),
        (Conv(48, 96, 1, rng=rng(3)), 48),
        (Linear(300, 50, rng=rng(4)), 300),
    ],
    ids=["dense", "depthwise", "1x1", "linear"],
)
def test_initial_weights_are_uniform_within_the_root_of_the_fan_in(layer, fan_in):
    """PyTorch's default, kaiming_uniform_ with a = sqrt(5): gain sqrt(1/3), bound sqrt(3) gain."""
    bound = 1 / np.sqrt(fan_in)
    for values in (np.ravel(layer.kernel[...]), np.ravel(layer.bias[...])):
        assert values.dtype == np.float32
        assert np.abs(values).max() <= np.float32(bound)
        # fixed seeds; a true uniform sample scores below this once in 1,000 seeds
        assert kstest(values, uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_batch_norms_written_gradient_is_that_of_its_definition(x64):
    """The one place where a gradient is written by hand for a layer with parameters."""
    x, dy = jnp.asarray(rng(0).normal(size=(2, 5, 3, 4, 6)) * 2 + 1)
    scale, bias = jnp.asarray(rng(1).normal(size=(2, 6)))
    valid = np.array([True, True, False, True, True])

    def written(x, scale, bias):
        return (normalise(x, scale, bias, 1e-5, jnp.asarray(valid))[0] * dy)[valid].sum()

    def defined(x, scale, bias):
        own = x[valid]
        mean = own.mean((0, 1, 2))
        var = ((own - mean) ** 2).mean((0, 1, 2))
        return (((own - mean) / jnp.sqrt(var + 1e-5) * scale + bias) * dy[valid]).sum()

    found = jax.grad(written, (0, 1, 2))(x, scale, bias)
    wanted = jax.grad(defined, (0, 1, 2))(x, scale, bias)
    for mine, true in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, true, rtol=1e-10, atol=1e-12)


def test_max_pool_alone_and_with_its_gradient():
    """The pool has two forms; each of a window's four pixels can be the largest."""
    # negative numbers too, and a last row and column that no window reaches
    x = np.random.default_rng(1).permutation(2 * 6 * 4 * 3).reshape(2, 6, 4, 3).astype(np.float32)
    x -= 100
    framed = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1e6)
    windows = x.reshape(2, 3, 2, 2, 2, 3)
    largest = windows.max((2, 4))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), largest)
    for map_ in (framed, framed[:, :-1], framed[:, :, :-1]):
        np.testing.assert_array_equal(max_pool(jnp.asarray(map_)), largest)
        np.testing.assert_array_equal(jax.vjp(max_pool, jnp.asarray(map_))[0], largest)
    value, pull = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(value, largest)
    dy = np.arange(largest.size, dtype=np.float32).reshape(largest.shape) + 1
    wanted = np.where(windows == largest[:, :, None, :, None], dy[:, :, None, :, None], 0)
    np.testing.assert_array_equal(pull(dy)[0], wanted.reshape(x.shape))


def test_linear_by_hand():
    layer = Linear(2, 3, rng=rng())
    layer.kernel.set_value(jnp.array([[1.0, 2, 3], [4, 5, 6]]))
    layer.bias.set_value(jnp.array([10.0, 20, 30]))
    np.testing.assert_array_equal(layer(jnp.array([[1.0, -1]])), [[7, 17, 27]])
