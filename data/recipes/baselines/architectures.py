"""The monolithic baselines' architectures as data (docs/trunk.md, section 4), for both frameworks.

The defaults of each family are the published network; tests and parity make smaller ones of
the same kind. Which public weights each is named after:

| name | keys and semantics of |
|---|---|
| `resnet50`, `vgg16`, `convnext_base`, `mobilenet_v2`, `vit_b_16` | torchvision |
| `dinov2_vitb14_reg` | the DINOv2 hub, with registers |
| `deit_tiny` | timm's deit_tiny_patch16_224 |
| `vgg16_bn_small` | the release's pruned network before it is pruned |
| `resnet50_qat` | torch.ao's QAT of torchvision's resnet50, with the backend fbgemm |
| `resnet50_observed` | the release's quantised ResNet-50, which is not quantised |
"""

from dataclasses import dataclass

from data.base.errors import UserError


@dataclass(frozen=True)
class ResNet:
    """Bottleneck residual network, the stride on the 3x3 convolution.

    `blocks` of each stage; `width`: channels inside the first stage, doubled by each next.
    `folded`: every batch norm but the blocks' last is folded into its convolution, for good
    (the release's "quantisation-aware" ResNet-50, which stays float32).
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    folded: bool = False


@dataclass(frozen=True)
class QuantResNet(ResNet):
    """The same for quantisation-aware training: int8 is imitated in the forward pass."""


@dataclass(frozen=True)
class Vgg:
    """3x3 convolutions in stages, then Linear layers.

    Attributes:
      stages: output channels of each convolution, by stage.
      pools: how many of the stages, from the first, end with a 2x2 max pool.
      batch_norm: whether each convolution is followed by one.
      pool: side of the map that the Linear layers are given.
      hidden: outputs of each Linear layer but the last.

    """

    stages: tuple[tuple[int, ...], ...] = (
        (64, 64),
        (128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (512, 512, 512),
    )
    pools: int = 5
    batch_norm: bool = False
    pool: int = 7
    hidden: tuple[int, ...] = (4096, 4096)


@dataclass(frozen=True)
class ConvNext:
    """ConvNeXt: `depths` and `widths` of each stage.

    `drop`: the last block's stochastic depth; it grows linearly from 0 at the first.
    `stem_norm`: False is what the release does for EMNIST, where its stem lost the LayerNorm.
    """

    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    drop: float = 0.5
    stem_norm: bool = True


@dataclass(frozen=True)
class MobileNetV2:
    """Rows of (expansion, channels, blocks, stride of the first), between `stem` and `last`."""

    rows: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    stem: int = 32
    last: int = 1280


@dataclass(frozen=True)
class Vit:
    """Vision transformer; `image`: the side that its position embeddings are for."""

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    image: int = 224


@dataclass(frozen=True)
class Deit(Vit):
    """DeiT without distillation, timm's form."""

    width: int = 192
    heads: int = 3
    hidden: int = 768


@dataclass(frozen=True)
class Dinov2(Vit):
    """DINOv2's form: `registers` tokens, layer scale, position embeddings that are interpolated.

    `head`: False is the release's, which takes the features themselves for scores.
    """

    patch: int = 14
    image: int = 518
    registers: int = 4
    head: bool = True


Architecture = ResNet | Vgg | ConvNext | MobileNetV2 | Vit

ARCHITECTURES: dict[str, Architecture] = {
    "resnet50": ResNet(),
    "vgg16": Vgg(),
    "convnext_base": ConvNext(),
    "mobilenet_v2": MobileNetV2(),
    "vit_b_16": Vit(),
    "dinov2_vitb14_reg": Dinov2(),
    "deit_tiny": Deit(),
    # Four pools at most (one after each of the first three stages, the last an average over
    # the whole map) and a single Linear: 399 million multiply-adds at 32x32.
    "vgg16_bn_small": Vgg(pools=3, batch_norm=True, pool=1, hidden=()),
    "resnet50_qat": QuantResNet(),
    "resnet50_observed": ResNet(folded=True),
}


def smallest(spec: Architecture) -> int:
    """The smallest side in pixels of the images that a network can take.

    Example: `smallest(Vgg())` is 32, for five pools halve it five times.
    """
    if isinstance(spec, Dinov2):
        return spec.patch
    if isinstance(spec, Vit):
        return spec.image
    if isinstance(spec, Vgg):
        return 2**spec.pools
    if isinstance(spec, ConvNext):  # a stem of 4x4 patches, then each stage halves
        return 4 * 2 ** (len(spec.depths) - 1)
    return 1  # every layer that halves is padded


def architecture(name: str) -> Architecture:
    """The architecture called `name`. UserError, with the choices, if there is none."""
    if name not in ARCHITECTURES:
        raise UserError(f"no model {name!r}; the models: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
