"""The parser of all commands' flags."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from data.base import reading, writing
from data.base.errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes flags by their whole names; a wrong one is one line, like every other mistake.

    `~` in a path is expanded: a shell leaves the `~` of `--out=~/run` as it is, so every flag and
    argument that is text has a `~` at its start replaced by the home folder.
    """

    def __init__(self, **more: Any):
        super().__init__(allow_abbrev=False, **more)
        self.register("type", None, expanded)  # the type of what is declared without one

    def error(self, message: str) -> NoReturn:
        """Raise what `run_command` prints."""
        raise UserError(f"{message} (see --help)")


def expanded(text: str) -> str:
    """The text with the home folder in place of a `~` or `~name` at its start.

        expanded("~/run")

    ArgumentTypeError if there is no such home folder, and no file of that name.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(reading.at_home(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def out_folder(text: str) -> str:
    """The type of a flag that names a folder to write, which is made with those above it.

    ArgumentTypeError if that cannot be done (`writing.check_folder`).
    """
    return str(_checked(text, writing.check_folder))


def out_place(text: str) -> str:
    """`out_folder` for what may be a file or a folder to make (`writing.check_place`)."""
    return str(_checked(text, writing.check_place))


def target(text: str) -> Path:
    """The type of a flag that names a file to write; `-` is standard output.

    ArgumentTypeError if it cannot be written (`writing.check_target`).
    """
    return _checked(text, writing.check_target)


def _checked(text: str, check: Callable[[Path], None]) -> Path:
    try:
        if not text:
            raise UserError("it is empty; name a place to write")
        writing.need_local(text)  # a Path has lost a slash
        place = Path(expanded(text))
        check(place)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return place
