"""The monolithic baselines, one file a family; each returns (features, scores) as nodes do."""

from collections.abc import Callable

from data.recipes.baselines.architectures import (
    Architecture,
    ConvNext,
    Deit,
    Dinov2,
    MobileNetV2,
    QuantResNet,
    ResNet,
    Vgg,
    Vit,
)
from trunk_torch_ref.baselines.convnext import ConvNextModel
from trunk_torch_ref.baselines.deit import DeitModel, Dinov2Model
from trunk_torch_ref.baselines.mobilenet import MobileNetV2Model
from trunk_torch_ref.baselines.qat import QuantResNetModel
from trunk_torch_ref.baselines.resnet import ResNetModel
from trunk_torch_ref.baselines.vgg import VggModel
from trunk_torch_ref.baselines.vit import VitModel
from trunk_torch_ref.nodes.node import NodeNetwork

_FAMILIES: dict[type, Callable[..., NodeNetwork]] = {
    ResNet: ResNetModel,
    QuantResNet: QuantResNetModel,
    Vgg: VggModel,
    ConvNext: ConvNextModel,
    MobileNetV2: MobileNetV2Model,
    Vit: VitModel,
    Deit: DeitModel,
    Dinov2: Dinov2Model,
}


def build(
    spec: Architecture, channels: int = 3, outputs: int = 1000, *, size: int = 0
) -> NodeNetwork:
    """The model of an architecture, initialised from PyTorch's global generator.

    Args:
      spec: what to build.
      channels: of the images.
      outputs: the number of classes.
      size: images are first resized to size x size; 0 leaves them as they are.

    """
    return _FAMILIES[type(spec)](spec, channels, outputs, size=size)


__all__ = ["build"]
