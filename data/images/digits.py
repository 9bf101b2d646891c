"""scikit-learn's 8x8 handwritten digits, with a train and test split of our own."""

import importlib.metadata

import numpy as np

from data.base.streams import stream

SEED = 0
TEST_SHARE = 0.2
DESCRIPTION = (
    "1,797 handwritten digits (UCI) as scikit-learn ships them. They have no official split: "
    "a fifth of each class, drawn with a fixed seed, is the test split."
)


def version() -> str:
    """The version of scikit-learn, found without the seconds that importing it takes."""
    return importlib.metadata.version("scikit-learn")


def arrays() -> dict[str, np.ndarray]:
    """Both splits in scikit-learn's order, under the names of `cache.NAMES`.

    Images uint8 [N, 8, 8, 1], ink 0 to 16 stretched to 0 to 255; labels int32 [N].
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    test = _test_mask(labels)
    return {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Which examples are test: bool [N], the same share of every class."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = stream(SEED, "digits", "test", int(label)).permutation(members)
        mask[order[: round(TEST_SHARE * len(members))]] = True
    return mask
