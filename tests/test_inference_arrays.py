"""The door for arrays: what passes is right in both frameworks, what is not is one line."""

import numpy as np
import pytest

from data.base.errors import UserError
from data.images import arrays, specs
from data.images.arrays import as_images
from data.images.fitting import Options
from data.inference.inputs import pixels_of

GREY, COLOUR = (8, 8, 1), (32, 32, 3)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_bytes_pass_uncopied():
    images = noise(5, *COLOUR)
    assert as_images(images, COLOUR).base is images or as_images(images, COLOUR) is images
    assert np.shares_memory(as_images(images, COLOUR), images)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_the_bytes_that_they_were(kind):
    images = np.arange(256, dtype=np.uint8).reshape(4, *GREY)
    found = as_images((images / 255).astype(kind), GREY)
    assert found.dtype == np.uint8
    assert np.array_equal(found, images)


@pytest.mark.parametrize(
    ("given", "shape", "count"),
    [
        (GREY, GREY, 1),
        ((8, 8), GREY, 1),
        ((5, 8, 8), GREY, 5),
        ((5, 8, 8, 1), GREY, 5),
        ((1, 8, 8), GREY, 1),
        ((8, 8, 8), GREY, 8),
        ((0, 8, 8, 1), GREY, 0),
        (COLOUR, COLOUR, 1),
        ((5, 32, 32, 3), COLOUR, 5),
        ((0, 32, 32, 3), COLOUR, 0),
    ],
)
def test_one_image_or_a_batch(given, shape, count):
    images = noise(*given)
    for each in (images, images / 255):
        found = as_images(each, shape)
        assert found.shape == (count, *shape)
        assert np.array_equal(found.ravel(), images.ravel())


@pytest.mark.parametrize(
    ("images", "shape", "match"),
    [
        (noise(5, 8, 8, 1).astype(np.int64), GREY, "type int64; hand over uint8"),
        (noise(5, 8, 8, 1) > 3, GREY, "type bool"),
        (noise(5, 8, 8, 1).astype(np.float32), GREY, "floats from 0 to 255"),
        (noise(5, 8, 8, 1) / 254, GREY, "floats from 0 to 1.004"),
        (noise(5, 8, 8, 1) / 255 - 0.5, GREY, "floats from -0.5"),
        (np.full((5, 8, 8, 1), np.nan), GREY, "NaN"),
        (np.full((5, 8, 8, 1), np.inf), GREY, "inf"),
        (noise(5, 9, 8, 1), GREY, r"shape \[5, 9, 8, 1\], not \[n, 8, 8, 1\]"),
        (noise(5, 8, 8, 3), GREY, "shape"),
        (noise(8), GREY, "shape"),
        (noise(16, 8), GREY, "shape"),
        (noise(2, 16, 8), GREY, "shape"),
        (noise(2, 5, 8, 8, 1), GREY, "shape"),
        (noise(5, 32, 32), COLOUR, "shape"),
        (noise(5, 32, 32, 1), COLOUR, "shape"),
        (noise(5, 3, 32, 32), COLOUR, "channels come last"),
        (noise(3, 32, 32), COLOUR, "channels come last"),
        ([[1, 2], [3]], GREY, "not one array"),
        (None, GREY, "shape"),
        (["a.png"], GREY, "shape"),
    ],
)
def test_anything_else_is_one_line(images, shape, match):
    with pytest.raises(UserError, match=match) as caught:
        as_images(images, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (noise(20, 8, 8) // 16, True),
        (noise(20, 8, 8) // 128, True),
        (noise(20, 8, 8), False),
        (noise(20, 8, 8) // 4, False),  # a dark photo's
        (noise(3, 8, 8) // 16, False),  # a few may be dark
        (np.zeros((20, 8, 8), np.uint8), False),
        (noise(20, 8, 8) / 16 / 255, False),  # of floats it is defined what is white
    ],
)
def test_a_batch_whose_white_is_not_255_is_noted(images, said, capsys):
    arrays._note_white.cache_clear()
    for _ in range(2):  # a program that asks batch after batch is told once
        pixels_of(images, specs.spec("digits"), GREY, Options())
    text = capsys.readouterr().err
    assert text.count("\n") == said
    assert ("and 255 is white" in text) == said
