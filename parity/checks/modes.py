"""What fast arithmetic costs: float32, TF32 and bfloat16, each against the float64 truth.

The checks compare exact float32. On a GPU both frameworks offer faster, coarser modes; this
table shows what they lose, in a whole node in eval mode. Nothing here passes or fails.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.checks.nodes import inputs
from parity.pairs.families import Family, build
from parity.pairs.passes import DEVICE, Pair
from trunk_jax.network.network import apply
from trunk_torch_ref.machine.devices import float32_products

MODES = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Cost:
    """One mode of one node network.

    Attributes:
      name: the network.
      mode: one of `MODES`.
      jax, torch: root mean square error of the scores, as a share of the largest true one.
      changed: images whose best output is another than the truth's: (JAX's, PyTorch's).
      total: images.

    """

    name: str
    mode: str
    jax: float
    torch: float
    changed: tuple[int, int]
    total: int


def costs(families: Sequence[Family], seed: int, modes: Sequence[str]) -> list[Cost]:
    """A row for each family and mode."""
    rows = []
    for family in families:
        both = build(family, seed)
        x, _ = inputs(family, seed)
        with torch.no_grad():
            exact = copy.deepcopy(both.torch).double().eval()(torch.tensor(x))[1].numpy()
        for mode in modes:
            ours, theirs = jax_scores(both, x, mode), torch_scores(both, x, mode)
            errors = [float(np.sqrt(np.mean((s - exact) ** 2))) for s in (ours, theirs)]
            scale = float(np.abs(exact).max())
            best = exact.argmax(1)
            changed = [int((s.argmax(1) != best).sum()) for s in (ours, theirs)]
            off = [error / scale for error in errors]
            others = changed[0], changed[1]
            rows.append(Cost(family.name, mode, off[0], off[1], others, len(x)))
    return rows


def jax_scores(both: Pair, x: np.ndarray, mode: str) -> np.ndarray:
    """JAX's scores of images [b, c, h, w] in one of `MODES`, on its default device."""
    dtype = jnp.bfloat16 if mode == "bfloat16" else jnp.float32

    def typed(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    network = jax.tree.map(typed, both.jax)
    precision = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}[mode]
    with jax.default_matmul_precision(precision):
        run = jax.jit(lambda network, image: apply(network, image)[0][1])
        return np.asarray(run(network, jnp.asarray(x.transpose(0, 2, 3, 1), dtype)), np.float64)


def torch_scores(both: Pair, x: np.ndarray, mode: str) -> np.ndarray:
    """PyTorch's scores of images [b, c, h, w] in one of `MODES`, on a GPU if there is one."""
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    module = copy.deepcopy(both.torch).to(DEVICE, dtype).eval()
    with _torch_precision("tf32" if mode == "tf32" else "ieee"), torch.no_grad():
        return module(torch.tensor(x, dtype=dtype, device=DEVICE))[1].double().cpu().numpy()


@contextmanager
def _torch_precision(precision: str) -> Iterator[None]:
    places = float32_products()
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old
