"""Being told to stop: Ctrl-C, and SIGTERM, which a machine sends that is about to be taken away.

The first signal raises in the main thread, and what was not yet saved is saved on the way out.
The second ends the process where it stands, which is safe as well: files are whole or absent.
"""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no Exception, for nothing may go on after it."""


STOPPED = (KeyboardInterrupt, Terminated)
_RAISED: dict[int, type[BaseException]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}
_received: int | None = None
_held = 0
_command: str | None = None


def resumable(program: str, arguments: Sequence[str] | None, flag: str = "") -> None:
    """Say, if this command is stopped, by which command it goes on: its own, with `flag`.

    Args:
      program: as in the parser, e.g. `python -m trunk_jax.train`.
      arguments: of `main`; None are those of the process.
      flag: what is added where it was not given.

    """
    global _command
    words = list(sys.argv[1:] if arguments is None else arguments)
    if flag and flag not in words:
        words.append(flag)
    _command = f"{program} {shlex.join(words)}".strip()


def advice() -> str:
    """`; go on with: COMMAND` of a command that is `resumable`, else nothing."""
    return f"; go on with: {_command}" if _command else ""


@contextmanager
def listening() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt or Terminated in the block when told to stop; the signals that came.

    A signal that our parent has switched off (nohup, a shell's background job) stays off.
    """
    global _received, _command
    if threading.current_thread() is not threading.main_thread():
        yield []  # Python handles signals in the main thread alone
        return
    came: list[int] = []
    _command = None
    before = {number: signal.getsignal(number) for number in _RAISED}
    mine = [number for number, how in before.items() if how not in (signal.SIG_IGN, None)]

    def stop(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        came.append(number)
        for each in mine:
            signal.signal(each, signal.SIG_DFL)
        check()

    def unraisable(about: "sys.UnraisableHookArgs") -> None:
        if not came or not issubclass(about.exc_type, STOPPED):
            hook(about)  # ours is not worth a word: `check` raises it again

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    for number in mine:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        _received = None
        sys.unraisablehook = hook
        for number in mine:
            signal.signal(number, before[number])


@contextmanager
def held() -> Iterator[None]:
    """Let the block be done first: a signal that comes meanwhile raises at its end."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    check()


def check() -> None:
    """Raise if a signal has come.

    For loops: an exception that a signal raised in a callback of some library is lost there.
    """
    if _received is not None and not _held:
        raise _RAISED[_received]
