"""Any dataset that TFDS has prepared on disk, of which no more is known than its own files say.

It must have one image and one class label in a record; PNG or JPEG, of any size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data.base.errors import UserError
from data.base.progress import counted
from data.images import decoding, fitting, known_tfds, prepared, room, shapes
from data.images.cache import Arrays
from data.images.specs import Spec
from data.images.splitting import Part, assembled, named
from data.images.whites import Whites


def decode(
    found: Spec, folder: Path, name: str, asked: shapes.Asked
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a prepared folder, and what is known of it: `spec` and `notes`, plain JSON.

    The splits train, validation and test are used; without test, validation becomes test, and
    of a dataset with train alone a fixed, stratified fifth.

    Args:
      found: what is known of it before its folder is read: its name, and TFDS's.
      folder: that of its version.
      name: what the dataset is called here.
      asked: size and channels.

    Raises:
      UserError: a folder that is damaged, or has other than one image and one label a record.

    """
    builder = prepared.builder_of(found, folder)
    image, label = _features(builder, found, folder)
    classes = known_tfds.names(str(found.tfds_name), tuple(builder.info.features[label].names))
    splits, left_out = named(list(builder.info.splits))
    if "train" not in splits:
        raise UserError(f"{folder} has no split train; it has {', '.join(builder.info.splits)}")
    prepared.need_shards(builder, found, folder, list(splits.values()))
    stored = {
        split: prepared.records(builder, found, folder, given) for split, given in splits.items()
    }
    *given, channels = builder.info.features[image].shape
    size = asked.size
    if size is None and None not in given and min(given) >= shapes.LEAST:
        size = tuple(given) if max(given) <= shapes.LARGEST_OWN else None
    size = size or shapes.chosen(_sizes(stored["train"], image, label, found, folder))
    channels = asked.channels or (channels if channels in (1, 3) else 0)
    wanted = shapes.plain_spec(name, (*size, channels or 3), classes)
    whites = Whites()

    def read(wanted: Spec) -> dict[str, Part]:
        return {
            split: _part(rows, image, label, wanted, (found, folder, split), whites)
            for split, rows in stored.items()
        }

    parts = whites.in_one_range(wanted, read)
    if not channels:
        parts = shapes.grey_where_all_are(parts)
    if list(parts) == ["train"]:
        parts = {"all": parts["train"]}
    about = {"tfds_name": found.tfds_name} | known_tfds.about(str(found.tfds_name))
    about |= {"whites": whites.both()}
    parts, classes, notes = _used(parts, classes)
    notes += [*left_out, *whites.notes()]
    return assembled(name, parts, classes, "", "prepared", notes, about)


def _used(
    parts: dict[str, Part], classes: tuple[str, ...]
) -> tuple[dict[str, Part], tuple[str, ...], list[str]]:
    """The splits and classes without those classes that no image is of, and a line about them."""
    used = np.unique(np.concatenate([part.labels for part in parts.values()]))
    if len(used) == len(classes):
        return parts, classes, []
    renumbered = np.zeros(len(classes), np.int32)
    renumbered[used] = np.arange(len(used), dtype=np.int32)
    parts = {split: Part(part.images, renumbered[part.labels]) for split, part in parts.items()}
    absent = [classes[label] for label in np.setdiff1d(np.arange(len(classes)), used)]
    few = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
    note = f"{len(absent)} of {len(classes)} classes have no images and are left out ({few})"
    return parts, tuple(classes[label] for label in used), [note]


def _features(builder: Any, found: Spec, folder: Path) -> tuple[str, str]:
    """The names of the image and the label. UserError, with all there are, if not one of each."""
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise UserError(f"dataset {found.name!r} in {folder}: its records are no features by name")
    kinds = {name: type(feature).__name__ for name, feature in sorted(features.items())}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if "label" in labels and len(images) == 1:
        labels = ["label"]  # cifar100 has a coarse one as well
    if len(images) != 1 or len(labels) != 1:
        there = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(
            f"dataset {found.name!r} in {folder}: a record must have one image and one class "
            f"label, and has {there}"
        )
    return images[0], labels[0]


def _part(
    rows: Sequence[bytes],
    image: str,
    label: str,
    wanted: Spec,
    where: tuple[Spec, Path, str],
    whites: Whites,
) -> Part:
    found, folder, split = where
    images = room.images(len(rows), wanted.image_shape)
    labels = np.empty(len(rows), np.int32)
    shown = counted(f"decoding {found.name}, {split}", rows, len(rows))
    for place, row in enumerate(shown):
        what = f"record {place} of split {split!r} of {folder}"
        encoded, labels[place] = _parts(row, image, label, found, folder)
        picture = fitting.fit(decoding.decode(encoded, what), wanted, fitting.Options(), what)
        images[place] = picture.pixels
        whites.see(what, picture)
        if not 0 <= labels[place] < len(wanted.class_names):
            raise UserError(f"{what} has the label {labels[place]}, which is no class")
    return Part(images, labels)


def _parts(row: bytes, image: str, label: str, found: Spec, folder: Path) -> tuple[bytes, int]:
    """The encoded image and the label of a record."""
    try:
        features = tf_example_pb2.Example.FromString(row).features.feature
        (encoded,) = features[image].bytes_list.value
        (number,) = features[label].int64_list.value
    except Exception as error:  # whatever damage makes protobuf raise
        raise UserError(
            f"dataset {found.name!r} in {folder}: a record is damaged ({error!s:.100}); prepare it "
            "again"
        ) from None
    return encoded, number


def _sizes(
    rows: Sequence[bytes], image: str, label: str, found: Spec, folder: Path
) -> list[shapes.Size]:
    """The sizes of the images that can be read. UserError if there are none."""
    sizes = [shapes.of_file(_parts(row, image, label, found, folder)[0]) for row in rows]
    if not any(sizes):
        raise UserError(f"dataset {found.name!r} in {folder} holds no image that can be read")
    return [size for size in sizes if size]
