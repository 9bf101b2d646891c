"""Datasets as decoded arrays in a folder: read without TFDS, and checked.

`ROOT/<name>-decoded/` holds `train_images.npy`, `train_labels.npy`, `test_images.npy`,
`test_labels.npy` and `about.json`. It is for machines on which TFDS is not installed.
"""

from pathlib import Path

import numpy as np

from data.base import reading, writing
from data.base.errors import UserError
from data.images import cache
from data.images.cache import NAMES, SPLITS, Arrays

ABOUT: reading.Form = {"fingerprint": str, "version": str, "description": str, "source": str}
Shape = tuple[int, int, int]


def folder_of(name: str, root: Path) -> Path:
    """Where a dataset's arrays lie under a data folder."""
    return root / f"{name}-decoded"


def write(
    name: str, root: Path, arrays: Arrays, *, version: str, description: str, source: str
) -> Path:
    """Write the arrays (`cache.NAMES`) beside their folder, rename it, and return it.

    An older folder of that name is replaced. `about.json` holds the arrays' fingerprint.
    """
    target = folder_of(name, root)
    with writing.new_folder(target, replace=True) as made:
        for key in NAMES:
            np.save(made / f"{key}.npy", arrays[key], allow_pickle=False)
        about = {"fingerprint": cache.fingerprint(arrays), "version": version}
        about |= {"description": description, "source": source}
        writing.write_json(made / "about.json", about)
    return target


def read(name: str, root: Path, shape: Shape, classes: int) -> tuple[Arrays, dict[str, str]]:
    """(arrays, read-only and mapped, `about.json`).

    `shape`: height, width and channels of an image. UserError if a file is missing or damaged,
    or the arrays are not what was written or not of this dataset.
    """
    folder = folder_of(name, root)
    about = reading.json_of_form(folder / "about.json", ABOUT, "about decoded arrays")
    arrays = {}
    for key in NAMES:
        file = folder / f"{key}.npy"
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file} cannot be read ({error}); make {folder} again") from None
        arrays[key] = array
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        fit = images.dtype == np.uint8 and images.shape == (len(labels), *shape)
        fit = fit and labels.dtype == np.int32 and labels.ndim == 1 and len(labels) > 0
        if not fit or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{folder} is not {name}: its {split} images or labels do not fit it")
    if cache.fingerprint(arrays) != about["fingerprint"]:
        raise UserError(f"{folder} is damaged: its fingerprint is another; make it again")
    return arrays, about
