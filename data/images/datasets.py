"""Datasets as values: what is known of each, its images, and how one is loaded.

`load` takes what `--dataset` takes; `load_again` the dataset that a run keeps as a value.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.base import reading
from data.base.errors import UserError
from data.images import cache, decoded, shapes, specs, stand_ins
from data.images.folders import INFO, need_root, prepared_folder
from data.images.on_disk import Images
from data.images.specs import Spec

# What is read of TFDS's `dataset_info.json`; TFDS fills the template in as a format string.
_ABOUT: reading.Form = {
    "version": str,
    "description?": str,
    "splits": [{"name": str, "shardLengths": [str], "filepathTemplate?": str}],
}
PREFIX = "tfds:"  # of the name of any dataset that TFDS has prepared
SAVED = "hf:"  # of the folder of one that Hugging Face's save_to_disk has left
_TEMPLATE = re.compile(r"([\w.-]|\{[A-Z_]{1,20}\}){1,200}")


@dataclass(frozen=True)
class Examples:
    """One split in stored order: images uint8 [N, H, W, C], labels int32 [N], both read-only."""

    images: Images
    labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.images.shape
        return height, width, channels


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset.

    `fingerprint` is the SHA-256 over images and labels of both splits (`cache.fingerprint`),
    `source` says where they came from, `version` and `description` are the source's own; `notes` is
    what is to be said of it before it is used.
    """

    spec: Spec
    train: Examples
    test: Examples
    fingerprint: str
    source: str
    version: str
    description: str
    notes: tuple[str, ...] = ()

    @property
    def stand_in(self) -> bool:
        """Whether these are not the official splits, so that no report calls them that."""
        return stand_ins.is_stand_in(self.spec, self._sizes, self.description)

    @property
    def title(self) -> str:
        """The name to report results under; a stand-in's own description may give it."""
        return stand_ins.title_of(self.spec, self._sizes, self.description)

    @property
    def _sizes(self) -> tuple[int, int]:
        return len(self.train.labels), len(self.test.labels)


def load(
    name: str, data_dir: str | Path | None = None, *, fetch: bool = True, image_size: int = 0
) -> Dataset:
    """Load a dataset; with `fetch` prepare (download) it first where there is none yet.

    Args:
      name: one of `specs.SPECS`, a folder of class folders, an `.npz` file, `tfds:NAME`, one
        that TFDS has prepared, or `hf:FOLDER`, one that Hugging Face's `save_to_disk` has left.
      data_dir: of those that TFDS prepares, its data folder, by default `data_root()`; it may be
        read-only once it is prepared. Where it holds the dataset as decoded arrays
        (`data.images.decoded`) those are used.
      fetch: whether to download what is not there.
      image_size: of the user's own data, the side that images are brought to; 0: by what they are.

    Raises:
      UserError: an unknown name, a folder that cannot be read or does not hold what it should, a
        download that fails.

    """
    if name in specs.SPECS:
        if image_size:
            raise UserError(f"--image-size is for data of your own; {name} has its size")
        known = specs.SPECS[name]
        return _LOADERS[known.kind](known, data_dir, fetch)
    asked = shapes.Asked(shapes.square(image_size) if image_size else None)
    if name.startswith(PREFIX):
        return _load_prepared(_tfds_name(name), short_name(name), asked, data_dir)
    place = own_place(name)
    return _OWN[_kind_of(name, place)](place, own_name(place), asked)


def load_again(spec: Spec, data_dir: str | Path | None = None) -> Dataset:
    """The dataset that `spec` tells of, as a run had it; nothing is downloaded.

    `data_dir`: where it is now. UserError if it is not there, or has other classes.
    """
    if spec.kind in _LOADERS:
        return _LOADERS[spec.kind](spec, data_dir, False)
    asked = shapes.Asked(spec.image_shape[:2], spec.image_shape[2])
    if spec.kind == "prepared":
        return _same_classes(_load_prepared(str(spec.tfds_name), spec.name, asked, data_dir), spec)
    place = Path(data_dir or spec.place)
    if not place.exists() or not (data_dir or spec.place):
        raise UserError(
            f"the images of {spec.name} are not at {spec.place or 'a place that is known'} any "
            "more; pass --data-dir with the folder or .npz file that they are in now"
        )
    kind = "hf" if spec.kind == "hf" else _kind_of("", place)
    return _same_classes(_OWN[kind](place, spec.name, asked), spec)


def _kind_of(name: str, place: Path) -> str:
    """How the user's own data are read, of `_OWN`."""
    if name.startswith(SAVED):
        return "hf"
    return "npz" if _is_npz(place) and not place.is_dir() else "folder"


def _is_npz(place: Path) -> bool:
    return place.suffix.lower() == ".npz"


def located(name: str) -> str:
    """The dataset's name as it holds in every folder. UserError if the user's own is not there."""
    if name in specs.SPECS or name.startswith(PREFIX):
        return name
    return (SAVED if name.startswith(SAVED) else "") + str(own_place(name))


def _same_classes(found: Dataset, spec: Spec) -> Dataset:
    """The dataset itself. UserError if it has other classes than a run's."""
    if found.spec.class_names != spec.class_names:
        raise UserError(f"{found.source} has other classes than {spec.name} of the run")
    return found


def _tfds_name(name: str) -> str:
    """What TFDS calls a dataset `tfds:NAME`. UserError where nothing is named."""
    if name == PREFIX:
        raise UserError(f"--dataset {name} names no dataset; give its name too: tfds:cifar100")
    return name.removeprefix(PREFIX)


def unknown(tfds_name: str) -> Spec:
    """What is known of one of TFDS's datasets before its folder is read: where TFDS keeps it."""
    name = f"{PREFIX}{tfds_name}"
    return Spec(name, name, tfds_name, (1, 1, 1), (), None, "not known", kind="prepared")


def own_place(name: str) -> Path:
    """The folder or file of a dataset of the user's own. UserError if there is none."""
    saved = name.startswith(SAVED)
    if name == SAVED:
        raise UserError(f"--dataset {name} names no folder; give hf: and a folder")
    place = reading.at_home(name.removeprefix(SAVED))
    if place.is_dir() or (_is_npz(place) and place.is_file() and not saved):
        return place.absolute()
    if saved:
        raise UserError(f"--dataset {name!r:.200} names no folder; give hf: and a folder")
    if place.exists():
        advice = "save images and labels as .npz" if place.suffix == ".npy" else "unpack an archive"
        raise UserError(
            f"--dataset {name!r:.200} is neither a folder nor an .npz file; {advice}, and give that"
        )
    what = "is missing" if _is_npz(place) or len(place.parts) > 1 else "is no dataset"
    raise UserError(
        f"--dataset {name!r:.200} {what}; give one of {', '.join(specs.SPECS)}, a folder with a "
        "folder of images for each class, an .npz file, tfds:NAME or hf:FOLDER"
    )


def own_name(place: Path) -> str:
    """What a dataset of the user's own is called: as its place, and as none of those known here."""
    real = place.resolve()
    name = real.stem if _is_npz(real) else real.name
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
    return f"{name}-own" if name in specs.SPECS else name


def short_name(name: str) -> str:
    """What the dataset is called, part of file names. UserError if the user's own is not there."""
    if name in specs.SPECS:
        return name
    if name.startswith(PREFIX):
        return own_name(Path(_tfds_name(name).replace("/", "-")))
    return own_name(own_place(name))


def of_arrays(
    images: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    name: str = "arrays",
) -> Dataset:
    """A dataset from arrays in memory.

    Args:
      images: uint8, or floats 0 to 1; [n, h, w] or [n, h, w, c] with 1 or 3 channels.
      labels: whole numbers 0 to classes - 1, [n].
      classes: their names; None: the numbers.
      test_images, test_labels: the test split; None: a fixed, stratified fifth of the images.
      name: of the dataset, part of file names.

    Raises:
      UserError: they are something else, or a class has too few images.

    Example:
      >>> dataset = of_arrays(np.zeros((30, 8, 8), np.uint8), np.arange(30) % 3)
      >>> len(dataset.train.labels), len(dataset.test.labels)
      (24, 6)

    """
    from data.images import own_arrays  # Pillow, which a start from the cache must not pay for

    split = test_images is not None or test_labels is not None
    given = {"train_images": images, "train_labels": labels} if split else {}
    given |= {"test_images": test_images, "test_labels": test_labels} if split else {}
    given = given or {"images": images, "labels": labels}
    given |= {"classes": classes}
    name = own_name(Path(name))
    arrays, about = own_arrays.dataset(given, name, "the arrays", "arrays", shapes.Asked())
    for array in arrays.values():
        array.setflags(write=False)
    about["spec"]["place"] = ""
    return _own(arrays, cache.fingerprint(arrays), about, "arrays in memory")


def _load_folder(place: Path, name: str, asked: shapes.Asked) -> Dataset:
    from data.images import class_folders

    found = class_folders.listing(place)
    arrays, mark, about = _fetch(
        name, found.key(), asked, lambda: class_folders.decode(found, name, asked)
    )
    about["spec"]["place"] = str(place)  # files that were moved as they are have the same key
    return _own(arrays, mark, about, str(place))


def _load_saved(place: Path, name: str, asked: shapes.Asked) -> Dataset:
    from data.images import hugging_face  # a start from the cache needs no package

    files = sorted(path for path in place.rglob("*") if path.is_file())
    about = ((str(path.relative_to(place)), path.stat()) for path in files)
    rows = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in about]
    key = "\n".join(("hf 3", *rows)).encode(errors="surrogateescape")
    arrays, mark, found = _fetch(name, key, asked, lambda: hugging_face.decode(place, name, asked))
    found["spec"]["place"] = str(place)
    return _own(arrays, mark, found, str(place))


def _load_npz(place: Path, name: str, asked: shapes.Asked) -> Dataset:
    about = place.stat()
    key = f"npz 2 {about.st_size} {about.st_mtime_ns} {place}".encode(errors="surrogateescape")

    def build() -> tuple[cache.Arrays, dict[str, Any]]:
        from data.images import own_arrays

        return own_arrays.dataset(own_arrays.read(place), name, str(place), "npz", asked)

    arrays, mark, found = _fetch(name, key, asked, build)
    return _own(arrays, mark, found, str(place))


def _load_prepared(
    tfds_name: str, name: str, asked: shapes.Asked, data_dir: str | Path | None
) -> Dataset:
    found = unknown(tfds_name)
    root = need_root(found, data_dir)
    folder = prepared_folder(found, root)
    if folder is None:
        raise UserError(
            f"dataset {found.name!r} is not prepared in {root / tfds_name}; prepare it with python "
            f"-m data.prepare {found.name} --data-dir DIR if that knows it, else with TFDS itself "
            f"(tfds build {tfds_name}), and pass --data-dir DIR or set TFDS_DATA_DIR"
        )
    text, version, description = _about(found, folder)

    def build() -> tuple[cache.Arrays, dict[str, Any]]:
        from data.images import any_tfds  # a start from the cache must not pay for TFDS

        return any_tfds.decode(found, folder, name, asked)

    key = text + _listing(folder) + b"\nprepared 3"
    arrays, mark, about = _fetch(name, key, asked, build)
    loaded = _own(arrays, mark, about, str(folder.absolute()))
    return replace(loaded, version=version, description=description)


def _fetch(
    name: str,
    key: bytes,
    asked: shapes.Asked,
    build: Callable[[], tuple[cache.Arrays, dict[str, Any]]],
) -> tuple[cache.Arrays, str, dict[str, Any]]:
    """What `build` makes of a dataset of the user's own, or made for a run that asks again.

    The run asks for the size and channels that were found at first.
    """

    def keyed(asked: shapes.Asked) -> bytes:
        return key + f"\n{name} {asked}".encode()

    def others(about: dict[str, Any]) -> list[bytes]:
        height, width, channels = about["spec"]["image_shape"]
        same = [shapes.Asked((height, width), each) for each in (0, channels)]
        return [keyed(each) for each in same if each != asked]

    return cache.fetch_described(name, keyed(asked), build, others)


def _own(arrays: cache.Arrays, mark: str, about: dict[str, Any], source: str) -> Dataset:
    """A dataset of the user's own, from its arrays and what was found out about them."""
    described = _of_arrays(
        specs.from_json(about["spec"]), arrays, mark, source, "1", "data of the user's own"
    )
    return replace(described, notes=tuple(about["notes"]))


def _load_tfds(info: Spec, data_dir: str | Path | None, fetch: bool) -> Dataset:
    name, root = info.name, need_root(info, data_dir)
    if decoded.folder_of(name, root).is_dir():
        return _load_decoded(info, root)
    folder = prepared_folder(info, root)
    if folder is None and not fetch:
        raise UserError(
            f"dataset {name!r} is not prepared in {root / info.tfds_folder}; prepare it with "
            f"python -m data.prepare {name} --data-dir DIR, and pass --data-dir DIR or set "
            "TFDS_DATA_DIR"
        )
    if folder is None:
        from data.images import originals as prepare

        folder = prepare.prepare(info, root)
    text, version, description = _about(info, folder)

    def decode() -> cache.Arrays:
        # Imported here: a start from the cache must not pay for TFDS.
        from data.images import prepared

        return prepared.decode(info, folder)

    key = text + _listing(folder)
    return _dataset(info, key, decode, str(folder.absolute()), version, description)


def _listing(folder: Path) -> bytes:
    """The files of a folder, with sizes and times."""
    files = sorted((path.name, path.stat()) for path in folder.iterdir())
    rows = (f"\n{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    return "".join(rows).encode()


def _load_decoded(info: Spec, root: Path) -> Dataset:
    arrays, about = decoded.read(info.name, root, info.image_shape, len(info.class_names))
    return _of_arrays(
        info, arrays, about["fingerprint"], about["source"], about["version"], about["description"]
    )


def check(spec: Spec, folder: Path) -> None:
    """UserError if a prepared folder is not whole, as far as can be told without decoding it."""
    from data.images import prepared

    _about(spec, folder)
    if spec.kind == "prepared":
        builder = prepared.builder_of(spec, folder)
        splits = list(builder.info.splits)
        prepared.need_shards(builder, spec, folder, splits)
    else:
        builder, splits = prepared.opened(spec, folder), list(cache.SPLITS)
    prepared.need_whole(builder, spec, folder, splits)


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


def _load_sklearn(info: Spec, data_dir: str | Path | None, fetch: bool) -> Dataset:
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


# By the kind of a dataset: how it is loaded.
_LOADERS: dict[str, Callable[[Spec, str | Path | None, bool], Dataset]] = {
    "tfds": _load_tfds,
    "sklearn": _load_sklearn,
}
_OWN: dict[str, Callable[[Path, str, shapes.Asked], Dataset]] = {
    "folder": _load_folder,
    "npz": _load_npz,
    "hf": _load_saved,
}
