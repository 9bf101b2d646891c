"""Image files of any common format and size as the arrays that a dataset's networks are given."""

import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data.datasets import Spec
from data.errors import UserError

STDIN = "-"


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
    return file.is_file() and file.suffix.lower() in Image.registered_extensions()


def load(names: Sequence[str], spec: Spec, *, as_stored: bool) -> UInt8[np.ndarray, "n h w c"]:
    """The images of `names` (`-`: standard input), each as one of the dataset's.

    `as_stored`: do not turn images for a dataset whose own are stored turned (EMNIST).
    UserError, naming the file, for one that cannot be read.
    """
    turn = spec.name == "emnist" and not as_stored
    return np.stack([_convert(image, spec, turn) for image in _open(names)])


def _open(names: Sequence[str]) -> Iterator[Image.Image]:
    """Each image, upright: cameras note in the file how it was held."""
    for name in names:
        try:
            content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
                    yield ImageOps.exif_transpose(image)
        except Image.UnidentifiedImageError:
            what = "standard input" if name == STDIN else name
            raise UserError(f"{what} is not an image in a format known here") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError(f"{name} has more pixels than this command reads") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            what = "standard input" if name == STDIN else name
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(f"{what} cannot be read ({reason.splitlines()[0]:.200})") from None


def _convert(image: Image.Image, spec: Spec, turn: bool) -> UInt8[np.ndarray, "h w c"]:
    """The middle square of an image in the size and channels of a dataset.

    Transparent pixels become black, and 16-bit values their upper 8 bits.
    """
    height, width, channels = spec.image_shape
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return pixels.transpose(1, 0, 2) if turn else pixels
