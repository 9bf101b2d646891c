"""Random shares of every class."""

import numpy as np
from jaxtyping import Int

from data.base.streams import stream


def stratified(
    labels: Int[np.ndarray, " n"], fraction: float, seed: int, *names: str
) -> Int[np.ndarray, " chosen"]:
    """Sorted indices of a random `fraction` of each class (rounded, at least one image).

    `names`: of the random stream, to which the class is added.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(rows)))
        chosen.append(stream(seed, *names, int(label)).permutation(rows)[:count])
    return np.sort(np.concatenate(chosen))
