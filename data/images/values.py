"""Which of an image's stored values are black and white, where it has more than 8 bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.base.errors import UserError

_BITS = (8, 10, 12, 14, 16, 24, 31, 32)
_OVERSHOOT = 0.1  # of the range: floats that were made by resampling pass it a little
_SIGNED = 2  # of TIFF's sample formats
_WHITE_IS_ZERO = 0  # TIFF's photometric interpretation; Pillow minds it in 8 bits alone
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAXIMUM, _FORMAT = 258, 262, 281, 339  # TIFF's tags


@dataclass(frozen=True)
class Range:
    """`low` and `high` are black and white.

    `origin`: what says so, the `file`, its `values` (a guess), its `opacity` (of an image that is
    all black: the values of its transparency, a guess as well), or the `dataset`.
    """

    low: float = 0
    high: float = 255
    origin: str = "file"


def deep(image: Image.Image) -> bool:
    """Whether an image of Pillow's is one of grey values with more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def need_unsigned(image: Image.Image, tags: Mapping[int, Any], what: str) -> None:
    """UserError for a TIFF of signed 8-bit values below 0, which Pillow takes for large ones."""
    if _SIGNED not in tags.get(_FORMAT, ()) or 8 not in tags.get(_BITS_PER_SAMPLE, ()):
        return
    low = int(np.asarray(image).view(np.int8).min())
    if low < 0:
        raise UserError(
            f"{what} holds signed values from {low}, and below 0 it is not known which is black; "
            "save it with values from 0 up"
        )


def to_bytes(
    values: np.ndarray,
    kind: str | None,
    tags: Mapping[int, Any],
    what: str,
    whites: tuple[float, float] = (0, 0),
) -> tuple[UInt8[np.ndarray, "h w *c"], Range]:
    """Deep values in 8 bits, and the range that they were taken to be of.

    What the file states holds: a PPM's maximum, a TIFF's number of bits or its maximum; else what
    the dataset has, if it holds the values. Else it is the least range that does: 0 to 1 (floats),
    8, 10, 12, 14, 16, ... bits.

    Args:
      values: integers or floats, [h, w] or [h, w, c].
      kind: the format of their file, as Pillow calls it.
      tags: those of a TIFF.
      what: its name.
      whites: what the dataset has for white in integers and in floats; 0: nothing.

    Raises:
      UserError: values below 0, or none at all (NaN, infinity).

    """
    unsigned = tags.get(_FORMAT, (1,)) == (1,) and tags.get(_BITS_PER_SAMPLE) == (32,)
    if unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no such mode
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{what} holds values that are no numbers (NaN or infinity)")
    chosen = _stated(values.dtype, kind, tags, high) or guessed(values)
    white = whites[values.dtype.kind == "f"]
    if chosen.origin == "values" and white >= chosen.high:
        chosen = Range(high=white, origin="dataset")
    room = _OVERSHOOT * chosen.high if values.dtype.kind == "f" else 0
    if low < -room:
        raise UserError(
            f"{what} holds values from {low:.4g} to {high:.4g}, and below 0 it is not known which "
            "is black; save it with values from 0 up"
        )
    scaled = scale(values, chosen)
    return 255 - scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled, chosen


def scale(values: np.ndarray, chosen: Range) -> np.ndarray:
    """Values of a range as the nearest of 256, uint8; what lies outside as its end."""
    shares = values.astype(np.float32)  # in place from here: there may be 50 million of them
    shares /= np.float32(chosen.high)
    np.clip(shares, 0, 1, out=shares)
    shares *= 255
    return np.rint(shares, out=shares).astype(np.uint8)


def _stated(
    dtype: np.dtype, kind: str | None, tags: Mapping[int, Any], high: float
) -> Range | None:
    if kind == "PPM" and dtype.kind != "f":
        return Range(high=65535)  # to which Pillow has scaled the file's own maximum
    if kind == "TIFF" and dtype.kind != "f":
        (maximum, *_) = tags.get(_MAXIMUM) or (0,)
        if maximum >= max(high, 1):
            return Range(high=maximum)
        (bits, *_) = tags.get(_BITS_PER_SAMPLE) or (0,)
        if bits and bits not in (16, 32):
            return Range(high=2**bits - 1)
    return None


def guessed(values: np.ndarray) -> Range:
    """The least usual range that holds the values; all of them if none does."""
    usual, room, high = [2**bits - 1 for bits in _BITS], 1.0, values.max()
    if values.dtype.kind == "f":
        usual, room = [1, *usual], 1 + _OVERSHOOT
    found = next((most for most in usual if most * room >= high), float(high))
    return Range(high=found, origin="values")
