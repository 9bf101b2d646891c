"""ResNet for quantisation-aware training, by PyTorch's own torch.ao with the backend fbgemm.

Convolution, batch norm and ReLU are fused; weights are quantised per channel, activations per
tensor to 7 bits (fbgemm's reduced range); ranges are moving averages. `convert` gives the int8
model that PyTorch runs.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization.fake_quantize import FusedMovingAvgObsFakeQuantize as Rounding

from data.recipes.baselines.architectures import QuantResNet
from trunk_torch_ref.baselines.resnet import Bottleneck, ResNetModel

BACKEND = "fbgemm"


@contextmanager
def _quietly() -> Iterator[None]:
    """torch.ao announces its successor, torchao, at every turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Block(Bottleneck):
    def __init__(self, channels: int, width: int, stride: int, folded: bool):
        super().__init__(channels, width, stride, folded)
        self.skip_add_relu = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        other = x if self.downsample is None else self.downsample(x)
        return self.skip_add_relu.add_relu(y, other)


class QuantResNetModel(ResNetModel):
    """As ResNetModel, its numbers rounded as the int8 model's will be.

    Ranges are observed in train mode only.
    """

    block = _Block

    def __init__(self, spec: QuantResNet, channels: int, outputs: int, *, size: int = 0):
        super().__init__(spec, channels, outputs, size=size)
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        with _quietly():
            for module in list(self.modules()):
                if isinstance(module, _Block):
                    pairs = [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"], ["conv3", "bn3"]]
                    quantization.fuse_modules_qat(module, pairs, inplace=True)
                    if module.downsample is not None:
                        quantization.fuse_modules_qat(module.downsample, ["0", "1"], inplace=True)
            quantization.fuse_modules_qat(self, ["conv1", "bn1", "relu"], inplace=True)
            self.qconfig = quantization.get_default_qat_qconfig(BACKEND)
            quantization.prepare_qat(self, inplace=True)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                rounding = layer.weight_fake_quant
                assert isinstance(rounding, Rounding)  # what the backend's settings put there
                _give_shape(rounding, len(layer.weight))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        switch = quantization.enable_observer if mode else quantization.disable_observer
        return self.apply(switch)

    def features(self, x: Tensor) -> Tensor:
        """The last stage's map."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.quant(self.resize(x))))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [B, C, H, W] into features [B, C2, H2, W2] and raw scores [B, outputs]."""
        features = self.features(x)
        scores = self.dequant(self.fc(self.flatten(self.avgpool(features))))
        return features, scores


def _give_shape(rounding: Rounding, channels: int) -> None:
    """The tensors of a weight's observer as they are once it has seen something.

    torch.ao makes them empty at first; a state_dict could not be loaded into them.
    """
    seen = rounding.activation_post_process
    for tensor, value in (
        (seen.min_val, torch.inf),
        (seen.max_val, -torch.inf),
        (rounding.scale, 1),
        (rounding.zero_point, 0),
    ):
        tensor.resize_(channels).fill_(value)


def convert(module: QuantResNetModel) -> nn.Module:
    """The int8 model, on the CPU; its features stay quantised."""
    torch.backends.quantized.engine = BACKEND
    with _quietly():
        module = copy.deepcopy(module).cpu().eval()
        return quantization.convert(module, inplace=True)
