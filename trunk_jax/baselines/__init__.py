"""The monolithic baselines, one file a family; each returns (features, scores) as nodes do."""

from collections.abc import Callable
from typing import Any

import numpy as np

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
from trunk_jax.baselines.convnext import ConvNextModel
from trunk_jax.baselines.deit import DeitModel, Dinov2Model
from trunk_jax.baselines.mobilenet import MobileNetV2Model
from trunk_jax.baselines.qat import QuantResNetModel
from trunk_jax.baselines.resnet import ResNetModel
from trunk_jax.baselines.vgg import VggModel
from trunk_jax.baselines.vit import VitModel
from trunk_jax.nodes.node import NodeNetwork

_FAMILIES: dict[type, Callable[..., Any]] = {
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
    spec: Architecture,
    channels: int = 3,
    outputs: int = 1000,
    *,
    size: int = 0,
    rng: np.random.Generator | None = None,
) -> NodeNetwork:
    """The model of an architecture.

    Args:
      spec: what to build.
      channels: of the images.
      outputs: the number of classes.
      size: images are first resized to size x size; 0 leaves them as they are.
      rng: what the weights are drawn from; without one they are zeros, to be overwritten.

    """
    module = _FAMILIES[type(spec)](spec, channels, outputs, size=size)
    if rng is not None:
        module.initialise(rng)
    return module


__all__ = ["build"]
