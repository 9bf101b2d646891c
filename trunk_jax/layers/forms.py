"""Other forms of the same arithmetic, for benchmarks to try; programs have the plain ones.

A form is read when a program is traced. Programs that are compiled already keep theirs, so give a
form to a process, not to a call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Forms:
    """Which forms XLA's general convolution and batch norm are written in.

    Attributes:
      channels: a convolution's input channels are padded with zeros to a multiple of this.
      one_pass: batch norm takes mean and variance in one pass over a map, the latter as the mean
        of squares less the square of the mean. It loses digits where the mean is large.

    """

    channels: int = 1
    one_pass: bool = False


PLAIN = Forms()
_forms: ContextVar[Forms] = ContextVar("forms", default=PLAIN)


def now() -> Forms:
    """The forms that are traced at present."""
    return _forms.get()


@contextmanager
def using(forms: Forms) -> Iterator[None]:
    """Trace these inside the block."""
    token = _forms.set(forms)
    try:
        yield
    finally:
        _forms.reset(token)
