"""One process at a time: locks that end with the process that holds them, however it ends.

`fcntl` where there is (Linux, macOS), `msvcrt` on Windows: there the system lets go of a lock
whose process is dead. Where neither works (a file system without locks), a file that is there
only while the lock is held, with the number of the process in it: one whose process is dead does
not count.
"""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # elsewhere
    msvcrt = None  # type: ignore[assignment]

from data.base import interrupts, machine, reading, writing
from data.base.errors import UserError

_AGAIN_S = 0.2  # seconds between two looks at a lock that another process holds
_FOREIGN_S = 24 * 3600.0  # seconds for which a lock of another machine counts, and an empty one
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what the systems say of a lock that is held
_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes of ours.

    UserError if another holds it. It is let go of however we end.
    """
    with writing.naming(path):
        path.mkdir(parents=True, exist_ok=True)
        reading.need_inside(path)
        try:
            release = _acquire(path / ".lock")
        except Busy:
            raise UserError(f"{path} is in use by another process") from None
    try:
        yield
    finally:
        release()


def need_free(path: Path) -> None:
    """UserError if another process holds the folder, which stays as it is."""
    if not (path / ".lock").is_file():
        return
    with suppress(PermissionError):  # nobody can hold a folder that nobody may write to
        try:
            _acquire(path / ".lock")()
        except Busy:
            raise UserError(f"{path} is in use by another process") from None


@contextmanager
def alone(file: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Hold the lock `file`, waiting for whoever holds it; `busy` is called once if that is so.

    The file is removed at the end. UserError if it cannot be made.

        with alone(root / ".svhn.lock", lambda: print("waiting", file=sys.stderr)):
            prepare()
    """
    said = False
    while True:
        with suppress(Busy), writing.naming(file):
            release = _acquire(file, lasting=False)
            break
        if not said:
            busy()
            said = True
        interrupts.check()
        time.sleep(_AGAIN_S)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            file.unlink()
        release()


def _acquire(file: Path, lasting: bool = True) -> Callable[[], object]:
    """Take a lock: what lets go of it. Busy if another process holds it, OSError if none can be.

    `lasting`: nobody removes the file.
    """
    number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if not lasting and not _is(file, number):  # whoever had it before us has removed it
            raise Busy
    except BaseException as error:
        os.close(number)
        if isinstance(error, OSError) and error.errno in _HELD:
            raise Busy from None
        if isinstance(error, OSError) and error.errno in _WITHOUT:
            return _mark(file.with_name(f"{file.name}.process"))
        raise
    return lambda: os.close(number)  # which unlocks it


def _is(file: Path, number: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


def _mark(mark: Path) -> Callable[[], object]:
    """Make a file that says whose the lock is; it goes when the lock is let go of."""
    while True:
        try:
            with open(mark, "x") as file:
                file.write(f"{os.getpid()} {socket.gethostname()}")
            return lambda: mark.unlink(missing_ok=True)
        except FileExistsError:
            if _lives(mark):
                raise Busy from None
        aside = mark.with_name(f"{mark.name}.{os.getpid()}")
        with suppress(FileNotFoundError):  # another process was quicker
            mark.rename(aside)
            if _lives(aside):  # it is that of the quicker process: put it back
                aside.rename(mark)
                raise Busy
            aside.unlink()


def _lives(mark: Path) -> bool:
    """Whether the process that a mark names may still be at work."""
    try:
        process, _, host = mark.read_text().partition(" ")
        age = time.time() - mark.stat().st_mtime
    except FileNotFoundError:
        return False
    if host != socket.gethostname() or not process.isdecimal():
        return age < _FOREIGN_S
    return machine.lives(int(process))
