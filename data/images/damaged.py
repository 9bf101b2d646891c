"""What can still be read of an image file that ends early or is damaged at its end.

Decoders fill what they lack with something, and say nothing of how much that was. So the file is
decoded twice, with different fillings: pixels that differ are those that it does not hold.
"""

import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile

from data.base.errors import UserError

_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "TIFF", "PPM")  # others' decoders read all or nothing
_JPEG_END = b"\xff\xd9"
# Any bytes that are no marker of a JPEG; longer than a block's worth many times over.
_OTHER_DATA = np.random.default_rng(0).integers(0, 255, 4096, np.uint8).tobytes()
_VISIBLE = 8  # of 255: what a JPEG's last refinement may still change
_one_at_a_time = threading.Lock()  # Pillow's switch is the process's


def read(
    content: bytes, kind: str | None, open_image: Callable[[bytes], Image.Image]
) -> tuple[Image.Image, float] | None:
    """(the image, the share of its pixels that the file does not hold), or None.

    Args:
      content: the bytes of the file.
      kind: its format, as Pillow calls it.
      open_image: makes Pillow's image of bytes.

    """
    if kind not in _FORMATS:
        return None
    tails = (b"", b"")
    if kind in ("JPEG", "MPO"):
        content = content.rstrip(b"\xff")  # half a marker
        if not _all_scans(content):
            return None
        tails = (_JPEG_END, _OTHER_DATA + _JPEG_END)
    with _one_at_a_time:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            image, other = (
                _filled(open_image(content + tail), colour)
                for tail, colour in zip(tails, (0, 255), strict=True)
            )
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError, struct.error):
            return None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
    return image, _difference(image, other)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """The share of pixels that differ visibly."""
    if one.mode == "1":
        one, other = one.convert("L"), other.convert("L")
    first, second = np.asarray(one), np.asarray(other)
    differs = np.maximum(first, second) - np.minimum(first, second) > _VISIBLE
    return float((differs.any(-1) if differs.ndim == 3 else differs).mean())


def _filled(image: Image.Image, colour: int) -> Image.Image:
    """An image decoded onto a ground of one colour, which stays where nothing is decoded."""
    bands = len(image.getbands())
    image.im = Image.new(image.mode, image.size, colour if bands == 1 else (colour,) * bands).im
    image.load()
    return image


def _all_scans(content: bytes) -> bool:
    """Whether each coefficient of a JPEG has come in full, up to the scan that the file ends in.

    A progressive file has first a coarse image, then scan by scan what refines it; a scan that is
    not there at all would leave no trace in the pixels.
    """
    lacks: dict[tuple[int, int], int] = {}  # of (component, coefficient): its lower bits
    for marker, body in _segments(content):
        try:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                parts = [body[6 + 3 * place] for place in range(body[5])]
                lacks = {(part, place): 1 for part in parts for place in range(64)}
            elif marker == 0xDA:
                parts = [body[1 + 2 * place] for place in range(body[0])]
                first, last, bits = body[-3], body[-2], body[-1]
                lacks |= {(p, k): bits & 15 for p in parts for k in range(first, last + 1)}
        except IndexError:  # a segment that is cut off
            return False
    return bool(lacks) and not any(lacks.values())


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, what stands in its segment) of a JPEG, past the data of its scans."""
    at = 2
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 3:
        marker = content[at + 1]
        if marker == 0xFF or marker == 0 or 0xD0 <= marker <= 0xD7:  # in a scan's data
            at += 1 if marker == 0xFF else 2
        elif marker == 0xD9:
            return
        else:
            (length,) = struct.unpack_from(">H", content, at + 2)
            yield marker, content[at + 4 : at + 2 + length]
            at += 2 + max(2, length)
