"""Every kind of node there is: dataset, backbone, root or child, with and without padding.

CIFAR-10's mobilenet root is SVHN's, so one line stands for both. Without the padding EMNIST's
mobilenet nodes differ from SVHN's in the size of their maps alone; they are left out.
"""

from dataclasses import dataclass
from functools import partial

from data.recipes import recipe as recipes
from parity.pairs.passes import Pair, pair
from trunk_jax import nodes as jax_nodes
from trunk_torch_ref import nodes as torch_nodes

PADDED = ("pointwise_padding",)


@dataclass(frozen=True)
class Family:
    """A node network and its input. `shape`: height, width, channels."""

    dataset: str
    backbone: str
    node: str
    shape: tuple[int, int, int]
    outputs: int
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it stands in the report."""
        padding = ", padded" if self.faults else ""
        same = self.dataset == "svhn" and self.backbone == "mobilenet" and self.node == "root"
        dataset = "svhn and cifar10" if same else self.dataset
        return f"{dataset} {self.backbone} {self.node}{padding}"

    @property
    def loss(self) -> str:
        """The loss that the published recipe trains it with; cross-entropy where there is none."""
        if not recipes.having("published", self.dataset, self.backbone):
            return "cross_entropy"
        return recipes.load("published", self.dataset, self.backbone).loss


FAMILIES = (
    Family("emnist", "mobilenet", "root", (28, 28, 1), 47, PADDED),
    Family("emnist", "mobilenet", "sg1", (38, 38, 32), 5, PADDED),
    Family("svhn", "mobilenet", "root", (32, 32, 3), 10, PADDED),
    Family("svhn", "mobilenet", "sg1", (40, 40, 32), 4, PADDED),
    Family("cifar10", "mobilenet", "sg1", (40, 40, 32), 4, PADDED),
    Family("svhn", "mobilenet", "root", (32, 32, 3), 10),
    Family("svhn", "mobilenet", "sg1", (16, 16, 32), 4),
    Family("cifar10", "mobilenet", "sg1", (16, 16, 32), 4),
    Family("digits", "mobilenet", "root", (8, 8, 1), 10),
    Family("digits", "mobilenet", "sg1", (4, 4, 24), 4),
    Family("cifar10", "vgg", "root", (32, 32, 3), 10),
    Family("cifar10", "vgg", "sg1", (16, 16, 64), 2),
    Family("cifar10", "vgg", "sg5", (16, 16, 64), 3),
    Family("cifar10", "vgg", "sg7", (16, 16, 64), 2),
    Family("emnist", "vgg", "root", (28, 28, 1), 47),
    Family("emnist", "vgg", "sg1", (14, 14, 16), 5),
    Family("svhn", "vgg", "root", (32, 32, 3), 10),
    Family("svhn", "vgg", "sg1", (16, 16, 32), 4),
    Family("digits", "vgg", "root", (8, 8, 1), 10),
    Family("digits", "vgg", "sg1", (4, 4, 32), 4),
    Family("cifar10", "resnet", "root", (32, 32, 3), 10),
    Family("cifar10", "resnet", "sg1", (8, 8, 64), 4),
    Family("emnist", "resnet", "root", (28, 28, 1), 47),
    Family("digits", "resnet", "root", (8, 8, 1), 10),
    Family("digits", "resnet", "sg1", (4, 4, 32), 4),
)


def build(family: Family, seed: int) -> Pair:
    """The family's network in both frameworks."""
    height, width, channels = family.shape
    where = (family.dataset, family.backbone, family.node)
    ours = partial(jax_nodes.build, *where, family.shape, family.outputs, faults=family.faults)
    theirs = partial(
        torch_nodes.build, *where, (channels, height, width), family.outputs, faults=family.faults
    )
    return pair(lambda rng: ours(rng=rng), theirs, seed)
