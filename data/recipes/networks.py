"""The node networks as data: which layers each node has (docs/trunk.md, section 2, and ours).

A mobilenet node is a list of inverted residuals (out, expansion, stride) after an optional
stem; a vgg node a list of words:

| word | layer |
|---|---|
| `c16` | 3x3 convolution to 16 channels, padding 1 -> batch norm -> ReLU |
| `c64/2` | the same to 64 channels with stride 2 |
| `M` | 2x2 max pool |
| `D`, `D2` | dropout of elements, of whole channels, with probability 1/2 |

A resnet node, ours, is a list of basic blocks (out, stride) after an optional stem, with live
shortcuts; a monolith is one such network for all classes, of about the cost of a resnet tree's
paths, to compare it with.

The networks for `digits` are ours, in the published manner.
"""

from dataclasses import dataclass

from data.base.errors import UserError

BACKBONES = ("mobilenet", "vgg", "resnet", "monolith")


@dataclass(frozen=True)
class Residual:
    """An inverted residual: 1x1 to `expansion` times the input, 3x3 depthwise, 1x1 to `out`."""

    out: int
    expansion: int
    stride: int = 1


@dataclass(frozen=True)
class MobileNet:
    """`stem`: channels of the stride-2 stem convolution, 0 for none (all nodes but the root)."""

    stem: int
    residuals: tuple[Residual, ...]


@dataclass(frozen=True)
class Vgg:
    """`layers`: words as in the table above."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A basic residual block: two 3x3 convolutions to `out` channels, the first with `stride`."""

    out: int
    stride: int = 1


@dataclass(frozen=True)
class ResNet:
    """`stem`: channels of the 3x3 stem convolution, 0 for none (all nodes but the root)."""

    stem: int
    blocks: tuple[Block, ...]


Network = MobileNet | Vgg | ResNet


def map_shapes(network: ResNet, shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(height, width, channels) after the stem, or of the input without one, and after each block.

    Example: `map_shapes(ResNet(8, (Block(16, 2),)), (32, 32, 3))` is [(32, 32, 8), (16, 16, 16)].
    """
    height, width, channels = shape
    found = [(height, width, network.stem or channels)]
    for block in network.blocks:
        height, width = -(-height // block.stride), -(-width // block.stride)
        found.append((height, width, block.out))
    return found


@dataclass(frozen=True)
class Designed:
    """The networks of a recipe's own: made for its data (`data.recipes.auto`), or in its file."""

    root: ResNet
    others: ResNet

    def network(self, node: str) -> ResNet:
        """That of the node called `node`."""
        return self.root if node == "root" else self.others


def _residuals(*rows: tuple[int, ...]) -> tuple[Residual, ...]:
    return tuple(Residual(*row) for row in rows)


_MOBILENET_ROOT = MobileNet(24, _residuals((24, 2), (24, 4), (24, 4), (32, 4), (32, 4), (32, 4)))
_MOBILENET_NODE = MobileNet(0, _residuals((48, 4), (48, 4), (48, 4)))
_MOBILENET_CIFAR = MobileNet(
    0, _MOBILENET_NODE.residuals + _residuals((96, 8, 2), (192, 8, 2), (192, 4, 1))
)
_MOBILENET_DIGITS = MobileNet(16, _residuals((16, 2), (16, 4), (24, 4)))
_MOBILENET_DIGITS_NODE = MobileNet(0, _residuals((32, 4), (32, 4)))


def _vgg(words: str) -> Vgg:
    return Vgg(tuple(words.split()))


def _resnet(stem: int, *rows: tuple[int, ...]) -> ResNet:
    return ResNet(stem, tuple(Block(*row) for row in rows))


_NETWORKS: dict[tuple[str, str], dict[str, Network]] = {
    ("emnist", "mobilenet"): {"root": _MOBILENET_ROOT, "others": _MOBILENET_NODE},
    ("svhn", "mobilenet"): {"root": _MOBILENET_ROOT, "others": _MOBILENET_NODE},
    ("cifar10", "mobilenet"): {"root": _MOBILENET_ROOT, "others": _MOBILENET_CIFAR},
    ("digits", "mobilenet"): {"root": _MOBILENET_DIGITS, "others": _MOBILENET_DIGITS_NODE},
    ("cifar10", "vgg"): {
        "root": _vgg("c16 c32 c32 c32 c64 c64 M D2"),
        "sg1": _vgg("c64 c32 D2"),
        "sg3": _vgg("c64 c32 D2"),
        "sg5": _vgg("c32 c32 c64 c128 c128/2 D2"),
        "others": _vgg("c16 c32 c32 c64 c64/2 c128/2 D2"),
    },
    ("emnist", "vgg"): {"root": _vgg("c16 M c16 D"), "others": _vgg("c32 c48 M")},
    ("svhn", "vgg"): {"root": _vgg("c16 c32 c32 M"), "others": _vgg("c32 c64 M D")},
    ("digits", "vgg"): {"root": _vgg("c16 c32 M D"), "others": _vgg("c32 c64 D")},
    ("cifar10", "resnet"): {
        "root": _resnet(24, (24,), (48, 2), (48,), (64, 2)),
        "others": _resnet(0, (72,)),
    },
    ("svhn", "resnet"): {
        "root": _resnet(24, (24,), (40, 2), (40,), (56, 2), (56,)),
        "others": _resnet(0, (48,)),
    },
    ("emnist", "resnet"): {
        "root": _resnet(24, (24,), (40, 2), (40,), (56, 2), (56,)),
        "others": _resnet(0, (40,)),
    },
    ("digits", "resnet"): {"root": _resnet(16, (16,), (32, 2)), "others": _resnet(0, (32,))},
    ("cifar10", "monolith"): {"others": _resnet(24, (24,), (48, 2), (48,), (64, 2), (72,))},
    ("svhn", "monolith"): {"others": _resnet(24, (24,), (40, 2), (40,), (56, 2), (56,), (48,))},
    ("emnist", "monolith"): {"others": _resnet(24, (24,), (40, 2), (40,), (56, 2), (56,), (40,))},
    ("digits", "monolith"): {"others": _resnet(16, (16,), (32, 2), (32,))},
}


def network(dataset: str, backbone: str, node: str) -> Network:
    """The network of the node called `node` in a tree for `dataset`.

    Raises UserError, with the choices, for a combination that does not exist.
    """
    table = _NETWORKS.get((dataset, backbone))
    if table is None:
        choices = ", ".join(sorted(b for d, b in _NETWORKS if d == dataset)) or "none"
        raise UserError(f"no {backbone!r} nodes for dataset {dataset!r}; its backbones: {choices}")
    return table.get(node, table["others"])
