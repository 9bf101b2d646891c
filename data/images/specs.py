"""What is known of each dataset without reading it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import UserError


@dataclass(frozen=True)
class Spec:
    """A dataset as a value: all that a run needs to know of it but the images.

    A run keeps it in its `config.json`, so that whatever reads the run needs no name of ours.

    Attributes:
      name: short, part of file names.
      title: what reports call it.
      tfds_name: of those that TFDS prepares, with the configuration.
      image_shape: (height, width, channels).
      class_names: in the order of the labels.
      official_sizes: images of the official train and test splits, None where there are none.
      licence: in a few words.
      light_strokes: its images are light strokes on a dark ground, so that dark ink on paper has to
        be inverted.
      turned: they are stored with rows and columns exchanged.
      kind: where its images come from, one of `KINDS`.
      place: the file or folder of those that are the user's own.
      validation: so many images at the end of `train` are its own validation split; 0: none.
      whites: what is white in integers and in floats of more than 8 bits, where an image's file
        does not say; 0: by the image's own values.

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
    kind: str = "tfds"
    place: str = ""
    validation: int = 0
    whites: tuple[float, float] = (0.0, 0.0)

    @property
    def tfds_folder(self) -> Path:
        """Where TFDS keeps it, below its data folder; of a dataset that has a `tfds_name`."""
        assert self.tfds_name is not None, f"{self.name} is none of TFDS's"
        return Path(self.tfds_name)


KINDS = ("tfds", "sklearn", "prepared", "folder", "npz", "arrays", "hf")
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
            kind="sklearn",
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


_NO_NAMES = set('/\\:*?"<>|\0\n\r')  # what a file's name may not hold on some system


def check(spec: Spec) -> Spec:
    """The spec itself; UserError naming the first value that makes no sense."""
    height, width, channels = spec.image_shape
    good = {
        f"the name {spec.name!r:.80}": spec.name and not _NO_NAMES & set(spec.name),
        f"the image shape {spec.image_shape}": min(height, width) >= 1 and channels in (1, 3),
        f"{len(spec.class_names)} classes": len(set(spec.class_names)) > 1,
        "a class twice": len(set(spec.class_names)) == len(spec.class_names),
        f"the kind {spec.kind!r:.80}": spec.kind in KINDS,
        f"{spec.validation} validation images": spec.validation >= 0,
        f"the whites {spec.whites}": min(spec.whites) >= 0,
    }
    for what, fine in good.items():
        if not fine:
            raise UserError(f"no dataset can have {what}")
    return spec


def from_json(value: dict[str, Any]) -> Spec:
    """A spec from the plain values of `dataclasses.asdict`, which JSON has made lists of tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return check(Spec(**plain))


def spec(name: str) -> Spec:
    """The `Spec` called `name`. Raises UserError, with the choices, if there is none."""
    if name not in SPECS:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(SPECS)}")
    return SPECS[name]
