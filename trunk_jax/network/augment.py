"""Augmentation and normalisation in JAX, a whole batch at a time, inside a compiled step.

Every image goes through every operation and keeps the one that was drawn for it: with
static shapes that is cheaper than sorting images by operation. Three shapes of operation
remain: warps (one gather through a table of source pixels), blends with another image
(colour, sharpness), and point operations (a 256-entry table an image and channel).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from data.images.augmentation import (
    BLEND_PERCENT,
    GEOMETRIC,
    LUMA,
    LUMA_UNIT,
    OPERATIONS,
    POSTERIZE_BITS,
    SOLARIZE_FROM,
    Augmentation,
    sources,
)


def prepare(
    images: jax.Array | np.ndarray,
    draws: Mapping[str, jax.Array | np.ndarray],
    policy: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype=jnp.float32,
) -> jax.Array:
    """Turn uint8 images [B, H, W, C] into network inputs [B, H, W, C] of `dtype`.

    `draws` are `data.images.augmentation.draw`'s for these images; an empty policy takes {}.
    `mean` and `std` have a number a channel, or none at all for plain pixels / 255.
    """
    pixels = jnp.asarray(augment(images, draws, policy))
    # Half precision would lose bits in the subtraction, so only the result is rounded to it.
    inputs = pixels.astype(jnp.promote_types(dtype, jnp.float32)) / 255
    if mean:
        inputs = (inputs - jnp.array(mean, inputs.dtype)) / jnp.array(std, inputs.dtype)
    if policy.cutout:
        inputs = jnp.where(_holes(draws["holes"], policy.cutout[1], pixels), 0, inputs)
    return inputs.astype(dtype)


def augment(
    images: jax.Array | np.ndarray,
    draws: Mapping[str, jax.Array | np.ndarray],
    policy: Augmentation,
) -> jax.Array | np.ndarray:
    """The part of the policy that works on pixels: uint8 [B, H, W, C] in and out.

    Raises ValueError for RandAugment on images with neither 1 nor 3 channels.
    """
    if policy.rand_augment:
        for k in range(policy.rand_augment[0]):
            op, sign = draws["op"][:, k], draws["sign"][:, k]
            images = _rand_augment(images, op, sign, policy.rand_augment[1])
    if policy.crop_padding or policy.flip:
        images = _crop_and_flip(images, draws, policy.crop_padding)
    return images


def _rand_augment(images, op, sign, magnitude):
    """Apply operation `op` [B] with `sign` [B] to uint8 images [B, H, W, C]."""
    batch, _, _, channels = images.shape
    if channels not in (1, 3):
        raise ValueError(f"RandAugment takes images with 1 or 3 channels, not {channels}")
    percent = 100 + sign * int(BLEND_PERCENT[magnitude])
    grey = _grey(images)

    shape = (batch, 1, 1, 1)
    other = jnp.where(_is(op, "Color").reshape(shape), grey, _smooth(images))
    blended = _hundredths(
        percent.reshape(shape) * images.astype(jnp.int32) + (100 - percent).reshape(shape) * other
    )
    warped = _warp(images, op, sign, magnitude)
    mapped = _look_up(_point_tables(images, op, percent, grey, magnitude), images)
    return jnp.where(
        (_is(op, "Color") | _is(op, "Sharpness")).reshape(shape),
        blended,
        jnp.where(_is(op, *GEOMETRIC).reshape(shape), warped, mapped),
    )


def _is(op, *names):
    """Whether `op` is one of these operations (neighbours in OPERATIONS): bool, like `op`."""
    first, last = OPERATIONS.index(names[0]), OPERATIONS.index(names[-1])
    return (op >= first) & (op <= last)


def _quotient(total, by):
    """Whole-number quotient of non-negative numbers; cheaper than //, which minds signs."""
    return lax.div(total, jnp.asarray(by, total.dtype))


def _hundredths(total):
    """Clamp total / 100 to pixel values and drop the fraction: int32 to uint8."""
    return _quotient(jnp.clip(total, 0, 25_500), 100).astype(jnp.uint8)


def _grey(images):
    """Luma of uint8 [B, H, W, C]: int32 [B, H, W, 1]."""
    images = images.astype(jnp.int32)
    if images.shape[-1] == 1:
        return images
    weighted = sum(weight * images[..., k : k + 1] for k, weight in enumerate(LUMA))
    return _quotient(weighted, LUMA_UNIT)


def _smooth(images):
    """A 3 x 3 mean with weight 5 of 13 in the middle, rounded; the border stays: int32."""
    images = images.astype(jnp.int32)
    if min(images.shape[1:3]) <= 2:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = images[:, 1:-1, 1:-1]
    rounded = _quotient(2 * (box + 4 * inner) + 13, 26)  # 13 is odd, so there are no ties
    border = jnp.pad(jnp.zeros(inner.shape[1:], bool), ((1, 1), (1, 1), (0, 0)), constant_values=1)
    return jnp.where(border, images, jnp.pad(rounded, ((0, 0), (1, 1), (1, 1), (0, 0))))


def _warp(images, op, sign, magnitude):
    """Shear, translate or rotate: nearest pixel, zeros from outside."""
    height, width = images.shape[1:3]
    tables = jnp.asarray(sources(magnitude, height, width))
    first = OPERATIONS.index(GEOMETRIC[0])
    which = jnp.where(_is(op, *GEOMETRIC), 2 * (op - first) + 1 + (sign < 0), 0)
    return _gather(images, tables[which])


def _crop_and_flip(images, draws, padding):
    """Crop at `shift` out of the zero-padded image, then mirror where `flip`: one gather."""
    batch, height, width, _ = images.shape
    row = jnp.arange(height)[None, :, None]
    column = jnp.arange(width)[None, None, :]
    if "flip" in draws:
        column = jnp.where(draws["flip"][:, None, None], width - 1 - column, column)
    if padding:
        shift = (draws["shift"] - padding)[:, :, None, None]
        row, column = row + shift[:, 0], column + shift[:, 1]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = jnp.where(inside, row * width + column, -1)
    return _gather(images, jnp.broadcast_to(source, (batch, height, width)))


def _gather(images, source):
    """Pixels of uint8 [B, H, W, C] at flat indices int32 [B, H, W], zeros at -1."""
    batch, height, width, channels = images.shape
    first = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * (height * width)
    pixels = images.reshape(-1, channels)
    found = pixels.at[first + jnp.maximum(source, 0)].get(mode="promise_in_bounds")
    return jnp.where(source[..., None] < 0, jnp.uint8(0), found)


def _point_tables(images, op, percent, grey, magnitude):
    """What each pixel value becomes: uint8 [B, C, 256]; the values themselves by default."""
    batch, height, width, channels = images.shape
    shape = (batch, 1, 1)
    value = jnp.arange(256, dtype=jnp.int32)

    # Contrast blends with the mean grey, brightness with black. The mean's fraction is
    # rounded down once multiplied: no whole number lies between, so the result is exact.
    pixels = height * width
    total = grey.sum((1, 2, 3))
    whole, part = total // pixels, total % pixels
    mean = (100 - percent) * whole + (100 - percent) * part // pixels
    offset = jnp.where(_is(op, "Contrast"), mean, 0).reshape(shape)
    blend = _hundredths(percent.reshape(shape) * value + offset)

    low_bits = (1 << (8 - int(POSTERIZE_BITS[magnitude]))) - 1
    inverted = jnp.where(value >= int(SOLARIZE_FROM[magnitude]), 255 - value, value)

    table = jnp.broadcast_to(value.astype(jnp.uint8), (batch, channels, 256))
    for name, result in (
        ("Posterize", value & ~low_bits),
        ("Solarize", inverted),
        ("AutoContrast", _auto_contrast_table(images)),
        ("Equalize", _equalize_table(images)),
    ):
        table = jnp.where(_is(op, name).reshape(shape), result.astype(jnp.uint8), table)
    return jnp.where((_is(op, "Brightness") | _is(op, "Contrast")).reshape(shape), blend, table)


def _auto_contrast_table(images):
    """Stretch each channel's range to 0..255; one of a single value stays: int32 [B, C, 256]."""
    low = images.min((1, 2)).astype(jnp.int32)[..., None]
    extent = images.max((1, 2)).astype(jnp.int32)[..., None] - low
    value = jnp.arange(256, dtype=jnp.int32)
    stretched = _quotient(jnp.clip(value - low, 0, extent) * 255, jnp.maximum(extent, 1))
    return jnp.where(extent > 0, stretched, value)


def _equalize_table(images):
    """Spread each channel's values so that they are about equally common: int32 [B, C, 256]."""
    batch, _, _, channels = images.shape
    flat = jnp.arange(batch, dtype=jnp.int32)[:, None, None, None] * channels
    flat = (flat + jnp.arange(channels, dtype=jnp.int32)) * 256 + images
    counts = jnp.zeros(batch * channels * 256, jnp.int32)
    counts = counts.at[flat].add(1, mode="promise_in_bounds").reshape(batch, channels, 256)
    below = jnp.cumsum(counts, -1) - counts
    # The pixels short of the brightest value, cut into 255 steps; too few of them: no change.
    brightest = images.max((1, 2)).astype(jnp.int32)[..., None]
    step = _quotient(jnp.take_along_axis(below, brightest, -1), 255)
    spread = jnp.clip(_quotient(below + _quotient(step, 2), jnp.maximum(step, 1)), 0, 255)
    return jnp.where(step > 0, spread, jnp.arange(256, dtype=jnp.int32))


def _look_up(tables, images):
    """Send uint8 [B, H, W, C] through tables [B, C, 256]."""
    batch, _, _, channels = images.shape
    first = jnp.arange(batch * channels, dtype=jnp.int32).reshape(batch, 1, 1, channels) * 256
    return tables.reshape(-1).at[first + images].get(mode="promise_in_bounds")


def _holes(centres, side, images):
    """Where Cutout's squares lie: centres int32 [B, holes, 2] to bool [B, H, W, 1]."""
    _, height, width, _ = images.shape
    half = side // 2
    row = jnp.arange(height) - centres[:, :, :1]
    column = jnp.arange(width) - centres[:, :, 1:]
    rows, columns = (row >= -half) & (row < half), (column >= -half) & (column < half)
    return (rows[..., :, None] & columns[..., None, :]).any(1)[..., None]
