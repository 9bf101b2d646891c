"""`--recipe auto`: a recipe designed for data that nobody has made one for.

One rule, from what is known before training; docs/your-data.md gives the reasons. It continues
the recipes `efficient`, which were made by hand: for the shapes of digits and CIFAR-10 it gives
about their networks and settings.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int, UInt8

from data.base.errors import UserError
from data.images.augmentation import Augmentation
from data.images.on_disk import OnDisk
from data.images.specs import Spec
from data.recipes import recipe as recipes
from data.recipes.networks import Block, Designed, ResNet, map_shapes
from data.recipes.recipe import AUTO, NodeRecipe, Phase, Recipe, Volatility

BACKBONES = ("resnet", "monolith")
BUDGET = 40e6  # multiply-adds for 32x32 images
MANY = 20  # classes above which children have two blocks
PASSES = 2_700_000  # images that joint training goes through: CIFAR-10's 45,000 sixty times
EPOCHS = (20, 60)  # of joint training, at least and at most
STEPS = 400  # of joint training at least, however few images there are
LARGEST_BATCH, MEMORY = 128, 2**31  # images; bytes that a batch's activations may take
ASYMMETRY = 0.05  # of the variance between an image and its mirror image: what is no accident
_LEAST_WIDTH, _STEP = 4, 2  # channels
_LARGE = 64  # sides above it have no block at full size
_LAST = 8  # side of the last feature map at most
_NONE = 1e-6  # a volatility that splits nothing
_CHUNK = 4096  # images that are measured together
Images = UInt8[np.ndarray, "n h w c"] | OnDisk
_SIDES = {"left", "right", "links", "rechts", "gauche", "droite"}


@dataclass(frozen=True)
class Facts:
    """What a recipe is made from.

    `spec`: the dataset; `images`: how many are trained on; `mean`, `std`: of their pixels/255, by
    channel; `flip`: whether a mirrored image is of the same class, `why`: what says so.
    """

    spec: Spec
    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    why: str


def facts(spec: Spec, images: Images, labels: Int[np.ndarray, " n"]) -> Facts:
    """The facts of a dataset, measured on its training images."""
    mean, std = moments(images)
    flip, why = mirrored(spec.class_names, images, labels)
    return Facts(spec, len(labels), mean, std, flip, why)


def moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels/255 by channel, to four decimals.

    Exact whatever the order of summation: whole numbers are added.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return (
        tuple(round(float(x), 4) for x in mean),
        tuple(round(max(float(x), 1 / 255), 4) for x in std),
    )


def mirrored(
    names: Sequence[str], images: Images, labels: Int[np.ndarray, " n"]
) -> tuple[bool, str]:
    """Whether training images may be mirrored, and why.

    Not where a class's name is a number, a single character, or says left or right: signs change
    their meaning. Else by the images: where left and right are not told apart, the mean image of a
    class is its own mirror image (`asymmetry`).
    """
    for name in names:
        words = re.findall(r"[^\W_]+", name.casefold())
        if _SIDES & set(words):
            return False, f"the class {name!r} names a side"
        if any(word.isnumeric() or len(word) == 1 for word in words[:1]) and len(words) == 1:
            return False, f"the class {name!r} may be a sign"
    share = asymmetry(images, labels)
    low = f"{100 * max(share, 0):.1f} % of what tells images from their mirror images is common to"
    if share > ASYMMETRY:
        return False, f"{low} their class"
    return True, f"only {low} their class"


def asymmetry(images: Images, labels: Int[np.ndarray, " n"]) -> float:
    """How far classes have a left and a right, 0 to 1, as a mean over classes.

    The share of the squared difference of images and their mirror images that the mean difference
    of a class makes up; about 0 for photographs, 0.2 to 0.3 for letters and digits. Unbiased,
    so it may be a little below 0. Of each class at most 500 images are looked at.
    """
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)[:500]
        count = len(rows)
        if count < 2:
            continue
        grey = images[rows].mean(-1, dtype=np.float32)
        grey -= grey.mean((1, 2), keepdims=True)
        apart = grey - grey[:, :, ::-1]
        whole = float((apart**2).sum((1, 2)).mean())
        common = float((apart.mean(0) ** 2).sum())
        if whole > 0:
            found.append((count * common - whole) / ((count - 1) * whole))
    return float(np.mean(found)) if found else 0.0


def default_budget(shape: tuple[int, int, int]) -> float:
    """Multiply-adds of the mean path where none are given.

    40 M for sides of 32; below with the number of pixels, above with the side alone: larger images
    show the same things larger, and a network of 224x224 that costs as much a pixel takes days.
    """
    side = max(shape[:2])
    return BUDGET * (side / 32) ** (2 if side < 32 else 1)


def networks_of(spec: Spec, backbone: str, budget: float | None = None) -> Designed:
    """A backbone's networks for a dataset. UserError for another backbone, or too little budget."""
    if backbone not in BACKBONES:
        raise UserError(
            f"no {backbone!r} nodes for dataset {spec.name!r}; recipe auto designs "
            f"{' and '.join(BACKBONES)}"
        )
    shape = spec.image_shape
    designed = networks(shape, len(spec.class_names), budget or default_budget(shape))
    if backbone == "resnet":
        return designed
    whole = ResNet(designed.root.stem, designed.root.blocks + designed.others.blocks)
    return Designed(whole, whole)


def networks(shape: tuple[int, int, int], classes: int, budget: float) -> Designed:
    """The widest networks whose root and child together cost at most `budget` multiply-adds.

    Widths grow as w, 2w, 3w, ... while the map is halved, until its side is 8 or less. A block at
    full size (not above 64x64), two at each size between, one at the last for the root and one for
    children, two for more than 20 classes. UserError if the budget is too small.
    """
    found = None
    for width in range(_LEAST_WIDTH, 513, _STEP):
        designed = _of_width(shape, classes, width)
        if path_cost(designed, shape, classes) > budget:
            break
        found = designed
    if found is None:
        least = path_cost(designed, shape, classes)
        raise UserError(
            f"--budget {budget / 1e6:.3g}M is too little for {shape[0]}x{shape[1]} images: the "
            f"least networks cost {least / 1e6:.3g}M multiply-adds"
        )
    return found


def _of_width(shape: tuple[int, int, int], classes: int, width: int) -> Designed:
    side = max(shape[:2])
    halvings = max(1, math.ceil(math.log2(side / _LAST)))
    blocks = [Block(width)] if side <= _LARGE else []
    for stage in range(1, halvings + 1):
        blocks.append(Block((stage + 1) * width, 2))
        if stage < halvings:
            blocks.append(Block((stage + 1) * width))
    last = Block((halvings + 1) * width)
    return Designed(ResNet(width, tuple(blocks)), ResNet(0, (last,) * (2 if classes > MANY else 1)))


def path_cost(designed: Designed, shape: tuple[int, int, int], classes: int) -> int:
    """Multiply-adds of the root and one child, each with as many outputs as there are classes."""
    root, inner = cost(designed.root, shape, classes)
    child, _ = cost(designed.others, inner, classes)
    return root + child


def cost(
    network: ResNet, shape: tuple[int, int, int], outputs: int
) -> tuple[int, tuple[int, int, int]]:
    """Multiply-adds of convolutions and the linear layer for one image, and the features' shape."""
    shapes = map_shapes(network, shape)
    total = 9 * shape[2] * math.prod(shapes[0]) if network.stem else 0
    for block, (before, after) in zip(network.blocks, pairwise(shapes), strict=True):
        channels, out = before[2], after[2]
        each = 9 * channels * out + 9 * out**2
        if block.stride != 1 or channels != out:
            each += channels * out
        total += each * after[0] * after[1]
    return total + shapes[-1][2] * outputs, shapes[-1]


def batch_size(images: int, classes: int, designed: Designed, shape: tuple[int, int, int]) -> int:
    """Images in a batch: a power of two, 128 at most.

    So many that an epoch has 16 batches or more, but 16 at least, and two for each child that a
    tree may have; fewer where their activations would take more than 2 GiB, or where there
    are not so many images.
    """
    most = LARGEST_BATCH
    while most > 16 and most * _activations(designed, shape) > MEMORY:
        most //= 2
    size = max(min(_power(images / 16), most), min(16, most))
    size = max(size, min(2 * _power(classes + 1), LARGEST_BATCH))
    return max(1, min(size, _power(images)))


def _power(number: float) -> int:
    """The largest power of two that is not larger; 1 for less."""
    return 1 << max(0, int(number).bit_length() - 1)


def _activations(designed: Designed, shape: tuple[int, int, int]) -> int:
    """Bytes that an image takes in training: six float32 maps a block, its own and gradients'."""
    total = 0
    for network in (designed.root, designed.others):
        stem, *blocks = map_shapes(network, shape)
        total += 3 * math.prod(stem) if network.stem else 0
        total += 6 * sum(map(math.prod, blocks))
        shape = blocks[-1]
    return 4 * 2 * total


def design(
    known: Facts,
    backbone: str | None = None,
    budget: float | None = None,
    epochs: int | None = None,
) -> Recipe:
    """The recipe for a dataset.

    Args:
      known: its facts.
      backbone: `resnet`, a tree (also None), or `monolith`, one network of the cost of its paths.
      budget: multiply-adds that an image's mean path may cost; None or 0: by the images' size.
      epochs: of joint training, from which those of growth follow; None: by the number of images.

    Raises:
      UserError: another backbone, a budget that no network keeps, or no epochs.

    """
    backbone = backbone or BACKBONES[0]
    shape, classes = known.spec.image_shape, len(known.spec.class_names)
    budget = budget or default_budget(shape)
    designed = networks_of(known.spec, backbone, budget)
    batch = batch_size(known.images, classes, networks(shape, classes, budget), shape)
    steps = max(1, known.images // batch)
    low, high = EPOCHS
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs is {epochs}; it must be a whole number above 0")
    if epochs is None:
        joint = max(min(max(PASSES // known.images, low), high), math.ceil(STEPS / steps))
    else:
        joint = epochs
    rate = 0.2 * batch / LARGEST_BATCH
    early = min(rate, 0.1)
    volatility: Volatility = AUTO if backbone == "resnet" else _NONE
    row = NodeRecipe(
        volatility,
        _phase(max(min(joint, 2), round(joint / 15)), early),
        _phase(max(1, round(joint / 30)), early),
    )
    side = max(shape[:2])
    return recipes.check(
        Recipe(
            name=AUTO,
            dataset=known.spec.name,
            backbone=backbone,
            root=row,
            others=row,
            batch_size=batch,
            mean=known.mean,
            std=known.std,
            augment=Augmentation(crop_padding=side // 8 if side >= 16 else 0, flip=known.flip),
            joint=_phase(joint, rate, label_smoothing=0.1),
            budget=budget if backbone == "resnet" else 0.0,
            data=known.spec,
            networks=designed,
        )
    )


def _phase(epochs: int, lr: float, label_smoothing: float = 0.0) -> Phase:
    return Phase(
        epochs, "sgd", lr, 5e-4, nesterov=True, schedule="onecycle", label_smoothing=label_smoothing
    )


def lines(recipe: Recipe, known: Facts) -> list[str]:
    """The recipe for people, with what it follows from."""
    spec, joint = recipe.spec, recipe.joint
    assert joint is not None  # `design` gives both
    assert recipe.networks is not None
    height, width, channels = spec.image_shape
    designed = recipe.networks
    paths = (
        path_cost(designed, spec.image_shape, len(spec.class_names))
        if recipe.backbone == "resnet"
        else cost(designed.root, spec.image_shape, len(spec.class_names))[0]
    )
    flips = f"{'mirrored' if known.flip else 'not mirrored'} ({known.why})"
    crop = recipe.augment.crop_padding
    return [
        f"recipe auto for {known.images:,} training images, {height}x{width}x{channels}, "
        f"{len(spec.class_names)} classes",
        f"  networks: {_words(designed.root)}"
        + (f"; children {_words(designed.others)}" if recipe.backbone == "resnet" else "")
        + f"; {paths / 1e6:.3g} M multiply-adds",
        f"  growth: {recipe.root.class_phase.epochs} and {recipe.root.group_phase.epochs} epochs a "
        f"node; together {joint.epochs} epochs of {known.images // recipe.batch_size:,} batches "
        f"of {recipe.batch_size}, rate {joint.lr:.3g}, label smoothing {joint.label_smoothing}",
        f"  images: {flips}; shifted by up to {crop} pixels; mean {_numbers(recipe.mean)}, "
        f"std {_numbers(recipe.std)}",
    ]


def _words(network: ResNet) -> str:
    blocks = [f"{block.out}{'/2' if block.stride == 2 else ''}" for block in network.blocks]
    stem = f"stem {network.stem}, " if network.stem else ""
    return f"{stem}blocks {' '.join(blocks)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
