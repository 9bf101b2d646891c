"""The images of a training: a tensor on the device, or files from which each batch is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.base.prefetch import prefetched
from data.images.on_disk import Images, OnDisk
from data.training.epochs import Pass


@dataclass(frozen=True)
class FromDisk:
    """Images that are read batch by batch. `device`: where the batches are wanted."""

    images: OnDisk
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, channels, height, width), as a tensor of them would have."""
        count, height, width, channels = self.images.shape
        return count, channels, height, width


Pixels = Tensor | FromDisk


def size_of(images: Pixels) -> tuple[int, int]:
    """Their height and width."""
    _, _, height, width = images.shape
    return height, width


def as_images(images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Images uint8 [N, H, W, C] to a tensor [N, C, H, W] of its own memory, in that order."""
    pixels = np.asarray(images)  # reads all of those on disk
    return torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), device=device)


def batches(images: Pixels, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """The images uint8 [B, C, H, W] of each row of numbers; the next is read while one is used."""
    if isinstance(images, FromDisk):
        yield from prefetched(lambda row: as_images(images.images[row], images.device), rows)
        return
    for row in rows:
        yield images[torch.tensor(row, dtype=torch.int64, device=images.device)]


def with_images(images: Pixels, run: Pass) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(the numbers, the images) of each batch of a pass, padding left out."""
    rows = [row[valid] for row, valid in zip(run.batches.index, run.batches.valid, strict=True)]
    yield from zip(rows, batches(images, rows), strict=True)
