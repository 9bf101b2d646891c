"""What is timed: a list of cases as data, and the inputs that both sides are given."""

from dataclasses import dataclass, replace

import numpy as np

from data.images import datasets, specs
from data.images.splits import Splits, split
from data.recipes import recipe as recipes
from data.recipes.recipe import Recipe
from data.tree import hierarchy
from data.tree.hierarchy import Tree

STEP_BATCH, TREE_BATCH = 128, 256
PRECISIONS = ("float32", "tf32", "bfloat16")
PIECE = 16  # so many at a time PyTorch takes a batch through mobilenet's root fastest
EPOCH_BATCHES = 4  # a benchmark's epoch: long enough to be one, short enough to be repeated

# Two levels, in the manner of the published trees (CIFAR-10's is the published one).
GROUPS = {
    "cifar10": ((0, 8), (1, 9), (2, 4, 7), (3, 5), (6,)),
    "svhn": ((0, 6), (1, 4, 7), (2,), (3, 5, 8, 9)),
    "emnist": tuple(tuple(range(start, min(start + 8, 47))) for start in range(0, 47, 8)),
}
# And a third level under the first child, for `deep`: local indices of its classes.
DEEPER = {"emnist": ((0, 1), (2, 3), (4, 5), (6, 7))}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      kind: `step`, `forward`, `node`, `epoch`, `deep`, `tree`, `image` or `grow`.
      dataset, backbone: of the nodes, with the published recipe.
      theirs: what it is compared with: forms of PyTorch, the best of which counts, or
        `pieces` (compiled, a few images at a time), `ancestors` (ours, ancestors run in every
        step) or `published` (weights read from disk at each node of each image).
      bar: the ratio that we mean to stay under, or None.
      limit_s: the seconds that we mean to stay under, or None.
      batch: images at a time; None: the kind's own number.
      precision: one of `PRECISIONS`, of both sides; None: each framework's own.

    """

    kind: str
    dataset: str
    backbone: str
    theirs: tuple[str, ...]
    bar: float | None = None
    limit_s: float | None = None
    batch: int | None = None
    precision: str | None = None

    @property
    def images(self) -> int:
        """How many are computed at a time."""
        return self.batch or (STEP_BATCH if self.kind in ("step", "node", "epoch") else TREE_BATCH)

    @property
    def name(self) -> str:
        """As it stands in the table."""
        what = WHAT[self.kind].format(batch=self.images)
        precision = f", {self.precision}" if self.precision else ""
        against = NAMES.get(self.theirs, " and ".join(self.theirs))
        return f"{what}, {self.dataset} {self.backbone}{precision}, against {against}"


RATED = ("step", "forward", "image")  # whose multiply-adds a second are compared with the peak
WHAT = {
    "step": "training step, root, batch {batch}",
    "forward": "forward, root, batch {batch}",
    "node": f"the root's whole epoch, {EPOCH_BATCHES} batches and validation",
    "epoch": "a child's epoch, inputs kept",
    "deep": "a grandchild's epoch, inputs kept",
    "tree": "whole tree, batch {batch}",
    "image": "whole tree, one image",
    "grow": "growing the whole tree, published recipe",
}
FORMS = ("eager", "channels_last", "compile")
NAMES = {
    FORMS: "PyTorch's best form",
    ("eager",): "PyTorch eager",
    ("compile",): "torch.compile",
    ("pieces",): f"torch.compile, {PIECE} images at a time",
    ("channels_last",): "the PyTorch port's own epoch",
    ("ancestors",): "ancestors rerun",
    ("published",): "the published way",
    ("one epoch",): "one epoch of PyTorch's root",
}
PAIRS = (
    ("svhn", "mobilenet"),
    ("emnist", "mobilenet"),
    ("cifar10", "vgg"),
    ("cifar10", "mobilenet"),
    ("svhn", "vgg"),
    ("emnist", "vgg"),
)
_BARRED = PAIRS[:3]


def cases(accelerator: bool = False) -> list[Case]:
    """All of them; some only on an accelerator."""
    result = []
    for pair in PAIRS:
        barred = pair in _BARRED and not accelerator
        result.append(Case("step", *pair, FORMS, 0.9 if barred else None))
        if accelerator:
            result.append(Case("step", *pair, ("compile",), 0.7))
        result.append(Case("forward", *pair, FORMS, 0.7 if barred else None))
        if barred:
            result.append(Case("forward", *pair, ("pieces",)))
        result.append(Case("node", *pair, ("channels_last",)))
    for pair in _BARRED:
        result.append(Case("epoch", *pair, ("ancestors",), 1 / 3))
        if pair[0] in DEEPER:
            result.append(Case("deep", *pair, ("ancestors",), 1 / 3))
        result.append(Case("tree", *pair, ("eager",)))
        result.append(Case("image", *pair, ("eager",), 1 / 5))
        result.append(Case("image", *pair, ("published",), 1 / 50))
    if accelerator:
        result.append(Case("grow", "svhn", "mobilenet", ("one epoch",), limit_s=300.0))
    return result


def recipe_of(case: Case) -> Recipe:
    """The published recipe without augmentation, which is not what is timed.

    EMNIST and SVHN with vgg were published without a recipe; they have the corrected one.
    """
    combination = (case.dataset, case.backbone)
    name = "published" if combination in recipes.combinations("published") else "corrected"
    recipe = recipes.load(name, *combination)
    if case.kind == "grow":
        return recipe
    nothing = type(recipe.augment)()
    return replace(recipe, augment=nothing, eval_augment=nothing)


def tree_of(case: Case) -> Tree:
    """The case's tree."""
    tree = hierarchy.bare(classes(case))
    tree = hierarchy.regroup(tree, hierarchy.ROOT, GROUPS[case.dataset])
    if case.kind == "deep":
        tree = hierarchy.regroup(tree, (0,), DEEPER[case.dataset])
    return tree


def node_of(case: Case) -> hierarchy.Node:
    """The node whose epoch is timed."""
    return {"node": hierarchy.ROOT, "deep": (0, 0)}.get(case.kind, (0,))


def split_of(recipe: Recipe) -> Splits:
    """The recipe's dataset itself, from where the commands find it, in parts."""
    return split(datasets.load(recipe.dataset), recipe.protocol, recipe.seed, recipe.limit)


def classes(case: Case) -> int:
    """How many classes its dataset has."""
    return len(specs.spec(case.dataset).class_names)


def shape(case: Case) -> tuple[int, int, int]:
    """Height, width and channels of its images."""
    return specs.spec(case.dataset).image_shape


def images(case: Case, count: int) -> np.ndarray:
    """Random pixels, uint8 [count, h, w, c]."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape(case)), np.uint8)


def labels(case: Case, count: int) -> np.ndarray:
    """Random classes, int64 [count]."""
    return np.random.default_rng(1).integers(0, classes(case), count)
