"""The device to compute on."""

import torch


def where() -> torch.device:
    """The device to compute on: the first GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
