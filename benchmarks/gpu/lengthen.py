"""`python -m benchmarks.gpu.lengthen`: a dataset whose training images are repeated to a number.

The published SVHN recipe counts epochs. On the stand-in an epoch has 1,251 steps instead of 4,578,
and after 20 of them the root is far from trained. Repeating the images gives the official number of
steps, with the recipe as it is.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu import answer
from data.base.errors import UserError, run_command
from data.images import datasets, decoded


def lengthen(name: str, count: int, data_dir: str | None, root: Path) -> Path:
    """Write the dataset with its training images repeated in order to `count`; its folder.

    UserError if it has more already, or the folder is the one that it comes from.
    """
    data = datasets.load(name, data_dir, fetch=False)
    if count < len(data.train.labels):
        raise UserError(f"{name} has {len(data.train.labels):,} training images already")
    if data_dir is not None and Path(data_dir).resolve() == root.resolve():
        raise UserError(f"--to {root} is the folder that {name} comes from; name another")
    rows = np.arange(count) % len(data.train.labels)
    arrays = {
        "train_images": data.train.images[rows],
        "train_labels": data.train.labels[rows],
        "test_images": np.asarray(data.test.images),
        "test_labels": data.test.labels,
    }
    title = f"{data.title}, training images repeated to {count:,}"
    about = f"STAND-IN made of {data.source}. Report numbers on it as '{title}'"
    return decoded.write(
        name, root, arrays, version=data.version, description=about, source=data.source
    )


def main(arguments: list[str] | None = None) -> None:
    """Lengthen as the flags say."""
    parser = answer.parser("lengthen", "Repeat a dataset's training images.")
    parser.add_argument("dataset")
    parser.add_argument("count", type=int, help="training images that there are to be")
    parser.add_argument("--data-dir", help="folder of datasets (default: TFDS's own)")
    parser.add_argument("--to", required=True, help="another folder of datasets")
    options = parser.parse_args(arguments)
    folder = lengthen(options.dataset, options.count, options.data_dir, Path(options.to))
    answer.give({"folder": str(folder), "count": options.count}, options.json, str(folder))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
