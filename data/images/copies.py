"""Images that a dataset holds more than once: the most common fault of home-made data."""

import hashlib
from collections.abc import Mapping

import numpy as np

from data.base import tables


def notes(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """What is to be said of equal images in several splits, and under several classes.

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
            first = seen.setdefault(key, split)
            if first != split:
                counts[split, first] = counts.get((split, first), 0) + 1
    result = []
    for (split, first), count in counts.items():
        total = len(parts[split][1])
        result.append(
            f"{count:,} of {total:,} {split} images ({tables.percent(count / total)}) are "
            f"{first} images as well: the accuracy on {split} is too high by what they are worth"
        )
    double = sum(len(each) > 1 for each in classes.values())
    if double:
        result.append(f"{double:,} images stand under more than one class")
    return result
