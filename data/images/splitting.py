"""The splits of a dataset that is the user's own, as the arrays that every dataset has."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.base.words import plural, printable
from data.images import copies, room
from data.images.cache import Arrays
from data.images.specs import Spec
from data.images.strata import stratified

SEED = 0
TEST_SHARE = 0.2
# What the folders and tables of a split are called, in any case.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SHOWN = 3  # names in a note
_LEAST = 3  # images a class where there are no splits: one for each of train, validation, test


def split_of(name: str) -> str | None:
    """The split that a folder or table of this name is, `train`, `validation` or `test`."""
    return next((split for split, names in NAMES.items() if name.casefold() in names), None)


def named(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which of a dataset's tables is which split, in the order of splits, and what is said of more.

    Where a split has several names the first of `NAMES` counts.
    """
    there = {name.casefold(): name for name in names}
    firsts = {split: [each for each in known if each in there] for split, known in NAMES.items()}
    found = {split: there[each[0]] for split, each in firsts.items() if each}
    others = [name for name in names if name not in found.values()]
    few = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return found, [f"not used: {few}"] if others else []


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
        `validation`, which becomes the end of train. Without `test`, `validation` becomes test.
      classes: names by label.
      place: where it is.
      kind: what it is, of `specs.KINDS`.
      notes: what is to be said of it.
      about: other values of its `Spec` that are known.

    Raises:
      UserError: a class has too few images.

    """
    notes, classes = list(notes), [printable(each) for each in classes]  # shown in tables, notes
    if "test" not in parts and "validation" in parts:
        parts = {"train": parts["train"], "test": parts["validation"]}
        notes.append("there is no test split: the validation images are used as test")
    if "all" in parts:
        parts = _divided(parts["all"], classes, place)
    for split in ("train", "test"):
        if split not in parts or not len(parts[split].labels):
            raise UserError(f"{place} has no {split} images")
    order = [split for split in ("train", "validation", "test") if split in parts]
    said = [*notes, *copies.notes({s: (parts[s].images, parts[s].labels) for s in order})]
    said += _missing(parts, classes, order, place)
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
    known = {
        key: printable(each) if isinstance(each, str) else each
        for key, each in (about or {}).items()
    }
    return arrays, {
        "spec": dataclasses.asdict(spec) | known,
        "notes": list(map(printable, said)),
    }


def _divided(whole: Part, classes: Sequence[str], place: str) -> dict[str, Part]:
    counts = np.bincount(whole.labels, minlength=len(classes))
    if counts.min() < _LEAST:
        few = int(counts.argmin())
        raise UserError(
            f"{place}: the class {classes[few]!r} has {plural(counts[few], 'image')}; a dataset "
            f"without splits needs {_LEAST} or more of each, to train, to validate and to test"
        )
    test = stratified(whole.labels, TEST_SHARE, SEED, "own data", "test")
    train = np.setdiff1d(np.arange(len(whole.labels)), test)
    return {
        split: Part(room.gathered(whole.images, rows), whole.labels[rows])
        for split, rows in (("train", train), ("test", test))
    }


def _missing(
    parts: Mapping[str, Part], classes: Sequence[str], order: Sequence[str], place: str
) -> list[str]:
    """What is said of classes that a split has no images of. UserError for train."""
    result = []
    for split in order:
        counts = np.bincount(parts[split].labels, minlength=len(classes))
        empty = [str(classes[int(label)]) for label in np.flatnonzero(counts == 0)]
        if empty and split == "train":
            where = f"{place}: " if place else ""
            raise UserError(f"{where}the class {empty[0]!r} has no training images")
        if empty:
            few = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
            result.append(
                f"{split} has no images of {len(empty)} of {len(classes)} classes ({few})"
            )
    return result
