"""The datasets by name: what is known of each, and how one is loaded."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.base import reading
from data.base.errors import UserError
from data.images import cache, decoded
from data.images.folders import INFO, need_root, prepared_folder
from data.images.specs import Spec, spec

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
    root = need_root(info, data_dir)
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
