"""Image files of any common format and size as the arrays that a dataset's networks are given."""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.base import reading
from data.base.errors import UserError
from data.images import decoding, fitting
from data.images.fitting import Options, Picture
from data.images.specs import Spec

STDIN = "-"
_MOST_BYTES = 256 * 2**20  # of a file
_DEFAULTS = Options()
_OTHERS = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng")  # images that are not read here


def files(names: Sequence[str]) -> list[str]:
    """The files that `names` mean: a folder stands for the images in and below it, by name.

    UserError for a name that does not exist, and for a folder without images.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STDIN or path.is_file():
            found.append(name)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_image(file))
            if not inside:
                raise UserError(f"{name} holds no image files")
            found += map(str, inside)
        else:
            raise UserError(f"{name} is neither an image file nor a folder")
    if found.count(STDIN) > 1:
        raise UserError("standard input (-) can be read only once")
    return found


def _is_image(file: Path) -> bool:
    """Whether a file's name says so; it may be one that cannot be read, which is then said."""
    suffix = file.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    named = kind in (*decoding.formats(), "MPO") or suffix in _OTHERS
    return named and not file.is_dir()


def read(source: str | Path | Image.Image, spec: Spec, options: Options = _DEFAULTS) -> Picture:
    """One image as the dataset's networks are given it, and what was decided on the way.

    Args:
      source: a file's name (`-`: standard input), or an image of Pillow's.
      spec: the dataset.
      options: how it is made one of the dataset's.

    Raises:
      UserError: it cannot be read, or is not one image; the line names it.

    Example:
      >>> read(Image.new("L", (100, 100)), specs.spec("digits")).pixels.shape
      (8, 8, 1)

    """
    if isinstance(source, Image.Image):
        what = f"the image {getattr(source, 'filename', '')}".strip()
        decoded = decoding.upright(source, what)
    else:
        what = "standard input" if str(source) == STDIN else str(source)
        decoded = decoding.decode(_content(str(source)), what)
    try:
        return fitting.fit(decoded, spec, options, what)
    except (OSError, ValueError) as error:  # a mode that Pillow does not convert
        raise decoding.refusal(error, what) from None


def _content(name: str) -> bytes:
    if name != STDIN:
        return reading.content(Path(name), _MOST_BYTES)
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UserError(f"standard input is longer than {_MOST_BYTES >> 20} MiB")
    return content
