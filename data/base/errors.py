"""Mistakes a user can make, and how a command reports them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from data.base import interrupts


class UserError(ValueError):
    """Something the user can put right. The message is one line: what, where, what to do.

    A ValueError, so that who calls us from Python need not know this class.
    """


class LibraryFailed(UserError):
    """A UserError after which threads of a library still run: the command ends without them."""


_NO_MEMORY = ("can't start new thread", "Cannot allocate memory", "failed to map segment")


def out_of_memory(error: Exception) -> bool:
    """Whether Python or the system says that memory ran out; frameworks have words of their own."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    0 (or what `main` returns) on success, 2 after one line on standard error for a
    `UserError`, an operating-system error that names its file, or memory that ran out, 130 for
    Ctrl-C, 143 for SIGTERM. Anything else is a fault of ours and keeps its traceback.
    """
    signals: list[int] = []
    _open_closed_streams()
    _escape_what_cannot_be_printed()
    try:
        with interrupts.listening() as signals:
            code = main() or 0
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"interrupted{interrupts.advice()}", file=sys.stderr)
        code = 130
    except interrupts.Terminated:
        print(f"terminated{interrupts.advice()}", file=sys.stderr)
        code = 143
    except BrokenPipeError:  # the reader of our output (head, less) went away
        _drop_output()
        code = 1
    except UserError as error:
        # in one piece, or what threads print would come in between
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        code = 2
        if isinstance(error, LibraryFailed):
            _leave(code)
    except Exception as error:
        if out_of_memory(error):
            print("error: out of memory; free some, or ask for less at once", file=sys.stderr)
            sys.exit(2)
        if not isinstance(error, OSError) or (error.filename is None and error.errno is None):
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        code = 2
    if signals:
        _leave(code)
    sys.exit(code)


def _escape_what_cannot_be_printed() -> None:
    """Print characters that the terminal's encoding lacks as escapes, which is no reason to fail.

    Standard error does so by itself. Another way that the user has chosen (PYTHONIOENCODING) stays.
    """
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_closed_streams() -> None:
    """Put the null device where a standard stream was closed before we started (`>&-`).

    Python has None there, which cannot be flushed; and the next file that is opened would get
    the stream's number, and with it what C code prints.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            if null != number:
                os.close(null)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _drop_output() -> None:
    """Forget output that cannot be written: Python would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int) -> NoReturn:
    """End the process at once.

    What was to be saved is; a computation that goes on in XLA's threads would crash them while
    Python takes itself apart.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
