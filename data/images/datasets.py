"""The datasets by name: what is known of each, and how one is loaded."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.base import reading
from data.base.errors import UserError
from data.images import cache, decoded
from data.run import runfolder


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


INFO = "dataset_info.json"  # in the folder of a version; TFDS writes it last
_NAMES = ("name", "configName")  # in that file: whose it is
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # gs://, hf://; not C:/
# What is read of TFDS's `dataset_info.json`; TFDS fills the template in as a format string.
_ABOUT: reading.Form = {
    "version": str,
    "description?": str,
    "splits": [{"name": str, "shardLengths": [str], "filepathTemplate?": str}],
}
_TEMPLATE = re.compile(r"([\w.-]|\{[A-Z_]{1,20}\}){1,200}")


@dataclass(frozen=True)
class Examples:
    """One split in stored order: images uint8 [N, H, W, C], labels int32 [N], both read-only."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset.

    `fingerprint` is the SHA-256 over images and labels of both splits (`cache.fingerprint`),
    `source` says where they came from, `version` and `description` are the source's own.
    """

    spec: Spec
    train: Examples
    test: Examples
    fingerprint: str
    source: str
    version: str
    description: str

    @property
    def stand_in(self) -> bool:
        """Whether these are not the official splits, so that no report calls them that."""
        sizes = (len(self.train.labels), len(self.test.labels))
        unofficial = self.spec.official_sizes not in (None, sizes)
        return unofficial or self.description.startswith("STAND-IN")

    @property
    def title(self) -> str:
        """The name to report results under; a stand-in's own description may give it."""
        if not self.stand_in:
            return self.spec.title
        given = re.search(r"Report numbers on it as '([^']+)'", self.description)
        return given[1] if given else f"{self.spec.title} stand-in"


def spec(name: str) -> Spec:
    """The `Spec` called `name`. Raises UserError, with the choices, if there is none."""
    if name not in SPECS:
        raise UserError(f"unknown dataset {name!r}; choose from {', '.join(SPECS)}")
    return SPECS[name]


def data_root(data_dir: str | Path | None = None) -> Path:
    """TFDS's data folder: `data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets.

    It need not be there. UserError if it begins with the home folder of a user that there is
    not, or is an address.
    """
    named, folder = _named(data_dir)
    if _ADDRESS.match(folder):
        raise UserError(
            f"{named} {folder} is an address, and datasets are read from folders of this machine; "
            "copy it to one, and name that"
        )
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # ~ of a user that there is not
        raise UserError(
            f"{named} {folder}: no such home folder; pass --data-dir DIR or set TFDS_DATA_DIR"
        ) from None


def _named(data_dir: str | Path | None) -> tuple[str, str]:
    """What names the data folder (for messages), and the folder as it is named."""
    if data_dir:
        return "--data-dir", str(data_dir)
    if folder := os.environ.get("TFDS_DATA_DIR"):
        return "TFDS_DATA_DIR", folder
    return "the default --data-dir", "~/tensorflow_datasets"


def _need_root(spec: Spec, data_dir: str | Path | None) -> Path:
    """`data_root`; UserError if the user has named a folder that is not there."""
    root = data_root(data_dir)
    named, _ = _named(data_dir)
    if root.exists() or not (data_dir or os.environ.get("TFDS_DATA_DIR")):
        return root
    raise UserError(
        f"{named} {root} does not exist; correct it, or make and fill it with python -m "
        f"data.prepare {spec.name} --data-dir {root}"
    )


def prepared_folder(spec: Spec, root: Path) -> Path | None:
    """The folder in which TFDS keeps the dataset, its newest version; None if there is none.

    `root`: TFDS's data folder, the dataset's own folder in it, or that of a version. UserError for
    a version of another dataset, and where there is none but one that is not whole.
    """
    if (root / INFO).exists():
        _need_own(spec, root)
        return root
    places = [root / spec.tfds_name, *_own_folders(spec, root)]
    versions = [path for place in places for path in place.glob("*") if _is_version(path)]
    if _is_version(root) and _own_folders(spec, root.absolute().parent):
        versions.append(root)
    whole = [folder for folder in versions if (folder / INFO).exists()]
    broken = [folder for folder in versions if folder == root or any(folder.iterdir())]
    if broken and not whole:
        raise UserError(
            f"dataset {spec.name!r} in {broken[0]}: {INFO} is missing, as after a copy that broke "
            f"off; copy it whole, or delete {broken[0]} and prepare it again (python -m "
            f"data.prepare {spec.name} --data-dir DIR)"
        )
    return max(whole, key=lambda folder: [*map(int, folder.name.split("."))], default=None)


def _is_version(folder: Path) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", folder.name) is not None and folder.is_dir()


def _own_folders(spec: Spec, root: Path) -> list[Path]:
    """Where versions lie if `root` is the dataset's own folder; of emnist/balanced also emnist."""
    parts, names = tuple(spec.tfds_name.split("/")), root.absolute().parts
    return [
        root.joinpath(*parts[taken:])
        for taken in range(1, len(parts) + 1)
        if names[-taken:] == parts[:taken]
    ]


def _need_own(spec: Spec, folder: Path) -> None:
    """UserError if a version's folder says that it is another dataset's."""
    about = reading.json_file(folder / INFO)
    name, config = (about.get(k) if isinstance(about, dict) else None for k in _NAMES)
    found = f"{name}/{config}" if config else name
    if isinstance(name, str) and found != spec.tfds_name:
        raise UserError(
            f"--data-dir {folder} holds {found!s:.80}, not {spec.tfds_name}; name another folder"
        )


def load_of_run(run: Path, name: str, data_dir: str | Path | None = None) -> Dataset:
    """The dataset of a run: in `data_dir`, else where the run was trained with it.

    It is not downloaded: a file says which it is, and where, and nobody has asked for it.
    """
    return load(name, data_dir or runfolder.data_dir(run), fetch=False)


def load(name: str, data_dir: str | Path | None = None, *, fetch: bool = True) -> Dataset:
    """Load a dataset; with `fetch` prepare (download) it first where `data_dir` has none yet.

    `data_dir` is a TFDS data folder, by default `data_root()`; it may be read-only once it
    is prepared. Where it holds the dataset as decoded arrays (`data.images.decoded`) those are
    used. Raises UserError for an unknown name, a folder that cannot be read or does not hold
    what it should, and a download that fails.
    """
    info = spec(name)
    if info.tfds_name is None:
        return _load_digits(info)
    root = _need_root(info, data_dir)
    if decoded.folder_of(name, root).is_dir():
        return _load_decoded(info, root)
    folder = prepared_folder(info, root)
    if folder is None and not fetch:
        raise UserError(
            f"dataset {name!r} is not prepared in {root / info.tfds_name}; prepare it with python "
            f"-m data.prepare {name} --data-dir DIR, and pass --data-dir DIR or set TFDS_DATA_DIR"
        )
    if folder is None:
        from data.images import originals as prepare

        folder = prepare.prepare(info, root)
    text, version, description = _about(info, folder)

    def decode() -> cache.Arrays:
        # Imported here: a start from the cache must not pay for TFDS.
        from data.images import prepared

        return prepared.decode(info, folder)

    files = sorted((path.name, path.stat()) for path in folder.iterdir())
    listing = "".join(f"\n{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    key = text + listing.encode()
    return _dataset(info, key, decode, str(folder.absolute()), version, description)


def _load_decoded(info: Spec, root: Path) -> Dataset:
    arrays, about = decoded.read(info.name, root, info.image_shape, len(info.class_names))
    return _of_arrays(
        info, arrays, about["fingerprint"], about["source"], about["version"], about["description"]
    )


def check(spec: Spec, folder: Path) -> None:
    """UserError if a prepared folder is not whole, as far as can be told without decoding it."""
    from data.images import prepared

    _about(spec, folder)
    prepared.opened(spec, folder)


def _about(spec: Spec, folder: Path) -> tuple[bytes, str, str]:
    """A prepared folder's `dataset_info.json`, and version and description in it."""
    text = reading.content(folder / INFO, reading.MOST_JSON)
    try:
        about = reading.json_text(text)
        reading.need(about, _ABOUT)
        if not all(_TEMPLATE.fullmatch(s.get("filepathTemplate", "x")) for s in about["splits"]):
            raise ValueError
        return text, about["version"], about.get("description", "")
    except (ValueError, RecursionError):
        raise UserError(
            f"dataset {spec.name!r}: {folder / INFO} is damaged; delete that folder and prepare "
            "it again"
        ) from None


def _load_digits(info: Spec) -> Dataset:
    from data.images import digits

    version = digits.version()
    key = f"{version} {digits.SEED} {digits.TEST_SHARE}".encode()
    return _dataset(
        info, key, digits.arrays, f"scikit-learn {version}", version, digits.DESCRIPTION
    )


def _dataset(
    info: Spec,
    key: bytes,
    build: Callable[[], cache.Arrays],
    source: str,
    version: str,
    description: str,
) -> Dataset:
    arrays, fingerprint = cache.fetch(info.name, key, build)
    return _of_arrays(info, arrays, fingerprint, source, version, description)


def _of_arrays(
    info: Spec,
    arrays: cache.Arrays,
    fingerprint: str,
    source: str,
    version: str,
    description: str,
) -> Dataset:
    train, test = (Examples(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in cache.SPLITS)
    return Dataset(info, train, test, fingerprint, source, version, description)
