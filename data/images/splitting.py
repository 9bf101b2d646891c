"""The splits of a dataset that is the user's own, as the arrays that every dataset has."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.images import copies, room
from data.images.cache import Arrays
from data.images.specs import Spec
from data.images.strata import stratified

SEED = 0
TEST_SHARE = 0.2
_LEAST = 3  # images a class where there are no splits: one for each of train, validation, test


@dataclass(frozen=True)
class Part:
    """Images uint8 [n, h, w, c] and labels int32 [n] of a split."""

    images: np.ndarray
    labels: np.ndarray


def assembled(
    name: str,
    parts: Mapping[str, Part],
    classes: Sequence[str],
    place: str,
    kind: str,
    notes: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a dataset, and what is known of it: `spec` and `notes`, plain JSON.

    Args:
      name: of the dataset.
      parts: `all`, of which a fixed, stratified fifth becomes test; or `train`, `test` and perhaps
        `validation`, which becomes the end of train.
      classes: names by label.
      place: where it is.
      kind: what it is, of `specs.KINDS`.
      notes: what is to be said of it.
      about: other values of its `Spec` that are known.

    Raises:
      UserError: a class has too few images.

    """
    if "all" in parts:
        parts = _divided(parts["all"], classes, place)
    for split in ("train", "test"):
        if split not in parts or not len(parts[split].labels):
            raise UserError(f"{place} has no {split} images")
    order = [split for split in ("train", "validation", "test") if split in parts]
    said = [*notes, *copies.notes({s: (parts[s].images, parts[s].labels) for s in order})]
    said += _missing(parts, classes, order)
    train, own = parts["train"], parts.get("validation")
    images, labels = train.images, train.labels
    if own is not None:
        images = room.joined(images, own.images)
        labels = np.concatenate([labels, own.labels])
    arrays = {
        "train_images": np.ascontiguousarray(images),
        "train_labels": labels.astype(np.int32),
        "test_images": np.ascontiguousarray(parts["test"].images),
        "test_labels": parts["test"].labels.astype(np.int32),
    }
    spec = Spec(
        name=name,
        title=name,
        tfds_name=None,
        image_shape=tuple(images.shape[1:]),
        class_names=tuple(classes),
        official_sizes=None,
        licence="not known",
        kind=kind,
        place=place,
        validation=0 if own is None else len(own.labels),
    )
    return arrays, {"spec": dataclasses.asdict(spec) | dict(about or {}), "notes": said}


def _divided(whole: Part, classes: Sequence[str], place: str) -> dict[str, Part]:
    counts = np.bincount(whole.labels, minlength=len(classes))
    if counts.min() < _LEAST:
        few = int(counts.argmin())
        raise UserError(
            f"{place}: the class {classes[few]!r} has {counts[few]} images; a dataset without "
            f"splits needs {_LEAST} or more of each, to train, to validate and to test"
        )
    test = stratified(whole.labels, TEST_SHARE, SEED, "own data", "test")
    train = np.setdiff1d(np.arange(len(whole.labels)), test)
    return {
        split: Part(room.gathered(whole.images, rows), whole.labels[rows])
        for split, rows in (("train", train), ("test", test))
    }


def _missing(parts: Mapping[str, Part], classes: Sequence[str], order: Sequence[str]) -> list[str]:
    """What is said of classes that a split has no images of. UserError for train."""
    result = []
    for split in order:
        counts = np.bincount(parts[split].labels, minlength=len(classes))
        empty = [str(classes[int(label)]) for label in np.flatnonzero(counts == 0)]
        if empty and split == "train":
            raise UserError(f"the class {empty[0]!r} has no training images")
        if empty:
            few = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
            result.append(
                f"{split} has no images of {len(empty)} of {len(classes)} classes ({few})"
            )
    return result
