"""What both frameworks' runners give back, and the two stages' common starting point."""

from dataclasses import dataclass

import numpy as np

from data.streams import stream

Arrays = dict[str, np.ndarray]
STATISTICS = ("running_mean", "running_var")
COUNTERS = ("num_batches_tracked",)


@dataclass(frozen=True)
class Step:
    """One training step: the loss before it, and everything after it.

    Keys and layouts are PyTorch's. `gradients` are of the loss alone, before weight decay.
    `state`: the whole state_dict after the step.
    """

    loss: float
    gradients: Arrays
    state: Arrays


def weights(state: Arrays) -> Arrays:
    """The trained tensors of a state_dict."""
    return {k: v for k, v in state.items() if not k.endswith((*STATISTICS, *COUNTERS))}


def statistics(state: Arrays, name: str) -> Arrays:
    """The tensors of a state_dict that are called `running_mean`, say."""
    return {k: v for k, v in state.items() if k.endswith(name)}


def flipped(state: Arrays, seed: int, stage: str, place: int) -> tuple[Arrays, str]:
    """(the state with the lowest bit of one weight flipped, which weight).

    The first flip of a stage is in its first kernel, so that its effect runs through every
    layer; later ones are in kernels chosen by a random stream. Never of a weight that is 0.
    """
    kernels = [key for key, value in state.items() if value.ndim > 1]
    draw = stream(seed, stage, "flip", place)
    key = kernels[0] if place == 1 else kernels[int(draw.integers(len(kernels)))]
    array = state[key].copy()
    candidates = np.flatnonzero(array)
    index = int(candidates[draw.integers(len(candidates))])
    bits = array.reshape(-1).view({4: np.uint32, 8: np.uint64}[array.dtype.itemsize])
    bits[index] ^= 1
    return {**state, key: array}, f"{key}[{index}]"
