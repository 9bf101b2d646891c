"""A dataset that is arrays of the user's own: in memory, or in an `.npz` file."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.base.errors import UserError
from data.images import shapes
from data.images.arrays import as_bytes
from data.images.cache import Arrays
from data.images.splitting import Part, assembled

# What the arrays of a split are called, in the order of preference; Keras says x and y.
_NAMES = {
    "all": (("images", "labels"), ("x", "y")),
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (
        ("validation_images", "validation_labels"),
        ("val_images", "val_labels"),
        ("x_val", "y_val"),
    ),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_CLASSES = ("classes", "class_names")
_MOST_CLASSES = 10_000
_SHOWN = 5  # labels in a message


def read(file: Path) -> dict[str, np.ndarray]:
    """The arrays in an `.npz` file. UserError for one that is damaged, or holds Python objects."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    try:
        # opened here: NumPy leaves a file open that is no archive
        with open(file, "rb") as content:
            if not zipfile.is_zipfile(content):  # NumPy would take it for Python's objects
                raise zipfile.BadZipFile("an .npz file is a zip archive")
            content.seek(0)
            with np.load(content, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(
                f"{file} holds Python objects, which are not read; store arrays of numbers, and "
                "classes as an array of text"
            ) from None
        raise UserError(f"{file} is no .npz file of NumPy's ({error!s:.200})") from None
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, AttributeError) as error:
        raise UserError(f"{file} is no .npz file of NumPy's ({error!s:.200})") from None


def dataset(
    arrays: Mapping[str, Any],
    name: str,
    place: str,
    kind: str,
    asked: shapes.Asked,
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a dataset, and what is known of it: `spec` and `notes`, plain JSON.

    Args:
      arrays: `images` and `labels`, of which a fixed, stratified fifth becomes test; or
        `train_images`, `train_labels`, `test_images`, `test_labels` and perhaps
        `validation_images`, `validation_labels`; and perhaps `classes`, their names. Images uint8,
        or floats 0 to 1, [n, h, w] or [n, h, w, c]; labels whole numbers from 0, [n].
      name: of the dataset.
      place: where it is, for messages.
      kind: what it is, of `specs.KINDS`.
      asked: size and channels.

    Raises:
      UserError: they are something else.

    """
    parts: dict[str, Part] = {}
    for split, choices in _NAMES.items():
        pair = next((pair for pair in choices if pair[0] in arrays or pair[1] in arrays), None)
        if pair is None:
            continue
        for key in pair:
            if key not in arrays:
                raise UserError(
                    f"{place} has {pair[0] if key == pair[1] else pair[1]} and no {key}"
                )
        parts[split] = _part(arrays[pair[0]], arrays[pair[1]], f"{place}, {pair[0]}", asked)
    if "all" in parts and len(parts) > 1:
        raise UserError(
            f"{place} has both images and {', '.join(list(parts)[1:])} images; leave one"
        )
    if "all" not in parts and ("train" not in parts or len(parts) == 1):
        raise UserError(
            f"{place} has {', '.join(map(str, arrays)) or 'nothing'}; it must have images and "
            "labels, or train_images, train_labels, test_images and test_labels"
        )
    shape = next(iter(parts.values())).images.shape[1:]
    for split, part in parts.items():
        if part.images.shape[1:] != shape:
            raise UserError(f"{place}: {split} images are {part.images.shape[1:]}, others {shape}")
    given = next((arrays[key] for key in _CLASSES if arrays.get(key) is not None), None)
    classes = _classes(given, [part.labels for part in parts.values()], place)
    return assembled(name, parts, classes, place, kind)


def _part(images: Any, labels: Any, what: str, asked: shapes.Asked) -> Part:
    images = _images(images, what, asked)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(images):
        raise UserError(
            f"{what}: the labels have the shape {list(labels.shape)}, and there are "
            f"{len(images):,} images; give one whole number for each (of one-hot labels: "
            "numpy.argmax(labels, -1))"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{what}: the labels are {labels.dtype}; give whole numbers from 0, and names as "
            "classes"
        )
    return Part(images, labels.astype(np.int64))


def _images(images: Any, what: str, asked: shapes.Asked) -> np.ndarray:
    """uint8 [n, h, w, c] of the size and channels asked for."""
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        hint = ""
        if array.ndim == 4 and array.shape[1] in (1, 3):
            hint = "; their channels come last: numpy.moveaxis(images, 1, -1)"
        raise UserError(
            f"{what} have the shape {list(np.shape(images))}, not [n, height, width] or [n, "
            f"height, width, 1 or 3]{hint}"
        )
    if not len(array):
        raise UserError(f"{what} are none")
    try:
        array = as_bytes(array)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    size = asked.size or array.shape[1:3]
    if not min(size) >= shapes.LEAST or not max(size) <= shapes.MOST:
        raise UserError(
            f"{what} are {array.shape[1]}x{array.shape[2]}, and sides must be {shapes.LEAST} to "
            f"{shapes.MOST}; --image-size resizes them"
        )
    if array.shape[1:3] != tuple(size):
        array = np.stack([_resized(image, size) for image in array])
    if asked.channels and array.shape[-1] != asked.channels:
        if asked.channels == 1:
            raise UserError(f"{what} have 3 channels, and the run takes 1")
        array = np.repeat(array, 3, -1)
    return array


def _resized(image: np.ndarray, size: shapes.Size) -> np.ndarray:
    channels = image.shape[-1]
    flat = Image.fromarray(image[..., 0] if channels == 1 else image)
    flat = flat.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(flat).reshape(*size, channels)


def _classes(given: Any, labels: Sequence[np.ndarray], place: str) -> tuple[str, ...]:
    """The classes' names. UserError if they and the labels do not go together."""
    every = np.concatenate(list(labels))
    low, high = int(every.min()), int(every.max())
    names = None if given is None else tuple(str(name) for name in np.asarray(given).ravel())
    count = high + 1 if names is None else len(names)
    if low < 0 and names is None:
        found = np.unique(every)
        few = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise UserError(f"{place}: the labels are {few}; number the classes from 0")
    if low < 0 or high >= count:
        raise UserError(
            f"{place}: the labels are {low} to {high}; with {count} classes they must be 0 to "
            f"{count - 1}"
        )
    if count > _MOST_CLASSES:
        raise UserError(f"{place}: the labels go up to {high:,}; number the classes from 0")
    absent = np.flatnonzero(np.bincount(every, minlength=count) == 0)
    if len(absent):
        raise UserError(
            f"{place}: no image has the label {absent[0]}; number the {len(np.unique(every))} "
            "classes from 0 without gaps"
        )
    if count < 2:
        raise UserError(f"{place} holds one class; a dataset has two or more")
    if names is not None and len(set(names)) < count:
        raise UserError(f"{place}: a class stands twice in classes")
    return names or tuple(str(label) for label in range(count))
