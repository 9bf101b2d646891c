"""Train, validation and test images under a protocol."""

from dataclasses import dataclass

import numpy as np

from data.base.errors import UserError
from data.base.streams import stream
from data.images.datasets import Dataset, Examples
from data.images.on_disk import OnDisk
from data.images.strata import stratified

HELD_OUT = 0.1


@dataclass(frozen=True)
class Splits:
    """`validation` selects models. Under the protocol `published` it is the test split."""

    train: Examples
    validation: Examples
    test: Examples


def split(
    dataset: Dataset, protocol: str, seed: int, limit: int = 0, *, on_disk: bool = False
) -> Splits:
    """The dataset's splits.

    `holdout`: a seeded, class-stratified 10 % of train is held out for model selection; of a
    dataset with a validation split of its own, that split.
    `published`: train is whole and selection looks at test, as the release did.
    With `limit` each split is reduced to so many images, class-stratified. With `on_disk` the
    images of train and validation are not copied into memory: they are read when they are indexed
    (`OnDisk`). Those of test are never copied but for `limit`.
    """
    train, test = dataset.train, dataset.test
    if on_disk:
        train = _on_disk(train)
    if protocol == "published":
        held_out, kept = None, np.arange(len(train.labels))
    else:
        own = dataset.spec.validation  # the last images of train
        held_out = np.arange(len(train.labels) - own, len(train.labels))
        if not own:
            held_out = stratified(train.labels, HELD_OUT, seed, "validation")
        kept = np.setdiff1d(np.arange(len(train.labels)), held_out)
    if limit:
        kept = _limited(train.labels, kept, limit, seed, "limit train")
        test = _take(test, _limited(test.labels, np.arange(len(test.labels)), limit, seed, "limit"))
        if held_out is not None:
            held_out = _limited(train.labels, held_out, limit, seed, "limit validation")
    names = dataset.spec.class_names
    _check_classes(train.labels[kept], names, protocol, limit, dataset.spec.validation)
    train_part = _take(train, kept) if len(kept) < len(train.labels) else train
    if held_out is None:
        return Splits(train_part, _on_disk(test) if on_disk else test, test)
    return Splits(train_part, _take(train, held_out), test)


def _check_classes(
    labels: np.ndarray, names: tuple[str, ...], protocol: str, limit: int, own: int
) -> None:
    """UserError if a class has no training image: no node could be trained for it."""
    classes = len(names)
    missing = classes - len(np.unique(labels))
    if not missing:
        return
    advice = "the dataset needs images of each"
    if limit and limit == len(labels):
        advice = "raise --limit"
    elif protocol != "published" and not own:
        advice = "one image of each is held out, so the dataset needs at least two"
    raise UserError(
        f"{len(labels)} training images leave {missing} of {classes} classes without any; {advice}"
    )


def _limited(labels: np.ndarray, rows: np.ndarray, limit: int, seed: int, name: str) -> np.ndarray:
    """`limit` of `rows`: classes take turns, each in a random order of its own."""
    if limit >= len(rows):
        return rows
    turn = np.empty(len(rows), np.int64)
    for label in np.unique(labels[rows]):
        places = np.flatnonzero(labels[rows] == label)
        turn[places] = stream(seed, name, int(label)).permutation(len(places))
    return np.sort(rows[np.argsort(turn, kind="stable")[:limit]])


def _on_disk(examples: Examples) -> Examples:
    if isinstance(examples.images, OnDisk):
        return examples
    return Examples(OnDisk(examples.images, np.arange(len(examples.labels))), examples.labels)


def _take(examples: Examples, rows: np.ndarray) -> Examples:
    images, labels = examples.images, examples.labels[rows]
    if isinstance(images, OnDisk):
        return Examples(OnDisk(images.stored, images.rows[rows]), labels)
    return Examples(images[rows], labels)
