"""Which images make up each batch: a plan that both frameworks follow row by row."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Plan:
    """Rows of image indices. Where `valid` is False the entry is padding (index 0)."""

    index: Int[np.ndarray, "steps width"]
    valid: Bool[np.ndarray, "steps width"]

    @property
    def images(self) -> int:
        """The number of images, padding left out."""
        return int(self.valid.sum())


def plan(
    order: Int[np.ndarray, " n"],
    member: Bool[np.ndarray, " all"],
    batch_size: int,
    *,
    subset: bool = False,
    drop_last: bool = False,
) -> Plan:
    """Batches of the images in `order` for which `member` is True.

    Rows hold `batch_size` images (all of them if they are fewer), the last one the rest,
    unless `drop_last`. With `subset`
    (the release's way) rows are cut from all of `order` and only then reduced to members:
    their size varies, and rows without members are left out.
    """
    if not subset:
        order = order[member[order]]
    batch_size = max(1, min(batch_size, len(order)))
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    rows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rows = [kept for row in rows if len(kept := row[member[row]])]
    index = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    valid = np.zeros(index.shape, bool)
    for line, row in enumerate(rows):
        index[line, : len(row)] = row
        valid[line, : len(row)] = True
    return Plan(index, valid)


def pad(batches: Plan, steps: int, width: int) -> Plan:
    """The plan with padding added, so that every epoch has one shape."""
    rows, columns = batches.index.shape
    by = ((0, steps - rows), (0, width - columns))
    return Plan(np.pad(batches.index, by), np.pad(batches.valid, by))
