"""Where prepared datasets lie: the data folder of TFDS, and the folders in it."""

import os
import re
from pathlib import Path

from data.base import reading
from data.base.errors import UserError
from data.images.specs import Spec

INFO = "dataset_info.json"  # in the folder of a version; TFDS writes it last


_NAMES = ("name", "configName")  # in that file: whose it is


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # gs://, hf://; not C:/


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


def need_root(spec: Spec, data_dir: str | Path | None) -> Path:
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
    places = [root / spec.tfds_folder, *_own_folders(spec, root)]
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
    parts, names = spec.tfds_folder.parts, root.absolute().parts
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
