"""Locks on files, which the system releases however a process ends."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere but on Windows
    msvcrt = None


def taken(file: IO) -> bool:
    """Take the lock of an open file, until it is closed; False if another process has it.

    A system that has neither way to lock leaves processes to themselves: always True.

    Example: `with open("lock", "w") as file: mine = taken(file)`.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    elif msvcrt is not None:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    return True
