"""What a model can be asked about: arrays, files, folders of files, images of Pillow's."""

from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from data.base.errors import UserError
from data.images import files
from data.images.arrays import as_images, note_dark
from data.images.fitting import Options
from data.images.on_disk import Images, OnDisk
from data.images.specs import Spec

_FILES = (str, PathLike, Image.Image)


def pixels_of(images: Any, spec: Spec, shape: tuple[int, int, int], options: Options) -> Images:
    """Images as a dataset's networks are given them.

    Args:
      images: an array, as `data.images.arrays.as_images` takes it; a file's or a folder's name, an
        image of Pillow's, or a list of these.
      spec: the dataset.
      shape: height, width and channels of what the root takes.
      options: how files and Pillow's images are made one of the dataset's.

    Raises:
      UserError: it is something else, or cannot be read.

    Example:
      >>> from data.images import specs
      >>> digits = specs.spec("digits")
      >>> pixels_of([Image.new("L", (90, 60))] * 2, digits, (8, 8, 1), Options()).shape
      (2, 8, 8, 1)

    """
    if isinstance(images, _FILES):
        images = [images]
    if not isinstance(images, list | tuple) or not any(isinstance(one, _FILES) for one in images):
        found = as_images(images, shape)
        if not isinstance(found, OnDisk) and np.asarray(images).dtype == np.uint8:
            note_dark(found)
        return found
    other = next((one for one in images if not isinstance(one, _FILES)), None)
    if other is not None:
        raise UserError(
            "a list holds names of files and images of Pillow's, or arrays, not both: it has "
            f"{type(other).__name__} as well"
        )
    sources: list[Any] = []
    for one in images:
        sources += [one] if isinstance(one, Image.Image) else files.files([str(one)])
    return as_images(np.stack([files.read(one, spec, options).pixels for one in sources]), shape)
