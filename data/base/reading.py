"""Reading files that may come from anybody: in bounds, as plain values, and inside their folder.

All that reads a JSON file, weights or an archive of ours reads it through this module, so that
what a file may do is decided once: it may be refused, in one line, and nothing else.
"""

import json
import math
import os
import stat
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from data.base.errors import UserError

MOST_JSON = 16 * 2**20  # bytes; the files of runs are far below
MOST_WEIGHTS = 4 * 2**30  # bytes; the largest public model has an eighth of that
_DEEPEST = 32  # lists and objects in each other; ours have 6
_LONGEST_INTEGER = 40  # digits

# A form says what a value must be: a type (float takes whole numbers too), a tuple of forms (one
# of them; None is itself, and () nothing), [form] (a list of such), {str: form} (any names),
# {name: form, ...} (at least these names; those that end in ? may be absent), Any.
Form = Any


def content(file: Path, most: int) -> bytes:
    """The bytes of a regular file. UserError if it is missing, something else, or larger."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{file} is no regular file")
        if about.st_size > most:
            raise UserError(f"{file} is larger than {most >> 20} MiB; not a file of ours")
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from None


def at_home(path: str | Path) -> Path:
    """The path with the home folder in place of a `~` or `~name` at its start.

        at_home("~/run")

    UserError if there is no such home folder, and no file of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).exists():
            return Path(path)
        raise UserError(f"{path}: no such home folder") from None


def json_file(file: Path, most: int = MOST_JSON) -> Any:
    """The value in a JSON file. UserError if it is missing, too large, or not JSON.

    Stricter than Python: no NaN or infinity, no number that is none of a float or of 40 digits,
    no name twice in an object, no nesting that would exhaust the stack of whoever reads it.
    """
    text = content(file, most)
    try:
        return json_text(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error})") from None


def json_text(text: bytes) -> Any:
    """As `json_file`, of its bytes. ValueError or RecursionError if it is not JSON."""
    value = json.loads(
        text,
        parse_constant=_no_constant,
        parse_float=_finite,
        parse_int=_integer,
        object_pairs_hook=_once,
    )
    _need_shallow(value)
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.40} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r:.80} stands twice in an object")
    return value


def _need_shallow(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for each in level for item in _items(each) if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} deep")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def toml_file(file: Path) -> dict[str, Any]:
    """The tables of a TOML file. UserError if it is missing, too large, or not TOML."""
    text = content(file, MOST_JSON)
    try:
        value = tomllib.loads(text.decode("utf-8-sig"))
        _need_shallow(value)
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid TOML ({error})") from None


def need(value: Any, form: Form, at: str = "") -> None:
    """ValueError, naming the place, where a value is not of a form."""
    where = at or "it"
    if form is Any:
        return
    if isinstance(form, tuple):
        for each in form:
            try:
                need(value, each, at)
            except ValueError:
                continue
            return
        raise ValueError(f"{where} is {value!r:.80}")
    if isinstance(form, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for place, item in enumerate(value):
            need(item, form[0], f"{where}[{place}]")
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        if str in form:
            for name, item in value.items():
                need(item, form[str], f"{at}.{name:.80}" if at else f"{name:.80}")
            return
        for key, each in form.items():
            name = key.removesuffix("?")
            if name not in value:
                if name != key:
                    continue
                raise ValueError(f"{where} lacks {name}")
            need(value[name], each, f"{at}.{name}" if at else name)
    elif form is None:
        if value is not None:
            raise ValueError(f"{where} is {value!r:.80}, not null")
    elif type(value) is not form and not (form is float and type(value) is int):
        raise ValueError(f"{where} is {value!r:.80}, no {form.__name__}")


def json_of_form(file: Path, form: Form, what: str) -> Any:
    """As `json_file`; UserError also if the value is not `what`, which has that form."""
    value = json_file(file)
    try:
        need(value, form)
    except ValueError as error:
        raise UserError(f"{file} is not {what} ({error})") from None
    return value


def need_inside(folder: Path) -> None:
    """UserError if a folder holds a link that leads out of it, a pipe or a device.

    Reading such a run would read, and resuming it would write, what its maker chose. The links
    of a Hugging Face cache lead to blobs beside the snapshot, and are its own.
    """
    root = os.path.realpath(folder)
    blobs = _blobs(Path(root))
    for below, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(below, name)
            mode = path.lstat().st_mode
            target = Path(os.path.realpath(path))
            inside = target.is_relative_to(root) or (blobs is not None and target.parent == blobs)
            if stat.S_ISLNK(mode) and not inside:
                raise UserError(f"{path} is a link that leads out of {folder}; put the file there")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise UserError(f"{path} is neither a file nor a folder; remove it")


def is_snapshot(folder: Path) -> bool:
    """Whether a folder lies in a Hugging Face cache, whose files are links to shared blobs."""
    return _blobs(folder.resolve()) is not None


def _blobs(folder: Path) -> Path | None:
    """`blobs` of the cached repository that a folder (real path) is a snapshot of, or part of."""
    for place in (folder, *folder.parents):
        cached = place.parent.name == "snapshots" and place.parents[1].name.startswith("models--")
        if cached and (place.parents[1] / "blobs").is_dir():
            return place.parents[1] / "blobs"
    return None


def need_plain_archive(file: Path) -> None:
    """ValueError if a zip file is damaged, or is not stored as PyTorch stores one.

    `torch.load` notices a truncated file but not a changed byte; the zip's checksums do. What is
    compressed is refused before it is unpacked, for it may unpack to any size.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise ValueError("it claims to hold more than its size")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} has a wrong checksum")
