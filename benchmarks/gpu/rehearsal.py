"""Random images in place of the datasets, for a rehearsal on any machine."""

from pathlib import Path

import numpy as np

from benchmarks.gpu import packing
from data.images import decoded, specs

COUNT = 96  # of each split


def write(root: Path) -> None:
    """Write small datasets of noise under their names, where there is none yet."""
    for name in packing.DATASETS:
        info = specs.spec(name)
        if decoded.folder_of(name, root).exists():
            continue
        rng, arrays = np.random.default_rng(0), {}
        classes = len(info.class_names)
        for split in ("train", "test"):
            shape = (COUNT, *info.image_shape)
            arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
            arrays[f"{split}_labels"] = np.arange(COUNT, dtype=np.int32) % classes
        about = "STAND-IN of random pixels. Report numbers on it as 'noise'"
        decoded.write(name, root, arrays, version="0", description=about, source="random")
