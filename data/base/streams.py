"""Named random streams: the same numbers in every framework, process and resumed run."""

import hashlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator that depends on `seed` and `names` alone, never on what was drawn before.

    Batch order, augmentation and splits each have their own stream, so a resumed run
    needs no generator state, and both frameworks see the same batches.
    """
    text = "/".join(str(part) for part in (seed, *names))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def integer(seed: int, *names: str | int) -> int:
    """A 32-bit seed for a framework's own generator (initial weights, dropout masks)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[16:20], "little")
