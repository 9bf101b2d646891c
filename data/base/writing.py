"""Writing files and folders that are whole or absent, never half-written.

`write_bytes` and `write_json` are for files of ours: folders are made, what is there is replaced.
`save_bytes` and `save_json` are for files that a user named, which may be anything: a link, a
device, a named pipe, standard output. `check_target` says before any work whether such a file
can be written, `check_folder` and `check_place` whether a folder, or either, can be made.
`new_folder` is for folders of which no part may be seen before they are whole.
"""

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from data.base import machine
from data.base.errors import UserError

STDOUT = "-"  # in place of a file: standard output
# What a disk, a quota or a limit says that is full; Windows has no quota of that name.
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # gs://, and gs:/ of a Path; not C:/
_LINKS = 40  # as many as Linux follows before it calls them a loop
_LONGEST = 64  # characters of a file's name in the name of the file beside it
# The folder of a file is not ours to write, or the file itself is a mount point (a container's).
_NOT_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that cannot be written: the system's own error on a full disk does not."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        advice = "make room for it, or choose another folder" if full else "choose another place"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


# --- files of ours


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file at once: written aside, synced, renamed. Its folder is made.

    UserError if it cannot be written.

        write_bytes(run / "weights" / "root.safetensors", content)
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Indented JSON with a newline at its end."""
    return (json.dumps(value, indent=1) + "\n").encode()


def _replace(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Write aside and rename, with the mode and owner of `like`. OSError leaves the old file."""
    aside = _beside(path)
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like is not None:
            os.chmod(aside, stat.S_IMODE(like.st_mode))
            if hasattr(os, "chown") and (like.st_uid, like.st_gid) != _owner(aside):
                with suppress(OSError):  # only root may give files away
                    os.chown(aside, like.st_uid, like.st_gid)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            aside.unlink()
        raise


def _owner(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_uid, about.st_gid


def _beside(path: Path) -> Path:
    """Where a file or folder is made before it has its name; `leftovers` knows the form."""
    return path.with_name(f".{path.name[:_LONGEST]}.{os.getpid()}.tmp")


def leftovers(folder: Path, name: str = ".+", *, below: bool = False) -> list[Path]:
    """What processes that were killed have left half-written in a folder that is ours.

    Only what has the very form that our writing gives it, and whose process is not at work (it
    may be ourselves: nothing of ours is being written in a folder that was just locked).

    Args:
      folder: nobody else may be at work in it.
      name: a regular expression for the names that were to be written.
      below: whether its folders are searched as well; hidden ones never are.

    """
    form = re.compile(rf"\.(?:{name})\.(?P<process>\d+)(?:\.old)?\.tmp")
    found = []
    for place, folders, files in os.walk(folder):
        for each in (*folders, *files):
            match = form.fullmatch(each)
            process = int(match["process"]) if match else None
            if process is not None and (process == os.getpid() or not machine.lives(process)):
                found.append(Path(place, each))
        folders[:] = [each for each in folders if below and not each.startswith(".")]
    return found


def remove(path: Path) -> None:
    """Remove a file or folder of ours; a link, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- files that a user named


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file that a user named. UserError if it cannot be written.

    A regular file, also one that a link leads to, is replaced at once and keeps its mode; what is
    no regular file is written to. `-` is standard output. No folder is made.

        save_bytes(Path("/dev/stdout"), b"text")
    """
    if str(path) == STDOUT:
        _print(content)
        return
    number = _descriptor(path)
    if number is not None:
        _to_descriptor(path, number, content)
        return
    with naming(path):
        about = _stat(path)
        if about is not None and not stat.S_ISREG(about.st_mode):
            with open(path, "wb", buffering=0) as file:  # a folder says that it is one
                _all(file.fileno(), content)
            return
        real = Path(os.path.realpath(path))
        try:
            _replace(real, content, about)
        except OSError as error:
            if about is None or error.errno not in _NOT_BESIDE:
                raise
            with open(real, "r+b") as file:
                file.write(content)
                file.truncate()


def save_json(path: Path, value: Any) -> None:
    """`save_bytes` of indented JSON."""
    save_bytes(path, as_json(value))


def need_local(path: str | Path) -> None:
    """UserError if the place of a file or folder is an address, such as gs://bucket/run."""
    if _ADDRESS.match(str(path)):
        raise UserError(
            f"cannot write {path}: it is an address, and only files and folders of this machine "
            "are written; name one, and copy it from there"
        )


def need_new(path: Path, other: str = "another --out") -> None:
    """UserError if there is something, a device for example, where a place is to be made."""
    if os.path.lexists(path):
        ours = path.is_symlink() or path.is_dir() or path.is_file()
        raise UserError(f"{path} exists; {'remove it, or ' if ours else ''}choose {other}")


def is_stdout(path: Path) -> bool:
    """Whether a file that a user named is standard output, under any of its names."""
    return _descriptor(path) == 1


def check_place(path: Path) -> None:
    """UserError if nothing can be made at a place that a user names, as far as can be told.

    It may be there already, and so may folders above it; nothing is written or made.
    """
    need_local(path)
    place = path.absolute()
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write {path}: nothing may be written in {there}; choose another place"
        )
    if there != place and not there.is_dir():
        raise UserError(f"cannot write {path}: {there} is no folder; choose another place")


def check_folder(path: Path) -> None:
    """`check_place` for a folder; of one that is there the content is not looked at."""
    if str(path) == STDOUT:
        raise UserError("cannot write -: it would be standard output; name a folder")
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder")
    check_place(path)


def check_target(path: Path) -> None:
    """UserError if a file that a user names cannot be written, as far as can be told beforehand.

    Nothing is written or made.
    """
    need_local(path)
    number = _descriptor(path)
    with naming(path):
        if number is not None:
            os.fstat(number)
            return
        about = _stat(path)
        if about is not None and stat.S_ISDIR(about.st_mode):
            raise UserError(f"cannot write {path}: it is a folder; name a file")
        real = Path(os.path.realpath(path))
        if about is not None and not os.access(real, os.W_OK):
            raise UserError(f"cannot write {path}: it may not be written; choose another place")
        if about is None and not real.parent.is_dir():
            what = "is no folder" if real.parent.exists() else "does not exist"
            raise UserError(
                f"cannot write {path}: {real.parent} {what}; make it, or choose another place"
            )
        if about is None and not os.access(real.parent, os.W_OK):
            raise UserError(
                f"cannot write {path}: nothing may be written in {real.parent}; choose another "
                "place"
            )


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, so that what it holds can be read and added to."""
    return _descriptor(path) is None and path.is_file()


def _stat(path: Path) -> os.stat_result | None:
    """What is there, behind any links; None if there is nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path stands for: `-`, /dev/stdout, /dev/fd/63.

    It must be written to as it is: opened by its name again, a file that standard output goes to
    would be written from its start, or be replaced under the shell that has it open.
    """
    if str(path) == STDOUT:
        return 1
    own = re.compile(rf"(/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd)")
    for _ in range(_LINKS):
        folder = os.path.realpath(path.parent)
        path = Path(folder, path.name)
        if own.fullmatch(folder) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


def _print(content: bytes) -> None:
    """To `sys.stdout`, whatever a program has put there (a notebook has)."""
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(content)
    else:
        sys.stdout.write(content.decode())
    sys.stdout.flush()


def _to_descriptor(path: Path, number: int, content: bytes) -> None:
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what was printed before comes before
        _all(number, content)
    except BrokenPipeError:
        if number == 1:
            raise  # as for anything that is printed: the reader (head, less) has enough
        raise UserError(f"cannot write {path}: its reader went away; name another file") from None
    except OSError as error:
        with naming(path):
            raise error


def _all(number: int, content: bytes) -> None:
    """Write to a file of any kind; a pipe takes a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]


# --- folders


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which has its name once the block is done: whole or absent.

    The folders above it are made. UserError if it is there, also if it comes meanwhile; with
    `replace` the one that is there gives way, whole until then.

        with new_folder(out) as aside:
            write_json(aside / "config.json", config)
    """
    if not replace:
        need_new(path, "another folder")
    aside = _beside(path)
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had our number
    try:
        with naming(path):
            aside.mkdir(parents=True)
        yield aside
        with naming(path):
            if replace:
                _put(aside, path)
            else:
                aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, path: Path) -> None:
    """Give a folder its name. The one that had it is removed; it comes back if that fails."""
    old = aside.with_suffix(".old.tmp")
    try:
        while True:
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                path.rename(old)
            try:
                aside.rename(path)
                return
            except OSError as error:  # another process put its own there meanwhile: once more
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        if not os.path.lexists(path):
            with suppress(OSError):
                old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy what a folder of ours holds into another. UserError if that cannot be done."""
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except shutil.Error as error:  # it has neither a number nor a name, and a list of reasons
        raise UserError(f"cannot copy {source} to {target} ({error.args[0][0][2]})") from None


def reserve(folder: Path, size: int) -> None:
    """UserError if the folder, which is made, has no room for so many bytes more.

    For what a library writes, which may not say plainly that the disk is full.
    """
    aside = _beside(folder / "reserved")
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                _allocate(file, size)
        finally:
            aside.unlink(missing_ok=True)


def _allocate(file: IO[bytes], size: int) -> None:
    """Give an open file its room on the disk; OSError if there is too little."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(2**20)
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()
