import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy import stats

import trunk_jax.network.augment as ours
import trunk_torch_ref.network.augment as reference
from data.base.errors import UserError
from data.base.streams import stream
from data.images import augmentation
from data.images.augmentation import GEOMETRIC, OPERATIONS, Augmentation, draw, sources

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIZES = [(32, 32), (28, 28), (8, 8), (11, 20)]
jax_augment = jax.jit(ours.augment, static_argnames="policy")
jax_prepare = jax.jit(ours.prepare, static_argnames=("policy", "mean", "std", "dtype"))


def pictures(height, width, channels):
    """uint8 [6, H, W, C]: noise, few dark values, a ramp, one value, two values, a bright dot."""
    noise = np.random.default_rng(5).integers(0, 256, (6, height, width, channels), np.uint8)
    noise[1] = 40 + noise[1] % 7
    ramp = np.linspace(0, 254, height * width * channels).reshape(height, width, channels)
    noise[2] = ramp.round()
    noise[3] = 131
    noise[4] = np.where(noise[4] > 100, 200, 199)
    noise[5] = 3
    noise[5, height // 2, 1] = 255
    return noise


def through_jax(images, draws, policy):
    return np.asarray(jax_augment(images, draws, policy=policy))


def through_torch(images, draws, policy):
    tensors = {name: torch.from_numpy(value) for name, value in draws.items()}
    channel_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return reference.augment(channel_first, tensors, policy).permute(0, 2, 3, 1).numpy()


def one_operation(images, name, sign, magnitude):
    """`images` through one RandAugment operation in JAX."""
    shape = (len(images), 1)
    draws = {
        "op": np.full(shape, OPERATIONS.index(name), np.int32),
        "sign": np.full(shape, sign, np.int32),
    }
    return through_jax(images, draws, Augmentation(rand_augment=(1, magnitude)))


# The policy and its draws


def test_an_empty_policy_is_false_and_draws_nothing():
    assert not Augmentation()
    assert draw(Augmentation(), stream(1), 10, 8, 8) == {}
    for policy in (
        Augmentation(rand_augment=(1, 0)),
        Augmentation(crop_padding=1),
        Augmentation(flip=True),
        Augmentation(cutout=(1, 4)),
    ):
        assert policy
        assert len(draw(policy, stream(1), 10, 8, 8)) == 1 + (policy.rand_augment is not None)


@pytest.mark.parametrize(
    "fields",
    [
        {"rand_augment": (0, 8)},
        {"rand_augment": (2, 31)},
        {"rand_augment": (2, -1)},
        {"crop_padding": -1},
        {"cutout": (0, 4)},
        {"cutout": (1, 1)},
    ],
)
def test_a_policy_out_of_range_is_refused_in_one_line(fields):
    with pytest.raises(UserError, match=next(iter(fields))) as error:
        Augmentation(**fields)
    assert "\n" not in str(error.value)


def test_draws_follow_their_stream_and_are_uniform():
    policy = Augmentation(rand_augment=(2, 8), crop_padding=4, flip=True, cutout=(2, 4))
    count, height, width = 7000, 20, 32
    draws = draw(policy, stream(3, "augment", 0), count, height, width)
    again = draw(policy, stream(3, "augment", 0), count, height, width)
    other = draw(policy, stream(3, "augment", 1), count, height, width)
    shapes = {"op": (2,), "sign": (2,), "shift": (2,), "flip": (), "holes": (2, 2)}
    assert {name: value.shape for name, value in draws.items()} == {
        name: (count, *shape) for name, shape in shapes.items()
    }
    assert {name: value.dtype for name, value in draws.items()} == {
        name: np.dtype(bool if name == "flip" else np.int32) for name in shapes
    }
    columns = [
        *((draws["op"][:, k], range(14)) for k in range(2)),
        *((draws["sign"][:, k], (-1, 1)) for k in range(2)),
        *((draws["shift"][:, k], range(9)) for k in range(2)),
        (draws["flip"], (False, True)),
        *((draws["holes"][:, k, 0], range(height)) for k in range(2)),
        *((draws["holes"][:, k, 1], range(width)) for k in range(2)),
        (draws["op"][:, 0] * 14 + draws["op"][:, 1], range(14 * 14)),  # and independent
    ]
    for values, possible in columns:
        counts = np.array([(values == value).sum() for value in possible])
        assert counts.sum() == count  # nothing outside the range
        # The stream is fixed, so this cannot fail by chance; a draw that misses a value, or
        # favours one by a quarter, has a p-value far below.
        assert stats.chisquare(counts).pvalue > 1e-3
    for name, value in draws.items():
        np.testing.assert_array_equal(value, again[name])
        assert (value != other[name]).any()


def test_magnitude_8_and_the_ends_by_hand():
    assert augmentation.SHEAR[8] == pytest.approx(0.08, rel=1e-15)
    assert augmentation.ROTATION[8] == 8
    assert augmentation.BLEND_PERCENT[[0, 8, 30]].tolist() == [0, 24, 90]
    assert augmentation.POSTERIZE_BITS[[0, 3, 4, 8, 15, 30]].tolist() == [8, 8, 7, 7, 6, 4]
    assert augmentation.SOLARIZE_FROM[[0, 1, 8, 30]].tolist() == [255, 247, 187, 0]
    # 150 / 331 * 32 * 8 / 30 = 3.87 and 150 / 331 * 28 * 30 / 30 = 12.69, cut off
    assert augmentation.translation(8, 32) == 3
    assert augmentation.translation(30, 28) == 12


# Warps


def torchvision_sources(name, sign, magnitude, height, width):
    """The map that torchvision's matrices and grid_sample give, in float64: int [H, W]."""
    m = sign * augmentation.SHEAR[magnitude]
    angle = math.radians(sign * augmentation.ROTATION[magnitude])
    # Inverse maps about the centre; both shears are about the corner, hence their offsets.
    theta = {
        "ShearX": [[1, m, m * height / 2], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [m, 1, m * width / 2]],
        "TranslateX": [[1, 0, -int(sign * 150 / 331 * width * magnitude / 30)], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, -int(sign * 150 / 331 * height * magnitude / 30)]],
        "Rotate": [
            [math.cos(angle), -math.sin(angle), 0],
            [math.sin(angle), math.cos(angle), 0],
        ],
    }[name]
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    grid = np.einsum("ij,jhw->hwi", np.array(theta), np.stack([x, y, np.ones_like(x)]))
    grid = torch.from_numpy(grid / [width / 2, height / 2])
    index = torch.arange(1, height * width + 1, dtype=torch.float64).reshape(1, 1, height, width)
    found = torch.nn.functional.grid_sample(index, grid[None], "nearest", "zeros", False)
    return found[0, 0].numpy().astype(int) - 1  # 0, the padding, becomes -1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (8, 8), (10, 20)])
@pytest.mark.parametrize("magnitude", [8, 9, 30])  # none of them has ties on even sizes
def test_warps_are_torchvisions(magnitude, height, width):
    tables = sources(magnitude, height, width)
    np.testing.assert_array_equal(tables[0].ravel(), np.arange(height * width))
    for k, name in enumerate(GEOMETRIC):
        for s, sign in enumerate((1, -1)):
            expected = torchvision_sources(name, sign, magnitude, height, width)
            np.testing.assert_array_equal(tables[1 + 2 * k + s], expected, f"{name} {sign}")


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_both_frameworks_find_the_same_source_pixels_at_every_magnitude(height, width):
    for magnitude in range(31):
        tables = sources(magnitude, height, width)
        for k, name in enumerate(GEOMETRIC):
            for s, sign in enumerate((1, -1)):
                matrix = reference.inverse_map(name, sign, magnitude, height, width)
                row, column = reference.nearest(matrix, height, width)
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                found = torch.where(inside, row * width + column, -1).numpy()
                np.testing.assert_array_equal(
                    tables[1 + 2 * k + s], found, f"{name} {sign} {magnitude}"
                )


def test_warps_against_pillow():
    image = pictures(32, 32, 3)[:1]
    pillow = Image.fromarray(image[0])
    affine = partial(pillow.transform, pillow.size, Image.Transform.AFFINE)
    for sign in (1, -1):
        for name, expected in {
            "ShearX": affine((1, sign * 0.08, 0, 0, 1, 0)),
            "ShearY": affine((1, 0, 0, sign * 0.08, 1, 0)),
            "TranslateX": affine((1, 0, -sign * 3, 0, 1, 0)),
            "TranslateY": affine((1, 0, 0, 0, 1, -sign * 3)),
            "Rotate": pillow.rotate(sign * 8),
        }.items():
            result = one_operation(image, name, sign, 8)
            np.testing.assert_array_equal(result[0], np.asarray(expected), f"{name} {sign}")


# Colours


@pytest.mark.parametrize("channels", [1, 3])
def test_point_operations_against_pillow(channels):
    images = pictures(28, 32, channels)
    mode = partial(np.squeeze, axis=-1) if channels == 1 else np.asarray
    for name, magnitude, expected in (
        ("Equalize", 8, ImageOps.equalize),
        ("Posterize", 8, partial(ImageOps.posterize, bits=7)),
        ("Posterize", 30, partial(ImageOps.posterize, bits=4)),
        ("Solarize", 8, partial(ImageOps.solarize, threshold=187)),
        ("Solarize", 9, partial(ImageOps.solarize, threshold=178.5)),
        ("Solarize", 30, partial(ImageOps.solarize, threshold=0)),
    ):
        result = one_operation(images, name, 1, magnitude)
        for image, pixels in zip(result, images, strict=True):
            pillow = np.asarray(expected(Image.fromarray(mode(pixels))))
            np.testing.assert_array_equal(mode(image), pillow, name)


def test_auto_contrast_by_exact_integers():
    images = pictures(8, 8, 3)
    result = one_operation(images, "AutoContrast", 1, 8)
    for pixels, image in zip(images.reshape(6, -1, 3), result.reshape(6, -1, 3), strict=True):
        for channel in range(3):
            low, high = int(pixels[:, channel].min()), int(pixels[:, channel].max())
            for value, found in zip(pixels[:, channel].tolist(), image[:, channel], strict=True):
                assert found == (value if low == high else (value - low) * 255 // (high - low))


def test_grey_by_hand():
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8
    )
    # 0.2989, 0.587 and 0.114 of 255, then 0.9999 of it: fractions dropped
    expected = [76, 149, 29, 254, 0]
    assert ours._grey(colours[None, None])[0, 0, :, 0].tolist() == expected
    tensor = torch.from_numpy(colours)[:, :, None, None]
    assert reference.grey(tensor).flatten().tolist() == expected


def test_smoothing_is_pillows_filter_and_keeps_tiny_images():
    image = pictures(11, 20, 3)[0]
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.SMOOTH))
    np.testing.assert_array_equal(ours._smooth(image[None])[0], expected)
    tiny = pictures(2, 9, 3)
    np.testing.assert_array_equal(one_operation(tiny, "Sharpness", 1, 30), tiny)


def torchvision_blend(images, other, factor):
    """The float32 arithmetic of torchvision's tensor operations."""
    mixed = np.float32(factor) * images + np.float32(1 - factor) * other
    assert mixed.dtype == np.float32
    return np.clip(mixed, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [8, 9, 30])
def test_blends_are_torchvisions_but_for_its_rounding(magnitude, sign):
    images = pictures(32, 32, 3)
    factor = 1 + sign * float(np.linspace(0, 0.9, 31, dtype=np.float32)[magnitude])
    red, green, blue = np.moveaxis(images.astype(np.float32), -1, 0)
    weights = np.array([0.2989, 0.587, 0.114], np.float32)
    luma = (weights[0] * red + weights[1] * green + weights[2] * blue).astype(np.uint8)[..., None]
    smooth = [np.asarray(Image.fromarray(image).filter(ImageFilter.SMOOTH)) for image in images]
    for name, other in {
        "Brightness": np.zeros_like(images),
        "Color": luma,
        "Contrast": luma.mean((1, 2, 3), keepdims=True, dtype=np.float32),
        "Sharpness": np.stack(smooth),
    }.items():
        result = one_operation(images, name, sign, magnitude).astype(int)
        expected = torchvision_blend(images, other, factor)
        different = result != expected
        # Float32 lands below the exact value only where that is a whole number; ours takes
        # the exact one. 1e-4 covers float32's error at 255 several times over.
        exact = factor * images.astype(np.float64) + (1 - factor) * other
        np.testing.assert_array_equal(result[different] - expected[different], 1, name)
        assert np.abs(exact - exact.round())[different].max(initial=0) < 1e-4, name
        # A flat image is whole everywhere; on noise few pixels are (4 % seen at most).
        assert different[0].mean() < 0.06, name
        assert (result != images).any(), name


@pytest.mark.parametrize("name", ["Color", "AutoContrast"])
def test_a_grey_image_keeps_its_colour_and_a_flat_one_its_contrast(name):
    images = pictures(8, 8, 1)
    if name == "AutoContrast":
        images = images[3:4]
    np.testing.assert_array_equal(one_operation(images, name, 1, 30), images)


# Both frameworks


@pytest.mark.parametrize("magnitude", [0, 8, 9, 30])
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (11, 20, 3), (28, 28, 1)])
def test_every_operation_gives_the_same_pixels_in_both_frameworks(
    height, width, channels, magnitude
):
    images = pictures(height, width, channels)
    cases = [(op, sign) for op in range(14) for sign in (1, -1)]
    op, sign = np.repeat(np.array(cases, np.int32), len(images), axis=0).T[:, :, None]
    draws = {"op": op.copy(), "sign": sign.copy()}
    images = np.tile(images, (len(cases), 1, 1, 1))
    policy = Augmentation(rand_augment=(1, magnitude))
    found = through_jax(images, draws, policy)
    expected = through_torch(images, draws, policy)
    assert found.dtype == expected.dtype == np.uint8
    for name in OPERATIONS:
        rows = op[:, 0] == OPERATIONS.index(name)
        np.testing.assert_array_equal(found[rows], expected[rows], name)


def test_a_whole_policy_gives_the_same_pixels_in_the_stated_order():
    whole = Augmentation(rand_augment=(2, 9), crop_padding=3, flip=True)
    steps = Augmentation(rand_augment=(2, 9)), Augmentation(crop_padding=3), Augmentation(flip=True)
    images = np.tile(pictures(28, 32, 3), (40, 1, 1, 1))
    draws = draw(whole, stream(7), len(images), 28, 32)
    found = through_jax(images, draws, whole)
    np.testing.assert_array_equal(found, through_torch(images, draws, whole))

    one_by_one = images
    for k in range(2):
        first = {name: draws[name][:, k : k + 1] for name in ("op", "sign")}
        one_by_one = through_jax(one_by_one, first, Augmentation(rand_augment=(1, 9)))
    for step in steps[1:]:
        mine = {name: draws[name] for name in (("flip",) if step.flip else ("shift",))}
        one_by_one = through_jax(one_by_one, mine, step)
    np.testing.assert_array_equal(found, one_by_one)


@pytest.mark.parametrize("through", [through_jax, through_torch])
def test_crop_and_flip_against_loops(through):
    policy = Augmentation(crop_padding=4, flip=True)
    images = np.tile(pictures(7, 9, 2), (8, 1, 1, 1))
    draws = draw(policy, stream(11), len(images), 7, 9)
    draws["shift"][:2] = [[0, 0], [8, 8]]
    expected = np.zeros_like(images)
    for n, (top, left) in enumerate(draws["shift"]):
        for i in range(7):
            for j in range(9):
                y, x = i + top - 4, j + left - 4
                if 0 <= y < 7 and 0 <= x < 9:
                    expected[n, i, 8 - j if draws["flip"][n] else j] = images[n, y, x]
    np.testing.assert_array_equal(through(images, draws, policy), expected)


def prepare_with(framework, images, draws, policy, mean, std, dtype):
    if framework == "jax":
        with jax.enable_x64(dtype == "float64"):
            return np.asarray(
                jax_prepare(
                    images, draws, policy=policy, mean=mean, std=std, dtype=jnp.dtype(dtype)
                )
            )
    tensors = {name: torch.from_numpy(value) for name, value in draws.items()}
    channel_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    inputs = reference.prepare(channel_first, tensors, policy, mean, std, getattr(torch, dtype))
    return inputs.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_cutout_zeroes_normalised_pixels(framework):
    images = pictures(9, 12, 3)
    policy = Augmentation(cutout=(2, 5))
    draws = draw(policy, stream(2), len(images), 9, 12)
    draws["holes"][0] = [[0, 11], [8, 0]]  # over the border
    plain = prepare_with(framework, images, {}, Augmentation(), MEAN, STD, "float32")
    expected = plain.copy()
    for n, holes in enumerate(draws["holes"]):
        for row, column in holes:
            for i in range(9):
                for j in range(12):
                    if row - 2 <= i < row + 2 and column - 2 <= j < column + 2:
                        expected[n, i, j] = 0
    found = prepare_with(framework, images, draws, policy, MEAN, STD, "float32")
    np.testing.assert_array_equal(found, expected)
    assert (plain != 0).all()  # so every zero above is a hole's


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalised", [True, False])
def test_normalisation_against_double_precision(framework, dtype, normalised):
    images = pictures(32, 32, 3)
    mean, std = (MEAN, STD) if normalised else ((), ())
    expected = images.astype(np.longdouble) / 255
    if normalised:
        expected = (expected - np.array(MEAN, np.longdouble)) / np.array(STD, np.longdouble)
    found = prepare_with(framework, images, {}, Augmentation(), mean, std, dtype)
    assert found.dtype == dtype
    # A quotient, the rounded mean and a difference, each off by half a unit in the last place
    # of a number up to 1, divided by the deviation; then the deviation's own rounding and the
    # last quotient's (a reciprocal and a product in XLA's case), relative to the result.
    unit = float(np.finfo(dtype).eps) / 2
    scale = 1 / min(STD) if normalised else 1
    bound = unit * (3 * scale + 3 * np.abs(expected))
    assert (np.abs(found - expected) <= bound).all()


def test_half_precision_is_rounded_once():
    images = pictures(8, 8, 3)
    full = ours.prepare(images, {}, Augmentation(), MEAN, STD)
    half = ours.prepare(images, {}, Augmentation(), MEAN, STD, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    full = reference.prepare(tensor, {}, Augmentation(), MEAN, STD)
    half = reference.prepare(tensor, {}, Augmentation(), MEAN, STD, torch.bfloat16)
    assert torch.equal(half, full.to(torch.bfloat16))


def test_the_published_policy_end_to_end_is_the_same_in_both_frameworks():
    policy = Augmentation(rand_augment=(2, 8), cutout=(2, 4))
    images = np.tile(pictures(32, 32, 3), (20, 1, 1, 1))
    draws = draw(policy, stream(9), len(images), 32, 32)
    for dtype in ("float32", "float64"):
        found, expected = (
            prepare_with(framework, images, draws, policy, MEAN, STD, dtype)
            for framework in ("jax", "torch")
        )
        # Equal pixels, so only normalisation differs: twice the bound derived above at 2.2,
        # the largest normalised value, 2 * (3 / 0.2435 + 3 * 2.2) = 38 half units.
        assert np.abs(found - expected).max() <= 19 * np.finfo(dtype).eps


@pytest.mark.parametrize("through", [through_jax, through_torch])
def test_rand_augment_refuses_other_channel_counts(through):
    images = np.zeros((1, 4, 4, 2), np.uint8)
    draws = {name: np.ones((1, 1), np.int32) for name in ("op", "sign")}
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        through(images, draws, Augmentation(rand_augment=(1, 8)))
