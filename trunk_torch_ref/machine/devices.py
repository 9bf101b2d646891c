"""The device to compute on."""

from typing import Any

import torch


def where() -> torch.device:
    """The device to compute on: the first GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def float32_products() -> tuple[Any, Any]:
    """What says how a GPU multiplies float32, of convolutions and of matrices: `fp32_precision`."""
    # PyTorch puts an object in the place of this module, which its types do not know
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return convolutions, torch.backends.cuda.matmul
