"""The one door for arrays of images: what may come in, and what every network is given."""

import functools
import sys
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.images.on_disk import Images, OnDisk

_DARK = 16  # of 255: a camera's noise alone comes that far in the darkest of a few photos
_FEW = 4  # images that may all be dark


def as_images(images: Any, shape: tuple[int, int, int]) -> Images:
    """Images as the networks of a dataset are given them; those that are so already, uncopied.

    Args:
      images: an array of NumPy, or what NumPy makes one of. uint8 (0 is black, 255 white), or
        floats (0 is black, 1 white); [n, h, w, c], or one image [h, w, c]. Of images with one
        channel that axis may be left out. Images on disk stay there.
      shape: (height, width, channels) of the dataset's images.

    Raises:
      UserError: it is something else. Nothing is cut, scaled or cast that was not defined here.

    Example:
      >>> as_images(np.ones((8, 8), np.float32), (8, 8, 1)).shape
      (1, 8, 8, 1)

    """
    if isinstance(images, OnDisk):
        return _on_disk(images, shape)
    try:
        array = np.asarray(images)
    except Exception as error:  # ragged lists, tensors on a GPU: each has an error of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the images are not one array of numbers ({reason:.200})") from None
    return as_bytes(_batch(array, shape))


def note_dark(images: Images) -> None:
    """A note on standard error where all of a batch is so dark that its white may not be 255.

    Digits of 0 to 16, or of 0 and 1, are all black to a network that knows 0 to 255. `images` came
    as uint8; for floats it is defined what is white. Images on disk are not read for it.
    """
    if not isinstance(images, np.ndarray):
        return
    if len(images) > _FEW and 0 < (high := int(images.max())) <= _DARK:
        _note_white(high)


@functools.cache
def _note_white(high: int) -> None:
    """Once in a process: a program asks about one batch after the other."""
    print(
        f"note: the largest value of these images is {high}, and 255 is white; if white is {high} "
        f"here, hand over images / {high}, floats of 0 to 1",
        file=sys.stderr,
    )


def _on_disk(images: Any, shape: tuple[int, int, int]) -> Any:
    """Images on disk as they are: they take an array's place. UserError for another size."""
    if images.shape[1:] != tuple(shape):
        _batch(images, shape)  # says what is wrong
    return images


def _batch(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An array of the right rank and size, as [n, h, w, c]."""
    height, width, channels = shape
    if array.shape[-3:] == shape and array.ndim in (3, 4):
        return array.reshape(-1, *shape)
    if channels == 1 and array.shape[-2:] == (height, width) and array.ndim in (2, 3):
        return array.reshape(-1, *shape)
    wanted = f"[n, {height}, {width}, {channels}] or [{height}, {width}, {channels}]"
    message = f"the images have the shape {list(array.shape)}, not {wanted}"
    if channels > 1 and array.ndim in (3, 4) and array.shape[-3:] == (channels, height, width):
        message += "; their channels come last: numpy.moveaxis(images, -3, -1)"
    raise UserError(message)


def as_bytes(array: np.ndarray) -> np.ndarray:
    """uint8 as it is, floats from 0 to 1 as the nearest of 256 values. UserError for others."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise UserError(
            f"the images are of the type {array.dtype}; hand over uint8 (0 to 255) or floats "
            "(0 to 1)"
        )
    if not array.size:
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())  # NaN if there is one
    if np.isnan(low):
        raise UserError("the images hold NaN")
    if low < 0 or high > 1:
        raise UserError(
            f"the images are floats from {low:.4g} to {high:.4g}, and floats are 0 (black) to 1 "
            "(white): scale them, or hand over uint8 (0 to 255); mean and standard deviation are "
            "seen to inside"
        )
    return np.rint(array.astype(np.float32, copy=False) * 255).astype(np.uint8)
