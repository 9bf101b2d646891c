"""What is known of each dataset without reading it."""

from dataclasses import dataclass

from data.base.errors import UserError


@dataclass(frozen=True)
class Spec:
    """What is known of a dataset without reading it.

    `tfds_name` is `None` for the dataset that ships with scikit-learn; `image_shape` is
    (height, width, channels); `official_sizes` counts the images of the official train and
    test splits, `None` where there is no official split; `light_strokes` says that its images are
    light strokes on a dark ground, so that dark ink on paper has to be inverted; `turned` that
    they are stored with rows and columns exchanged.
    """

    name: str
    title: str
    tfds_name: str | None
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    official_sizes: tuple[int, int] | None
    licence: str
    light_strokes: bool = False
    turned: bool = False


_DIGITS = tuple("0123456789")


SPECS = {
    entry.name: entry
    for entry in (
        Spec(
            name="digits",
            title="digits (scikit-learn)",
            tfds_name=None,
            image_shape=(8, 8, 1),
            class_names=_DIGITS,
            official_sizes=None,
            licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
            light_strokes=True,
        ),
        Spec(
            name="svhn",
            title="SVHN (cropped)",
            tfds_name="svhn_cropped",
            image_shape=(32, 32, 3),
            class_names=_DIGITS,
            official_sizes=(73257, 26032),
            licence="non-commercial use only",
        ),
        Spec(
            name="emnist",
            title="EMNIST Balanced",
            tfds_name="emnist/balanced",
            image_shape=(28, 28, 1),
            class_names=_DIGITS + tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + tuple("abdefghnqrt"),
            official_sizes=(112800, 18800),
            licence="none stated; drawn from NIST Special Database 19, a US government work",
            light_strokes=True,
            turned=True,
        ),
        Spec(
            name="cifar10",
            title="CIFAR-10",
            tfds_name="cifar10",
            image_shape=(32, 32, 3),
            class_names=(
                *("airplane", "automobile", "bird", "cat", "deer"),
                *("dog", "frog", "horse", "ship", "truck"),
            ),
            official_sizes=(50000, 10000),
            licence="none stated by its authors; they ask to be cited (Krizhevsky, 2009)",
        ),
    )
}


def spec(name: str) -> Spec:
    """The `Spec` called `name`. Raises UserError, with the choices, if there is none."""
    if name not in SPECS:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(SPECS)}")
    return SPECS[name]
