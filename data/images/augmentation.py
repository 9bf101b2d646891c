"""The augmentation policy, its random draws and its magnitude tables, shared by both frameworks.

What happens to an image is decided here; `trunk_jax.network.augment` and
`trunk_torch_ref.network.augment` each carry it out. Values are whole numbers wherever a result is
a whole number, so that both arrive at the same pixels without depending on anybody's rounding. The
operations are those of torchvision on uint8 tensors, in exact arithmetic: torchvision's float32
comes out one level lower on a few pixels (under 1 % at magnitude 8) whose exact value is whole.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.base.errors import UserError

# RandAugment (arXiv:1909.13719) with torchvision's 14 operations and 31 magnitudes.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
GEOMETRIC = OPERATIONS[1:6]

SHEAR = np.linspace(0, 0.3, 31)  # tangent of the angle
ROTATION = np.linspace(0, 30, 31)  # degrees, anticlockwise when positive
BLEND_PERCENT = 3 * np.arange(31)  # linspace(0, 0.9) in hundredths: the factor is 1 +- this
POSTERIZE_BITS = 8 - np.rint(np.arange(31) / 7.5).astype(np.int64)  # high bits kept
SOLARIZE_FROM = np.ceil(np.linspace(255, 0, 31)).astype(np.int64)  # values from here are inverted

# Red, green and blue in a grey value, in ten-thousandths. As in torchvision they fall one
# short of 1 and the sum is truncated, so a grey pixel comes out one level darker.
LUMA = (2989, 5870, 1140)
LUMA_UNIT = 10_000

# A point this close to half way between two pixels takes the lower one. Exact ties do occur
# (shear 0.2, say), and without a rule the last bit of a product would settle them.
TIE = 1e-6


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in the order of the fields.

    All but Cutout work on uint8 pixels; Cutout zeroes normalised ones. The default does
    nothing. Raises UserError on a value out of range.
    """

    rand_augment: tuple[int, int] | None = None  # (operations an image, magnitude 0 to 30)
    crop_padding: int = 0  # zeros on each side before a random crop back to the size
    flip: bool = False  # left to right, every other image
    cutout: tuple[int, int] | None = None  # (holes, side in pixels)

    def __post_init__(self):
        if self.rand_augment is not None:
            operations, magnitude = self.rand_augment
            if operations < 1 or not 0 <= magnitude <= 30:
                raise UserError(
                    f"rand_augment {self.rand_augment}: give at least 1 operation and a "
                    "magnitude from 0 to 30"
                )
        if self.crop_padding < 0:
            raise UserError(f"crop_padding {self.crop_padding}: give 0 or a number of pixels")
        if self.cutout is not None:
            holes, side = self.cutout
            if holes < 1 or side < 2:
                raise UserError(
                    f"cutout {self.cutout}: give at least 1 hole and a side of at least 2 pixels"
                )

    def __bool__(self) -> bool:
        """Whether anything random happens to an image."""
        return bool(self.rand_augment or self.crop_padding or self.flip or self.cutout)


def draw(
    policy: Augmentation, generator: np.random.Generator, count: int, height: int, width: int
) -> dict[str, np.ndarray]:
    """Every random choice for `count` images of `height` x `width` pixels.

    Only what the policy uses: `op` int32 [count, operations] (index into OPERATIONS) and
    `sign` int32 [count, operations] (-1 or 1, of no effect on unsigned operations); `shift`
    int32 [count, 2] (row, column of the crop in the padded image, 0 to 2 * padding); `flip`
    bool [count]; `holes` int32 [count, holes, 2] (row, column of each centre).
    """
    draws = {}
    if policy.rand_augment:
        shape = (count, policy.rand_augment[0])
        draws["op"] = generator.integers(len(OPERATIONS), size=shape, dtype=np.int32)
        draws["sign"] = 1 - 2 * generator.integers(2, size=shape, dtype=np.int32)
    if policy.crop_padding:
        draws["shift"] = generator.integers(
            2 * policy.crop_padding, endpoint=True, size=(count, 2), dtype=np.int32
        )
    if policy.flip:
        draws["flip"] = generator.integers(2, size=count, dtype=np.int32).astype(bool)
    if policy.cutout:
        draws["holes"] = generator.integers(
            (height, width), size=(count, policy.cutout[0], 2), dtype=np.int32
        )
    return draws


def translation(magnitude: int, size: int) -> int:
    """Pixels that an axis of `size` pixels is moved by."""
    return int(np.linspace(0, 150 / 331 * size, 31)[magnitude])


@lru_cache
def sources(magnitude: int, height: int, width: int) -> np.ndarray:
    """Where each pixel of a warped image comes from, for every warp of one magnitude.

    Returns int32 [11, height, width], read-only: the flat index row * width + column of the
    nearest source pixel, -1 outside the image. Map 0 is the identity; GEOMETRIC[k] with a
    positive sign is map 2k + 1, with a negative sign 2k + 2. A positive shear or translation
    is torchvision's: the shears keep the first row or column, the rotation the centre.
    """
    row, column = np.mgrid[:height, :width].astype(np.float64)
    y, x = row - (height - 1) / 2, column - (width - 1) / 2
    points = [(row, column)]
    for sign in (1, -1):
        shear = sign * SHEAR[magnitude]
        angle = np.radians(sign * ROTATION[magnitude])
        points += [
            (row, column + shear * (row + 0.5)),
            (row + shear * (column + 0.5), column),
            (row, column - sign * translation(magnitude, width)),
            (row - sign * translation(magnitude, height), column),
            (
                row + y * (np.cos(angle) - 1) + x * np.sin(angle),
                column + x * (np.cos(angle) - 1) - y * np.sin(angle),
            ),
        ]
    order = [0, *(1 + k + len(GEOMETRIC) * s for k in range(len(GEOMETRIC)) for s in (0, 1))]
    row, column = np.floor(np.array(points)[order] + 0.5 - TIE).astype(np.int32).swapaxes(0, 1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    table = np.where(inside, row * width + column, -1).astype(np.int32)
    table.flags.writeable = False
    return table
