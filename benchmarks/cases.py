"""What is timed: a list of cases as data, and the inputs that both sides are given."""

from dataclasses import dataclass, replace

import numpy as np

from data import datasets, hierarchy
from data import recipe as recipes
from data.hierarchy import Tree
from data.recipe import Recipe

STEP_BATCH, TREE_BATCH = 128, 256

# Two levels, in the manner of the published trees (CIFAR-10's is the published one).
GROUPS = {
    "cifar10": ((0, 8), (1, 9), (2, 4, 7), (3, 5), (6,)),
    "svhn": ((0, 6), (1, 4, 7), (2,), (3, 5, 8, 9)),
    "emnist": tuple(tuple(range(start, min(start + 8, 47))) for start in range(0, 47, 8)),
}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      kind: `step`, `forward`, `epoch`, `tree` or `image`.
      dataset, backbone: of the nodes, with the published recipe.
      theirs: what it is compared with: forms of PyTorch, the best of which counts, or
        `ancestors` (ours, ancestors run in every step) or `published` (weights read from
        disk at each node of each image).
      bar: the ratio that we mean to stay under, or None.

    """

    kind: str
    dataset: str
    backbone: str
    theirs: tuple[str, ...]
    bar: float | None = None

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{WHAT[self.kind]}, {self.dataset} {self.backbone}, against {NAMES[self.theirs]}"


BATCH_OF = {"step": STEP_BATCH, "forward": TREE_BATCH}
WHAT = {
    "step": f"training step, root, batch {STEP_BATCH}",
    "forward": f"forward, root, batch {TREE_BATCH}",
    "epoch": "a child's epoch, inputs kept",
    "tree": f"whole tree, batch {TREE_BATCH}",
    "image": "whole tree, one image",
}
FORMS = ("eager", "channels_last", "compile")
NAMES = {
    FORMS: "PyTorch's best form",
    ("eager",): "PyTorch eager",
    ("ancestors",): "ancestors rerun",
    ("published",): "the published way",
}
PAIRS = (("svhn", "mobilenet"), ("emnist", "mobilenet"), ("cifar10", "vgg"),
         ("cifar10", "mobilenet"), ("svhn", "vgg"), ("emnist", "vgg"))  # fmt: skip
_BARRED = PAIRS[:3]


def cases() -> list[Case]:
    """All of them."""
    result = []
    for pair in PAIRS:
        barred = pair in _BARRED
        result.append(Case("step", *pair, FORMS, 0.9 if barred else None))
        result.append(Case("forward", *pair, FORMS, 0.7 if barred else None))
    for pair in _BARRED:
        result.append(Case("epoch", *pair, ("ancestors",), 1 / 3))
        result.append(Case("tree", *pair, ("eager",)))
        result.append(Case("image", *pair, ("eager",), 1 / 5))
        result.append(Case("image", *pair, ("published",), 1 / 50))
    return result


def recipe_of(case: Case) -> Recipe:
    """The published recipe without augmentation, which is not what is timed."""
    recipe = recipes.load("published", case.dataset, case.backbone)
    nothing = type(recipe.augment)()
    return replace(recipe, augment=nothing, eval_augment=nothing)


def tree_of(case: Case) -> Tree:
    """The case's tree."""
    tree = hierarchy.bare(classes(case))
    return hierarchy.regroup(tree, hierarchy.ROOT, GROUPS[case.dataset])


def classes(case: Case) -> int:
    """How many classes its dataset has."""
    return len(datasets.spec(case.dataset).class_names)


def shape(case: Case) -> tuple[int, int, int]:
    """Height, width and channels of its images."""
    return datasets.spec(case.dataset).image_shape


def images(case: Case, count: int) -> np.ndarray:
    """Random pixels, uint8 [count, h, w, c]."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape(case)), np.uint8)


def labels(case: Case, count: int) -> np.ndarray:
    """Random classes, int64 [count]."""
    return np.random.default_rng(1).integers(0, classes(case), count)
