"""Augmentation and normalisation in PyTorch, one operation after another, eagerly.

Whole-number results are computed with whole numbers: a blend is rounded once, downwards.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from data.images.augmentation import (
    BLEND_PERCENT,
    GEOMETRIC,
    LUMA,
    LUMA_UNIT,
    OPERATIONS,
    POSTERIZE_BITS,
    ROTATION,
    SHEAR,
    SOLARIZE_FROM,
    TIE,
    Augmentation,
    translation,
)


def prepare(
    images: Tensor,
    draws: dict[str, Tensor],
    policy: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn uint8 images [B, C, H, W] into network inputs [B, C, H, W] of `dtype`.

    `draws` are `data.images.augmentation.draw`'s for these images; an empty policy takes {}.
    `mean` and `std` have a number a channel, or none at all for plain pixels / 255.
    """
    images = augment(images, draws, policy)
    # Half precision would lose bits in the subtraction, so only the result is rounded to it.
    exact = torch.promote_types(dtype, torch.float32)
    inputs = images.to(exact) / 255
    if mean:
        centre, scale = (torch.tensor(m, dtype=exact, device=images.device) for m in (mean, std))
        inputs = (inputs - centre[:, None, None]) / scale[:, None, None]
    if policy.cutout:
        inputs = cutout(inputs, draws["holes"], policy.cutout[1])
    return inputs.to(dtype)


def augment(images: Tensor, draws: dict[str, Tensor], policy: Augmentation) -> Tensor:
    """The part of the policy that works on pixels: uint8 [B, C, H, W] in and out.

    Raises ValueError for RandAugment on images with neither 1 nor 3 channels.
    """
    if policy.rand_augment:
        count, magnitude = policy.rand_augment
        for k in range(count):
            images = rand_augment(images, draws["op"][:, k], draws["sign"][:, k], magnitude)
    if policy.crop_padding:
        images = crop(images, draws["shift"], policy.crop_padding)
    if policy.flip:
        images = torch.where(draws["flip"][:, None, None, None], images.flip(-1), images)
    return images


def rand_augment(images: Tensor, op: Tensor, sign: Tensor, magnitude: int) -> Tensor:
    """Apply operation `op` [B] with `sign` [B] to uint8 images [B, C, H, W]."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"RandAugment takes images with 1 or 3 channels, not {images.shape[1]}")
    result = images.clone()
    for index, name in enumerate(OPERATIONS):
        for direction in (1, -1):
            chosen = (op == index) & (sign == direction)
            if chosen.any():
                result[chosen] = apply(images[chosen], name, direction, magnitude)
    return result


def apply(images: Tensor, name: str, sign: int, magnitude: int) -> Tensor:
    """Apply one operation of RandAugment to uint8 images [B, C, H, W]."""
    percent = 100 + sign * int(BLEND_PERCENT[magnitude])
    if name in GEOMETRIC:
        return warp(images, inverse_map(name, sign, magnitude, *images.shape[2:]))
    if name == "Brightness":
        return blend(images, torch.zeros_like(images), percent)
    if name == "Color":
        return blend(images, grey(images), percent)
    if name == "Contrast":
        return contrast(images, percent)
    if name == "Sharpness":
        return blend(images, smooth(images), percent)
    if name == "Posterize":
        unit = 2 ** (8 - int(POSTERIZE_BITS[magnitude]))
        return images // unit * unit
    if name == "Solarize":
        return torch.where(images >= int(SOLARIZE_FROM[magnitude]), 255 - images, images)
    if name == "AutoContrast":
        return auto_contrast(images)
    if name == "Equalize":
        return torch.stack(
            [torch.stack([equalize(channel) for channel in image]) for image in images]
        )
    return images  # Identity


def inverse_map(name: str, sign: int, magnitude: int, height: int, width: int) -> Tensor:
    """The matrix from an output point (x, y, 1) to its source, float64 [3, 3].

    Points are in pixels from the image's top left corner, x to the right and y downwards;
    the centre of pixel (row, column) is (column + 1/2, row + 1/2).
    """
    shear, angle = sign * float(SHEAR[magnitude]), math.radians(sign * float(ROTATION[magnitude]))
    x, y = width / 2, height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    centre = torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)
    forward = {
        "ShearX": [[1, -shear, 0], [0, 1, 0], [0, 0, 1]],
        "ShearY": [[1, 0, 0], [-shear, 1, 0], [0, 0, 1]],
        "TranslateX": [[1, 0, sign * translation(magnitude, width)], [0, 1, 0], [0, 0, 1]],
        "TranslateY": [[1, 0, 0], [0, 1, sign * translation(magnitude, height)], [0, 0, 1]],
        "Rotate": [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]],
    }
    matrix = torch.tensor(forward[name], dtype=torch.float64)
    if name == "Rotate":
        matrix = centre @ matrix @ torch.linalg.inv(centre)
    return torch.linalg.inv(matrix)


def nearest(matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixel (row, column) that each output pixel comes from, int64 [H, W] each."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).to(torch.float64)
    column, row, _ = torch.einsum("ij,jhw->ihw", matrix, points) - 0.5
    return torch.round(row - TIE).long(), torch.round(column - TIE).long()


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Move pixels by an inverse map [3, 3]: nearest neighbour, zeros from outside."""
    height, width = images.shape[2:]
    row, column = (index.to(images.device) for index in nearest(matrix, height, width))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    moved = images[:, :, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return torch.where(inside, moved, 0)


def blend(images: Tensor, other: Tensor, percent: int) -> Tensor:
    """`percent` / 100 of the images and the rest of `other`, clamped, its fraction dropped."""
    mixed = percent * images.long() + (100 - percent) * other.long()
    return (mixed // 100).clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Luma of uint8 [B, C, H, W]: uint8 [B, 1, H, W], its fraction dropped."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    return ((images * weights).sum(1, keepdim=True) // LUMA_UNIT).to(torch.uint8)


def contrast(images: Tensor, percent: int) -> Tensor:
    """Blend with the mean grey of each image, which keeps its fraction."""
    luma = grey(images).long()
    pixels = luma[0].numel()
    total = luma.sum((1, 2, 3), keepdim=True)
    mixed = percent * pixels * images.long() + (100 - percent) * total
    return (mixed // (100 * pixels)).clamp(0, 255).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """A 3 x 3 mean with weight 5 of 13 in the middle, rounded; the border stays as it is."""
    if min(images.shape[2:]) <= 2:
        return images
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, dtype=torch.float64, device=images.device)
    kernel[:, :, 1, 1] = 5
    result = images.clone()
    sums = functional.conv2d(images.to(torch.float64), kernel, groups=channels)
    # Whole sums are exact, and 13 is odd, so no mean lies half way between two values.
    result[:, :, 1:-1, 1:-1] = torch.round(sums / 13).to(torch.uint8)
    return result


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel's range to 0..255; a channel of a single value stays as it is."""
    low = images.amin((2, 3), keepdim=True).long()
    high = images.amax((2, 3), keepdim=True).long()
    stretched = (images.long() - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched, images).to(torch.uint8)


def equalize(channel: Tensor) -> Tensor:
    """Make a channel's values about equally common: uint8 [H, W] in and out.

    The pixels short of the brightest value are cut into 255 steps of equal size; with too
    few of them for that the channel stays as it is.
    """
    value = channel.long()
    counts = torch.bincount(value.flatten(), minlength=256)
    step = int(value.numel() - counts[value.max()]) // 255
    if step == 0:
        return channel
    below = counts.cumsum(0) - counts
    table = ((below + step // 2) // step).clamp(max=255).to(torch.uint8)
    return table[value]


def crop(images: Tensor, shift: Tensor, padding: int) -> Tensor:
    """Cut each image at (row, column) `shift` [B, 2] out of itself padded with zeros."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (padding,) * 4)
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(padded, shift.tolist(), strict=True)
        ]
    )


def cutout(inputs: Tensor, centres: Tensor, side: int) -> Tensor:
    """Zero squares of `side` pixels about each of `centres` [B, holes, 2] (row, column)."""
    result = inputs.clone()
    half = side // 2
    for image, holes in zip(result, centres.tolist(), strict=True):
        for row, column in holes:
            top, left = max(row - half, 0), max(column - half, 0)
            image[:, top : row + half, left : column + half] = 0
    return result
