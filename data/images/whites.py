"""One range of values for all images of a dataset that have more than 8 bits.

Where files do not state their range each image's own values would say what is white, and a dark
image would come out as light as any.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from data.base.words import plural
from data.images.fitting import Picture
from data.images.specs import Spec

T = TypeVar("T")


class Whites:
    """What was taken for white in images whose files do not say, by whatever names an image."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[bool, float]] = {}

    def see(self, place: Any, picture: Picture) -> None:
        """Remember an image's range, if it is by its own values."""
        if picture.range.origin == "values":
            self._found[place] = picture.mode.startswith("F"), picture.range.high

    def both(self) -> tuple[float, float]:
        """What is white in all of them, of integers and of floats; 0 where there are none."""
        found = list(self._found.values())
        integers, floats = (
            max((high for kind, high in found if kind == wanted), default=0.0)
            for wanted in (False, True)
        )
        return integers, floats

    def others(self) -> list[Any]:
        """The images that were given another range: they are to be read again."""
        both = self.both()
        return [place for place, (kind, high) in self._found.items() if high != both[kind]]

    def in_one_range(self, wanted: Spec, read: Callable[[Spec], T]) -> T:
        """What `read` makes of all images, once more where they were given several ranges.

        `read` shows each image to `see`; the second time it may read `others` alone.
        """
        result = read(wanted)
        if self.others():
            del result  # there may be no room for both
            result = read(replace(wanted, whites=self.both()))
        return result

    def notes(self) -> list[str]:
        """What is to be said of it."""
        if not self._found:
            return []
        white = " and ".join(f"{high:.10g}" for high in self.both() if high)
        count = plural(len(self._found), "image")
        have, do = ("has", "does") if len(self._found) == 1 else ("have", "do")
        return [
            f"{count} {have} more than 8 bits and {do} not state a range: by the values of all of "
            f"them, {white} is white"
        ]
