"""Images that a dataset holds more than once: the most common fault of home-made data."""

import hashlib
from collections.abc import Mapping

import numpy as np

from data.base import tables
from data.base.words import plural

# said where validation images are held out of train, after this is counted
_BOTH_SIDES = (
    ": some may be on both sides of the tenth that is held out for validation, by which epochs and "
    "the tree are chosen"
)


def notes(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """What is to be said of equal images in train, in several splits, and under several classes.

    Args:
      parts: by split in the order train, validation, test, images uint8 [n, h, w, c] as networks
        are given them, and labels [n].

    """
    seen: dict[bytes, str] = {}  # where an image was met first
    classes: dict[bytes, set[int]] = {}
    counts: dict[tuple[str, str], int] = {}
    for split, (images, labels) in parts.items():
        for image, label in zip(images, labels, strict=True):
            key = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            classes.setdefault(key, set()).add(int(label))
            met = key in seen
            first = seen.setdefault(key, split)
            if first != split or (met and split == "train"):
                counts[split, first] = counts.get((split, first), 0) + 1
    result = []
    for (split, first), count in counts.items():
        total = len(parts[split][1])
        if first == split:
            result.append(
                f"{count:,} of {total:,} train images ({tables.percent(count / total)}) are copies "
                f"of others in train{'' if 'validation' in parts else _BOTH_SIDES}"
            )
            continue
        result.append(
            f"{count:,} of {total:,} {split} images ({tables.percent(count / total)}) are "
            f"{first} images as well: the accuracy on {split} is too high by what they are worth"
        )
    double = sum(len(each) > 1 for each in classes.values())
    if double:
        stand = "stands" if double == 1 else "stand"
        result.append(f"{plural(double, 'image')} {stand} under more than one class")
    return result
