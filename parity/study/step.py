"""What both frameworks' runners give back, and the two stages' common starting point."""

from dataclasses import dataclass

import numpy as np

from data.base.streams import stream

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
    """(the state with flipped lowest bits, which).

    Flip 1 is of one weight in the first kernel, so that its effect runs through every layer.
    Flip 2, 4, ... is of every other weight of the network, chosen by a random stream: a rounding
    error almost everywhere. Flip 3, 5, ... is of one weight in any kernel. Never of a weight
    that is 0.
    """
    draw = stream(seed, stage, "flip", place)
    if place % 2 == 0:
        changed = dict(state)
        for key, value in weights(state).items():
            changed[key] = _lowest_bit(value, np.flatnonzero(draw.random(value.size) < 0.5))
        return changed, "half of all weights"
    kernels = [key for key, value in state.items() if value.ndim > 1]
    key = kernels[0] if place == 1 else kernels[int(draw.integers(len(kernels)))]
    candidates = np.flatnonzero(state[key])
    index = int(candidates[draw.integers(len(candidates))])
    return {**state, key: _lowest_bit(state[key], np.array([index]))}, f"{key}[{index}]"


def _lowest_bit(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    array = array.copy()
    flat = array.reshape(-1)
    places = places[flat[places] != 0]
    flat.view({4: np.uint32, 8: np.uint64}[array.dtype.itemsize])[places] ^= 1
    return array
