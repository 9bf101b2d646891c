"""Image files of any common format and size as the arrays that a dataset's networks are given."""

import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data.base import reading
from data.base.errors import UserError
from data.images.datasets import Spec

STDIN = "-"
# Those alone whose decoders are libraries of their own; Pillow would hand others to a program
# (PostScript to Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MOST_BYTES = 256 * 2**20  # of a file
_MOST_PIXELS = 50 * 10**6  # in memory at most 20 bytes each


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
    return (
        Image.registered_extensions().get(file.suffix.lower()) in (*_FORMATS, "MPO")
        and file.is_file()
    )


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
        what = "standard input" if name == STDIN else name
        try:
            content = _content(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about damage that it reads over
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                    _check(image, what)
                    image.load()
                    upright = ImageOps.exif_transpose(image)
        except UserError:
            raise
        except Image.UnidentifiedImageError:
            raise UserError(f"{what} is not an image in a format known here") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError(f"{what} has more pixels than this command reads") from None
        except MemoryError:
            raise
        except Exception as error:  # each decoder raises types of its own for damage
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(f"{what} cannot be read ({reason.splitlines()[0]:.200})") from None
        yield upright


def _content(name: str) -> bytes:
    if name != STDIN:
        return reading.content(Path(name), _MOST_BYTES)
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UserError(f"standard input is longer than {_MOST_BYTES >> 20} MiB")
    return content


def _check(image: Image.Image, what: str) -> None:
    """UserError for an image that is too large, or is several."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise UserError(f"{what} has more pixels than this command reads")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's: the picture, then its preview
        raise UserError(f"{what} holds {frames} images; save the one that is meant as a file")


def _convert(image: Image.Image, spec: Spec, turn: bool) -> UInt8[np.ndarray, "h w c"]:
    """The middle square of an image in the size and channels of a dataset.

    Transparent pixels become black, and 16-bit values their upper 8 bits.
    """
    height, width, channels = spec.image_shape
    if image.mode.startswith("I"):
        deep = np.array(image)
        np.clip(deep, 0, 65535, out=deep)
        deep >>= 8
        image = Image.fromarray(deep.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, "black")
        black.alpha_composite(image)
        image = black
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return pixels.transpose(1, 0, 2) if turn else pixels
