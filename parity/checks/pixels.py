"""From pixels to what the root is given, in plain NumPy, one image at a time.

Written from the definitions of `data.images.augmentation` and from no framework's code: what the
checks of the program (`parity.checks.program`) hold both frameworks' batches against.
"""

import numpy as np

from data.images.augmentation import OPERATIONS, Augmentation


def prepare(
    images: np.ndarray,
    draws: dict[str, np.ndarray],
    policy: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """uint8 images [b, h, w, c] and the draws for them, to float64 [b, h, w, c]."""
    return np.stack(
        [
            _one(image, {name: values[row] for name, values in draws.items()}, policy, mean, std)
            for row, image in enumerate(images)
        ]
    )


def _one(image, draws, policy: Augmentation, mean, std) -> np.ndarray:
    image = image.astype(np.int64)
    height, width, channels = image.shape
    if policy.rand_augment:
        count, magnitude = policy.rand_augment
        for k in range(count):
            image = _operation(image, OPERATIONS[draws["op"][k]], int(draws["sign"][k]), magnitude)
    if policy.crop_padding:
        by, (top, left) = policy.crop_padding, draws["shift"]
        padded = np.pad(image, ((by, by), (by, by), (0, 0)))
        image = padded[top : top + height, left : left + width]
    if policy.flip and draws["flip"]:
        image = image[:, ::-1]
    x = image / 255.0
    for channel in range(channels if mean else 0):
        x[..., channel] = (x[..., channel] - mean[channel]) / std[channel]
    if policy.cutout:
        half = policy.cutout[1] // 2
        for row, column in draws["holes"]:
            x[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    return x


def _operation(image: np.ndarray, name: str, sign: int, magnitude: int) -> np.ndarray:
    """One operation of RandAugment on whole numbers [h, w, c]; fractions are dropped."""
    factor = 100 + sign * 3 * magnitude  # in hundredths
    if name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        return _warp(image, name, sign, magnitude)
    if name == "Brightness":
        return _blend(image, np.zeros_like(image), factor)
    if name == "Color":
        return _blend(image, _grey(image), factor)
    if name == "Contrast":
        grey = _grey(image)
        mixed = factor * grey.size * image + (100 - factor) * grey.sum()
        return np.clip(mixed // (100 * grey.size), 0, 255)
    if name == "Sharpness":
        return _blend(image, _smooth(image), factor)
    if name == "Posterize":
        dropped = round(magnitude / 7.5)  # of the 8 bits of a value
        return image >> dropped << dropped
    if name == "Solarize":
        return np.where(image >= 255 - 255 * magnitude / 30, 255 - image, image)
    if name in ("AutoContrast", "Equalize"):
        change = _stretch if name == "AutoContrast" else _equalize
        return np.stack([change(image[..., c]) for c in range(image.shape[2])], axis=-1)
    return image


def _warp(image: np.ndarray, name: str, sign: int, magnitude: int) -> np.ndarray:
    """The nearest source pixel, of two equally near ones the lower; zeros from outside."""
    height, width = image.shape[:2]
    shear, angle = sign * 0.3 * magnitude / 30, np.radians(sign * magnitude)
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            source = {
                "ShearX": (row, column + shear * (row + 0.5)),
                "ShearY": (row + shear * (column + 0.5), column),
                "TranslateX": (row, column - sign * int(150 / 331 * width * magnitude / 30)),
                "TranslateY": (row - sign * int(150 / 331 * height * magnitude / 30), column),
                "Rotate": (
                    row - y + y * np.cos(angle) + x * np.sin(angle),
                    column - x + x * np.cos(angle) - y * np.sin(angle),
                ),
            }[name]
            r, c = (int(np.floor(place + 0.5 - 1e-6)) for place in source)
            if 0 <= r < height and 0 <= c < width:
                result[row, column] = image[r, c]
    return result


def _blend(image: np.ndarray, other: np.ndarray, factor: int) -> np.ndarray:
    return np.clip((factor * image + (100 - factor) * other) // 100, 0, 255)


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma, [h, w, 1]."""
    if image.shape[2] == 1:
        return image
    red, green, blue = (image[..., c] for c in range(3))
    return ((2989 * red + 5870 * green + 1140 * blue) // 10_000)[..., None]


def _smooth(image: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels, the middle one five times; the border stays."""
    result = image.copy()
    for row in range(1, image.shape[0] - 1):
        for column in range(1, image.shape[1] - 1):
            around = image[row - 1 : row + 2, column - 1 : column + 2].sum((0, 1))
            result[row, column] = np.rint((around + 4 * image[row, column]) / 13)
    return result


def _stretch(channel: np.ndarray) -> np.ndarray:
    low, high = channel.min(), channel.max()
    return channel if low == high else (channel - low) * 255 // (high - low)


def _equalize(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return channel
    table = np.minimum((np.cumsum(counts) - counts + step // 2) // step, 255)
    return table[channel]
