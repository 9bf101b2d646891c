"""A dataset of Hugging Face's that `save_to_disk` has left in a folder.

It must have one image and one class label a record. Nothing is downloaded, and no code of the
dataset's is run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.base.progress import counted
from data.images import decoding, fitting, room, shapes
from data.images.cache import Arrays
from data.images.specs import Spec
from data.images.splitting import Part, assembled, named
from data.images.whites import Whites


def need_package() -> None:
    """UserError if the package that reads these folders is not installed."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(
            "--dataset hf:FOLDER needs the package datasets: pip install 'trunk-jax[hf]'"
        ) from None


def decode(folder: Path, name: str, asked: shapes.Asked) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a saved dataset, and what is known of it: `spec` and `notes`, plain JSON.

    The splits train, validation and test are used; without test, validation becomes test, and
    of a dataset with one split a fixed, stratified fifth.

    Args:
      folder: what `save_to_disk` was given.
      name: of the dataset.
      asked: size and channels.

    Raises:
      UserError: the package `datasets` is missing; it is no such folder; a record has other than
        one image and one class label; an image cannot be read.

    """
    tables, notes = _tables(folder)
    image, label = _features(next(iter(tables.values())).features, folder)
    classes = tuple(next(iter(tables.values())).features[label].names)
    size = asked.size or shapes.chosen(_sizes(tables["train"], image, label, folder))
    wanted = shapes.plain_spec(name, (*size, asked.channels or 3), classes)
    whites = Whites()

    def read(wanted: Spec) -> dict[str, Part]:
        return {
            split: _part(table, image, label, wanted, split, folder, whites)
            for split, table in tables.items()
        }

    parts = whites.in_one_range(wanted, read)
    if not asked.channels:
        parts = shapes.grey_where_all_are(parts)
    if list(parts) == ["train"]:
        parts = {"all": parts["train"]}
    notes += whites.notes()
    info = next(iter(tables.values())).info
    about: dict[str, Any] = {"licence": info.license} if info.license else {}
    about |= {"whites": whites.both()}
    return assembled(name, parts, classes, str(folder), "hf", notes, about)


def _tables(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The splits that are used, in their order, and what is said of the others."""
    need_package()
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever damage makes its readers raise
        raise UserError(
            f"{folder} is no dataset that Hugging Face's save_to_disk has left ({_line(error)})"
        ) from None
    given = found.items() if isinstance(found, Mapping) else [("train", found)]
    splits = {str(name): table for name, table in given}
    used, notes = named(list(splits))
    if "train" not in used:
        raise UserError(f"{folder} has no split train; it has {', '.join(splits)}")
    return {split: splits[name] for split, name in used.items()}, notes


def _features(features: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """The names of the image and the label. UserError, with all there are, if not one of each."""
    kinds = {name: type(feature).__name__ for name, feature in sorted(features.items())}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if "label" in labels and len(images) == 1:
        labels = ["label"]  # others are of a coarser or finer kind
    if len(images) != 1 or len(labels) != 1:
        there = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
        raise UserError(
            f"{folder}: a record must have one feature Image and one ClassLabel, and has {there}; "
            "keep one of each (remove_columns), or make a column of names one with "
            "class_encode_column"
        )
    return images[0], labels[0]


def _records(
    table: Any, image: str, label: str, split: str, folder: Path
) -> Iterator[tuple[str, bytes, int]]:
    """(what it is, the encoded image, the label) of each record."""
    import datasets

    stored = table.cast_column(image, datasets.Image(decode=False)).select_columns([image, label])
    for place, row in enumerate(stored):
        what = f"record {place} of split {split!r} of {folder}"
        encoded = (row[image] or {}).get("bytes")
        if encoded is None:
            raise UserError(f"{what} does not hold its image; save it with the images in it")
        if row[label] is None or row[label] < 0:
            raise UserError(f"{what} has no label ({row[label]})")
        yield what, encoded, row[label]


def _sizes(table: Any, image: str, label: str, folder: Path) -> list[shapes.Size]:
    """The sizes of the images that can be read. UserError if there are none."""
    records = _records(table, image, label, "train", folder)
    sizes = [size for _, encoded, _ in records if (size := shapes.of_file(encoded))]
    if not sizes:
        raise UserError(f"{folder} holds no image that can be read")
    return sizes


def _part(
    table: Any, image: str, label: str, wanted: Spec, split: str, folder: Path, whites: Whites
) -> Part:
    images = room.images(len(table), wanted.image_shape)
    labels = np.empty(len(table), np.int32)
    records = _records(table, image, label, split, folder)
    shown = counted(f"decoding {wanted.name}, {split}", records, len(table))
    for place, (what, encoded, number) in enumerate(shown):
        labels[place] = number
        picture = fitting.fit(decoding.decode(encoded, what), wanted, fitting.Options(), what)
        images[place] = picture.pixels
        whites.see(what, picture)
    return Part(images, labels)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
