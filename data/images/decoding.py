"""The bytes of an image file as pixels, however deep, and how many of them are not there.

Pillow decodes. What is added here: the formats that are let in, PNGs whose text is longer than
Pillow reads, files that end early but hold their pixels (`damaged`), and the lower byte of colour
with 16 bits a channel, of which Pillow gives the upper one alone.
"""

import io
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from data.base.errors import UserError
from data.images import damaged

# Those alone whose decoders are libraries of their own; Pillow would hand others to a program
# (PostScript to Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 50 * 10**6  # in memory at most 20 bytes each
_MOST_MISSING = 0.05  # of an image's pixels: a last row of 28, or a last block of a JPEG
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_NOT_NEEDED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # of a PNG
# What Pillow calls 2 and 4 bits of grey: the largest value, and what it multiplies values by.
_FEW_BITS = {"L;2": (3, 85), "L;4": (15, 17)}
# What Pillow calls 16 bits a channel, and what it would call the same bytes if the lower byte
# came first: decoded so, it takes the lower for the upper.
_OTHER_BYTE = {
    f"{channels};16{order}": f"{channels};16{other}"
    for channels in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
} | {"LA;16B": "RGBA"}  # which it has no such name for: four bytes instead


@dataclass(frozen=True)
class Decoded:
    """An image, upright: cameras note in the file how it was held.

    `image`: as Pillow has it; `kind`: the format that it came in, None if in none; `tags`: a
    TIFF's; `deep`: uint16 [h, w, channels] where a channel has 16 bits and `image` the upper 8 of
    them, else None; `missing`: the share of pixels that the file lacks.
    """

    image: Image.Image
    kind: str | None = None
    tags: Mapping[int, Any] = field(default_factory=dict)
    deep: np.ndarray | None = None
    missing: float = 0.0


def formats() -> tuple[str, ...]:
    """What is read: AVIF too, where this Pillow has a decoder for it."""
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return _FORMATS
    return (*_FORMATS, "AVIF") if AvifImagePlugin.SUPPORTED else _FORMATS


def decode(content: bytes, what: str) -> Decoded:
    """The image in the bytes of a file. UserError, about `what`, for one that is no good."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage that it reads over
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return _decode(content, what)
            except Image.UnidentifiedImageError:
                if not content.startswith(_TIFF):
                    raise
                raise UserError(
                    f"{what} is a kind of TIFF that is not read here, as are 64-bit floats and "
                    "colours in floats; save it with integers, or as a PNG"
                ) from None
            except UserError:
                raise
            except ValueError:  # text in a PNG that is too long for Pillow, perhaps
                without = _without_text(content)
                if len(without) == len(content):
                    raise
                return _decode(without, what)
    except Exception as error:
        raise refusal(error, what) from None


def upright(image: Image.Image, what: str) -> Decoded:
    """An image that Pillow has opened. UserError, about `what`, if it cannot be decoded."""
    try:
        _check(image, what)
        return _decoded(image)
    except Exception as error:
        raise refusal(error, what) from None


def refusal(error: Exception, what: str) -> Exception:
    """What to raise for an error of Pillow's: each decoder has types of its own for damage."""
    if isinstance(error, UserError | MemoryError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{what} is not an image in a format known here")
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return UserError(f"{what} has more pixels than are read here")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{what} cannot be read ({reason.splitlines()[0]:.200})")


def _decode(content: bytes, what: str) -> Decoded:
    image = _open(content, what)
    kinds = [_kind(tile[3]) for tile in _tiles(image)]
    deep = bool(kinds) and all(kind in _OTHER_BYTE for kind in kinds)
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        found = damaged.read(content, image.format, lambda content: _open(content, what))
        if found is None or deep:  # of half of each value nothing can be said
            raise
        image, missing = found
        if missing > _MOST_MISSING:
            reason = f"it is cut short or damaged: {100 * missing:.0f} % of its pixels are missing"
            raise UserError(f"{what} cannot be read ({reason})") from error
        return _decoded(image, missing=missing)
    return _decoded(image, _all_bits(_open(content, what), image) if deep else None)


def _decoded(image: Image.Image, deep: np.ndarray | None = None, missing: float = 0.0) -> Decoded:
    # what is turned upright is a copy, which has lost both
    kind, tags = image.format, getattr(image, "tag_v2", {})
    return Decoded(ImageOps.exif_transpose(image), kind, tags, deep, missing)


def _open(content: bytes, what: str) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=formats())
    _check(image, what)
    _scale_clear(image)
    return image


def _check(image: Image.Image, what: str) -> None:
    """UserError for an image that is too large, or is several."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise UserError(f"{what} has more pixels than are read here")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's: the picture, then its preview
        raise UserError(f"{what} holds {frames} images; save the one that is meant as a file")


def _scale_clear(image: Image.Image) -> None:
    """Bring the grey value that a PNG makes transparent to 8 bits, as Pillow brings the pixels."""
    clear = image.info.get("transparency")
    kind = next((str(_kind(tile[3])) for tile in _tiles(image)), "")
    most, step = _FEW_BITS.get(kind, (0, 0))
    if isinstance(clear, int) and clear <= most:
        image.info["transparency"] = clear * step


def _all_bits(again: Image.Image, upper: Image.Image) -> np.ndarray:
    """All 16 bits a channel: what is decoded has the upper 8, the same file opened the lower."""
    tiles = _tiles(again)
    kind = _kind(tiles[0][3])
    tiles[:] = [_with_kind(tile, _OTHER_BYTE[_kind(tile[3])]) for tile in tiles]
    lower = np.asarray(ImageOps.exif_transpose(again))
    if kind == "LA;16B":
        lower = lower[..., [1, 1, 1, 3]]
    return np.asarray(ImageOps.exif_transpose(upper)).astype(np.uint16) << 8 | lower


def _kind(arguments: Any) -> Any:
    """How a decoder is told that the bytes are laid out."""
    return arguments if isinstance(arguments, str) else next(iter(arguments or ()), None)


def _tiles(image: Image.Image) -> list[Any]:
    """What Pillow knows of how a file's pixels are stored; of an opened file, not of any image."""
    assert isinstance(image, ImageFile.ImageFile)
    return image.tile


def _with_kind(tile: Any, kind: str) -> Any:
    arguments = kind if isinstance(tile[3], str) else (kind, *tile[3][1:])
    # older versions of Pillow have plain tuples
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _without_text(content: bytes) -> bytes:
    """A PNG without text and colour profile; anything else as it is."""
    if not content.startswith(_PNG):
        return content
    return _PNG + b"".join(chunk for kind, chunk in _chunks(content) if kind not in _NOT_NEEDED)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, bytes) of the chunks of a PNG; a last one that is cut off as far as it goes."""
    at = len(_PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind, content[at : at + 12 + length]
        at += 12 + length
