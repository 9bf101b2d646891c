"""An image of any kind as one of a dataset's: its values, ground, polarity, size and position.

Each step decides something that the result depends on, and keeps what it decided.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data.base.errors import UserError
from data.images import values
from data.images.decoding import Decoded
from data.images.specs import Spec

INVERT = ("auto", "yes", "no")
FIT = ("crop", "pad", "stretch")
_FAINT = 16  # of 255: less contrast than that is none
_MIDDLE = 127.5
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")  # Pillow's modes


@dataclass(frozen=True)
class Options:
    """How images become a dataset's.

    `invert`: exchange black and white: `yes`, `no`, or `auto`: where the dataset has light
    strokes on a dark ground and an image a border that is lighter than its middle grey. `fit`:
    what becomes of an image that is not as wide as it should be for its height: `crop` takes its
    middle, `pad` adds of its border's colour, `stretch` changes its proportions. `as_stored`: do
    not turn images for a dataset whose own are stored turned (EMNIST).
    """

    invert: str = "auto"
    fit: str = "crop"
    as_stored: bool = False

    def __post_init__(self):
        for name, choices in (("invert", INVERT), ("fit", FIT)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} is {value!r:.80}; it must be one of {', '.join(choices)}")


@dataclass(frozen=True)
class Picture:
    """An image as networks are given it, and what was decided on the way.

    Attributes:
      pixels: uint8 [h, w, c], of the dataset's shape.
      size: (width, height) of the whole image, upright.
      mode: Pillow's word for what it holds.
      range: the stored values that are black and white.
      missing: the share of its pixels that the file lacks.
      ground: what transparent pixels were put on, `white` or `black`; None if there are none.
      border: the middle grey of its border, 0 to 255, before it was inverted.
      inverted: whether black and white were exchanged.
      cut: the share of the image that was cut off.
      padded: the share of the result that was added.
      stretched: its width was made so many times larger, for its height.
      turned: whether rows and columns were exchanged, as the dataset's own are.
      options: what was asked for.

    """

    pixels: UInt8[np.ndarray, "h w c"]
    size: tuple[int, int]
    mode: str
    range: values.Range
    missing: float
    ground: str | None
    border: float
    inverted: bool
    cut: float
    padded: float
    stretched: float
    turned: bool
    options: Options


def about(picture: Picture) -> dict[str, Any]:
    """What was decided, for JSON."""
    return {
        "size": list(picture.size),
        "mode": picture.mode,
        "black": picture.range.low,
        "white": picture.range.high,
        "range_from": picture.range.origin,
        "missing": picture.missing,
        "transparent_on": picture.ground,
        "border": picture.border,
        "invert": picture.options.invert,
        "inverted": picture.inverted,
        "fit": picture.options.fit,
        "cut": picture.cut,
        "padded": picture.padded,
        "stretched": picture.stretched,
        "turned": picture.turned,
    }


def notes(picture: Picture) -> list[str]:
    """What was decided that somebody might have wanted otherwise, in words."""
    said = []
    if picture.missing:
        said.append(f"{_percent(picture.missing)} of its pixels are missing from the file")
    if picture.range.origin in ("values", "opacity"):
        said.append(f"by its values, {picture.range.high:.10g} is white")
    if picture.ground:
        said.append(f"transparent, put on {picture.ground}")
    if picture.inverted:
        why = "as asked" if picture.options.invert == "yes" else "its border is light"
        said.append(f"inverted, {why}")
    if picture.cut:
        height, width, _ = picture.pixels.shape
        wider = picture.size[0] * height > picture.size[1] * width
        sides = "sides" if wider else "top and bottom"
        said.append(f"{_percent(picture.cut)} cut off its {sides}")
    if picture.padded:
        said.append(f"padded, {_percent(picture.padded)} of the result")
    if picture.stretched != 1:
        said.append(f"width stretched by {picture.stretched:.3g}")
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"


def fit(decoded: Decoded, spec: Spec, options: Options, what: str) -> Picture:
    """A decoded image as one of the dataset's. UserError, about `what`, for useless values."""
    height, width, channels = spec.image_shape
    image, chosen = _eight_bits(decoded, spec, what)
    image, ground = _opaque(image)
    image = image.convert("L" if channels == 1 else "RGB")
    border = _border(image)
    inverted = _to_be_inverted(image, border, spec, options)
    if inverted:
        image = ImageOps.invert(image)
    whole = image.size
    wide = width * whole[1] / (height * whole[0])  # as wide as it should be, for its height
    kept = min(wide, 1 / wide)
    image = _resized(image, (width, height), options.fit)
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    turned = spec.turned and not options.as_stored
    return Picture(
        pixels=pixels.transpose(1, 0, 2) if turned else pixels,
        size=whole,
        mode=decoded.image.mode,
        range=chosen,
        missing=decoded.missing,
        ground=ground,
        border=float(np.median(border)),
        inverted=inverted,
        cut=1 - kept if options.fit == "crop" else 0.0,
        padded=1 - kept if options.fit == "pad" else 0.0,
        stretched=wide if options.fit == "stretch" else 1.0,
        turned=turned,
        options=options,
    )


def _eight_bits(decoded: Decoded, spec: Spec, what: str) -> tuple[Image.Image, values.Range]:
    """The image with 8 bits a channel, and the range of values that it was."""
    image, stored = decoded.image, decoded.deep
    if stored is not None:
        colours, alpha = stored[..., :3], stored[..., 3:]
        pixels, chosen = values.to_bytes(colours, decoded.kind, decoded.tags, what, spec.whites)
        if alpha.size:  # which may be of another range than the colours
            opaque = values.guessed(alpha)
            if chosen.origin == "values" and not colours.any():
                chosen = replace(opaque, origin="opacity")
            pixels = np.concatenate([pixels, values.scale(alpha, opaque)], -1)
        elif isinstance(clear := image.info.get("transparency"), tuple):  # a colour
            shown = (colours != np.array(clear)).any(-1, keepdims=True)
            pixels = np.concatenate([pixels, np.where(shown, 255, 0).astype(np.uint8)], -1)
        return Image.fromarray(pixels), chosen
    if not values.deep(image):
        values.need_unsigned(image, decoded.tags, what)
        return image, values.Range()
    grey = np.asarray(image)
    pixels, chosen = values.to_bytes(grey, decoded.kind, decoded.tags, what, spec.whites)
    result = Image.fromarray(pixels)
    if isinstance(clear := image.info.get("transparency"), int):
        result.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    return result, chosen


def _opaque(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The image on white, as viewers show it; on black where it would vanish on white."""
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return image, None
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):  # nothing shows through
        return image.convert("RGB"), None
    for colour in ("white", "black"):
        ground = Image.new("RGBA", image.size, colour)
        ground.alpha_composite(image)
        result = ground.convert("RGB")
        if np.ptp(np.asarray(result), axis=(0, 1)).max() >= _FAINT:
            return result, colour
    return result, colour


def _border(image: Image.Image) -> np.ndarray:
    """The pixels along the edges, [n] or [n, 3]: a line, or a 32nd of a large image's side."""
    pixels = np.asarray(image)
    deep = max(1, min(image.size) // 32)
    edge = np.ones(pixels.shape[:2], bool)
    edge[deep:-deep, deep:-deep] = False
    return pixels[edge]


def _to_be_inverted(image: Image.Image, border: np.ndarray, spec: Spec, options: Options) -> bool:
    """Whether strokes are dark: the ground, of which a border mostly is, lies in the light half."""
    if options.invert != "auto":
        return options.invert == "yes"
    if not spec.light_strokes:
        return False
    shares = np.cumsum(image.convert("L").histogram()) / (image.width * image.height)
    low, high = np.searchsorted(shares, (0.005, 0.995))  # past specks
    middle = (low + high) / 2 if high - low >= _FAINT else _MIDDLE
    return bool(np.median(border) > middle)


def _resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    if image.size == size:
        return image
    box = Image.Resampling.BOX
    if how == "crop":
        return ImageOps.fit(image, size, box)
    if how == "stretch":
        return image.resize(size, box)
    share = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    colour = np.atleast_1d(np.median(_border(image), axis=0)).round().astype(int).tolist()
    result = Image.new(image.mode, size, tuple(colour))
    place = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    result.paste(image.resize(inner, box), place)
    return result
