"""Size and channels of a dataset that is the user's own, where the images do not all agree."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data.base.errors import UserError
from data.images.specs import Spec
from data.images.splitting import Part

LEAST, MOST = 8, 224  # sides that networks are designed for
LARGEST_OWN = 64  # up to which images keep the size that most of them have
_STEP = 4096  # images that are looked at together
_LYING = (5, 6, 7, 8)  # of EXIF's orientations, those that exchange height and width
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Asked:
    """What was asked for: (height, width) or None, channels or 0; else what the images suggest."""

    size: Size | None = None
    channels: int = 0


def square(side: int) -> Size:
    """The size that `--image-size` means. UserError for one that no network is designed for."""
    if not LEAST <= side <= MOST:
        raise UserError(f"--image-size {side} must be {LEAST} to {MOST}")
    return side, side


def chosen(sizes: Sequence[Size]) -> Size:
    """The size to bring images of these sizes to.

    The most frequent one, if half of the images have it and its sides are 8 to 64. Else 64x64 where
    the shorter side of the median image is at least 64, and 32x32 where it is less: larger
    ones cost several times as much, so they are only taken where they are asked for.

    Example: `chosen([(28, 28), (28, 28), (600, 800)])` is `(28, 28)`.
    """
    size, count = Counter(sizes).most_common(1)[0]
    if 2 * count >= len(sizes) and min(size) >= LEAST and max(size) <= LARGEST_OWN:
        return size
    return square(64 if np.median([min(size) for size in sizes]) >= 64 else 32)


def of_file(content: bytes | Path) -> Size | None:
    """(height, width) of an image as it is seen, from its first bytes; None for something else.

    A camera that was held upright notes so in the file and stores the image lying: its sides are
    exchanged.
    """
    from PIL import ExifTags, Image  # what is cached is read without it

    if isinstance(content, Path) and not content.is_file():
        return None  # a pipe would be waited for
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with Image.open(source) as image:
            lying = image.getexif().get(ExifTags.Base.Orientation, 1) in _LYING
            return (image.width, image.height) if lying else (image.height, image.width)
    except Exception:  # whatever damage makes Pillow raise: it is named when it is decoded
        return None


def with_channels(
    images: UInt8[np.ndarray, "n h w 3"], channels: int, good: np.ndarray
) -> UInt8[np.ndarray, "n h w c"]:
    """Grey images with one channel, others with three; `channels` says which, 0: as they are.

    `good`: bool [n], which rows hold images.
    """
    if channels == 3 or (channels == 0 and not _grey(images, good)):
        return images
    return images[..., :1]  # equal to the others


def grey_where_all_are(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The splits with one channel if all images of all of them are grey, else as they are."""
    if any(not _grey(part.images, np.ones(len(part.images), bool)) for part in parts.values()):
        return dict(parts)
    return {split: Part(part.images[..., :1], part.labels) for split, part in parts.items()}


def _grey(images: np.ndarray, good: np.ndarray) -> bool:
    for start in range(0, len(images), _STEP):
        part = images[start : start + _STEP][good[start : start + _STEP]]
        if (part != part[..., :1]).any():
            return False
    return True


def plain_spec(name: str, shape: tuple[int, int, int], classes: tuple[str, ...]) -> Spec:
    """A dataset of which no more is known than this."""
    return Spec(name, name, None, shape, classes, None, "not known")
