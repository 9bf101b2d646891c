"""A dataset that is a folder with a folder of images for each class.

Either `train/<class>/*` and `test/<class>/*` (and perhaps `validation/<class>/*`), their names as
in `splitting.NAMES`; or `<class>/*` alone, of which a fifth of each class becomes the test split. A
file `dataset.toml` at the top may say more: `title`, `licence`, `light_strokes`, `turned`
(`specs.Spec`).
"""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.base import machine, reading
from data.base.errors import UserError
from data.base.progress import counting
from data.images import files, room, shapes
from data.images.cache import Arrays
from data.images.specs import Spec
from data.images.splitting import Part, assembled, split_of
from data.images.whites import Whites

MOST_UNREADABLE = 0.05  # of the files, but one at least
ABOUT = "dataset.toml"
_SAID = {"title": str, "licence": str, "light_strokes": bool, "turned": bool}
_JUNK = ("thumbs.db", "desktop.ini")
_SHOWN = 3
T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files of a dataset.

    `classes`: their names, sorted; the place in it is the label. `files`: by split (`train`,
    `validation`, `test`, or `all` for a folder without splits), paths from the root and labels, in
    the order of classes and names. `left_out`: folders at the top that are no split. `about`: what
    `dataset.toml` says.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    left_out: tuple[str, ...] = ()
    about: tuple[tuple[str, Any], ...] = ()

    def key(self) -> bytes:
        """All that the arrays depend on, without reading the files: names, sizes, times."""
        rows = [repr(self.about)]
        for split, listed in self.files.items():
            for name, label in listed:
                about = (self.root / name).stat()
                rows.append(f"{split}\0{name}\0{label}\0{about.st_size}\0{about.st_mtime_ns}")
        text = "\n".join(("class folders 3", *self.classes, *rows))
        return text.encode(errors="surrogateescape")


def listing(root: Path) -> Listing:
    """The files of the dataset in `root`. UserError where the folders are none of a dataset."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    top = _folders(root, root)
    named = [name for name in top if split_of(name)]
    if len(named) < len(top) and not any(_folders(root / name, root) for name in named):
        named = []  # bus/, car/ and train/ are classes: train/ holds no folders of classes
    splits: dict[str, Path] = {}
    for name in named:
        other = splits.setdefault(str(split_of(name)), root / name)
        if other.name != name:
            raise UserError(f"{root} has {other.name} and {name}; keep one of them")
    if not splits:
        return _listed(root, {"all": root}, ())
    if "train" not in splits or len(splits) == 1:
        lacking = "test" if "train" in splits else "train"
        there = " and ".join(f"{place.name}/" for place in splits.values())
        raise UserError(
            f"{root} has {there} and no {lacking}/; add {lacking}/<class>/, or put the classes' "
            "folders at the top, and a fifth of each class becomes the test split; if "
            f"{named[0]} is a class, rename it"
        )
    order = [split for split in ("train", "validation", "test") if split in splits]
    left_out = tuple(sorted(set(top) - set(named)))
    return _listed(root, {split: splits[split] for split in order}, left_out)


def _listed(root: Path, splits: dict[str, Path], left_out: tuple[str, ...]) -> Listing:
    found = {split: _folders(place, root) for split, place in splits.items()}
    trained = "all" if "all" in found else "train"
    classes = tuple(found[trained])
    where = root if trained == "all" else splits[trained]
    if not classes:
        raise UserError(
            f"{where} holds no folders; a dataset has one of images for each class: "
            "train/<class>/* and test/<class>/*, or <class>/*"
        )
    if all(split_of(name) for name in classes):
        raise UserError(
            f"{where} holds {', '.join(classes)}, which are names of splits, not of classes; a "
            "dataset has train/<class>/* and test/<class>/*, or <class>/*"
        )
    if len(classes) == 1:
        raise UserError(_one_class(root, where / classes[0]))
    _need_distinct(where, classes)
    for split, names in found.items():
        more = [name for name in names if name not in classes]
        if more:
            raise UserError(
                f"{splits[split]} has the class {more[0]!r}, which {where} has not; "
                "give it training images, or remove it"
            )
    listed: dict[str, list[tuple[str, int]]] = {}
    for split, place in splits.items():
        rows = listed.setdefault(split, [])
        for label, name in enumerate(classes):
            if name in found[split]:
                rows += [(path, label) for path in _files(place / name, root)]
    for label, name in enumerate(classes):
        if not any(label == other for _, other in listed[trained]):
            raise UserError(f"{where / name} holds no files; give the class images, or remove it")
    for split in ("test", "validation"):
        if split in listed and not listed[split]:
            raise UserError(
                f"{splits[split]} holds no images in folders of classes, as {where} does; fill it, "
                "or remove it"
            )
    return Listing(
        root, tuple(_normal(name) for name in classes), listed, left_out, _about(root / ABOUT)
    )


def _one_class(root: Path, folder: Path) -> str:
    """What is wrong where a folder holds no other: the classes may be further inside."""
    what = f"{folder.parent} holds one class ({folder.name}); a dataset has two or more"
    inner = _folders(folder, root)
    if not inner:
        return what
    few = ", ".join(inner[:_SHOWN]) + (", ..." if len(inner) > _SHOWN else "")
    if folder.parent == root:
        return f"{what}. If {few} in it are what you mean, pass --dataset {folder}"
    return f"{what}. If {few} in it are the classes, move them up into {folder.parent}"


def _about(file: Path) -> tuple[tuple[str, Any], ...]:
    """What the user says of the dataset. UserError for a file that says something else."""
    if not file.exists():
        return ()
    value = reading.toml_file(file)
    try:
        reading.need(value, {f"{name}?": kind for name, kind in _SAID.items()})
        more = sorted(value.keys() - _SAID.keys())
        if more:
            raise ValueError(f"unknown setting {more[0]!r:.80}; it takes {', '.join(_SAID)}")
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return tuple(sorted(value.items()))


def _folders(place: Path, root: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    entries = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    names = [name for name in entries if not name.startswith(".")]
    for name in names:
        _need_inside(place / name, root)
    return names


def _normal(name: str) -> str:
    """One form of a name that systems write in several (an accent of its own or in its letter)."""
    text = name.encode(errors="surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


def _need_distinct(where: Path, classes: Sequence[str]) -> None:
    same: dict[str, str] = {}
    for name in classes:
        other = same.setdefault(_normal(name).casefold(), name)
        if other != name:
            raise UserError(
                f"{where} has the classes {other!r} and {name!r}, which are one folder on systems "
                "that do not tell cases apart; rename one"
            )


def _files(folder: Path, root: Path) -> Iterator[str]:
    """The files in and below a class's folder, by name, as paths from the root."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in below:
            _need_inside(Path(place) / name, root)
        for name in sorted(names):
            if name.startswith(".") or name.lower() in _JUNK:
                continue
            file = Path(place) / name
            _need_inside(file, root)
            yield str(file.relative_to(root))


def _need_inside(path: Path, root: Path) -> None:
    """UserError for a link that leads out of the dataset, or nowhere."""
    if not path.is_symlink():
        return
    if not path.exists():
        raise UserError(f"{path} is a link to nothing; remove it")
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} is a link out of {root}; copy what it leads to, or remove it")


def decode(found: Listing, name: str, shape: shapes.Asked) -> tuple[Arrays, dict[str, Any]]:
    """All images as arrays, and what is known of them: `spec` and `notes`, plain JSON.

    Args:
      found: the files.
      name: of the dataset.
      shape: what was asked for of size and channels.

    Raises:
      UserError: too many files are no images; a split or a class is left without any.

    """
    listed = [(split, *row) for split, rows in found.files.items() for row in rows]
    paths = [found.root / path for _, path, _ in listed]
    sizes = []
    if not shape.size:
        sizes = [s for s in _all(f"looking at {name}", shapes.of_file, paths) if s]
    if not shape.size and not sizes:
        raise UserError(f"{found.root} holds no image that can be read")
    height, width = shape.size or shapes.chosen(sizes)
    wanted = shapes.plain_spec(name, (height, width, 3), found.classes)
    images = room.images(len(paths), (height, width, 3))
    good, other = np.ones(len(paths), bool), np.zeros(len(paths), bool)
    errors: dict[int, str] = {}
    whites = Whites()

    def read(place: int, wanted: Spec) -> None:
        try:
            picture = files.read(paths[place], wanted)
        except UserError as error:
            good[place], errors[place] = False, str(error)
            return
        images[place] = picture.pixels
        other[place] = picture.cut > 0
        whites.see(place, picture)

    def read_all(wanted: Spec) -> None:
        again = whites.others()
        what = f"decoding {name} with one range" if again else f"decoding {name}"
        _all(what, partial(read, wanted=wanted), again or range(len(paths)))

    whites.in_one_range(wanted, read_all)
    lost = _unreadable(found, paths, errors)
    notes = [*lost, *whites.notes()]
    if other.any():
        notes.append(f"{int(other.sum()):,} images have other proportions: their middle was taken")
    if found.left_out:
        notes.append(f"not used: {', '.join(f'{name}/' for name in found.left_out[:_SHOWN])}")
    images = shapes.with_channels(images, shape.channels, good)
    labels = np.array([label for *_, label in listed], np.int32)
    of = np.array([split for split, *_ in listed])
    parts = {
        split: Part(room.gathered(images, rows), labels[rows])
        for split in found.files
        if len(rows := np.flatnonzero((of == split) & good))
    }
    about = dict(found.about) | {"whites": whites.both()}
    try:
        return assembled(name, parts, found.classes, str(found.root), "folder", notes, about)
    except UserError as error:  # a class may lack just what was left out
        raise UserError("; ".join([str(error), *lost])) from None


def _unreadable(found: Listing, paths: Sequence[Path], errors: dict[int, str]) -> list[str]:
    """What is said of files that are no images; UserError where they are too many."""
    if not errors:
        return []
    named = [
        str(paths[place].relative_to(found.root)) + errors[place].removeprefix(str(paths[place]))
        for place in sorted(errors)[:_SHOWN]
    ]
    more = "; ..." if len(errors) > _SHOWN else ""
    what = f"{len(errors):,} of {len(paths):,} files are no images that can be read"
    if len(errors) > max(1, MOST_UNREADABLE * len(paths)):
        raise UserError(
            f"{found.root}: {what} ({'; '.join(named)}{more}); up to {100 * MOST_UNREADABLE:.0f} % "
            "are left out, so remove them"
        )
    return [f"{what} and were left out ({'; '.join(named)}{more})"]


def _all(what: str, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """`work` on every item, on all cores, with progress."""
    result = []
    with counting(what, len(items)) as advance, ThreadPoolExecutor(machine.cores()) as pool:
        for value in pool.map(work, items):
            result.append(value)
            advance(1)
    return result
