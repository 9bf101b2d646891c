"""Public weights in both frameworks: read from their file, loaded, their scores compared."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data.base.weights import with_counters
from data.recipes.baselines.architectures import Architecture, Dinov2, architecture
from parity.checks import tolerance
from parity.checks.growth import root_of_terms
from parity.checks.processes import prepare_process
from parity.checks.tolerance import Check
from parity.pairs import published_files
from parity.pairs.passes import DTYPES, cast, leaves
from trunk_jax import baselines as ours
from trunk_jax.network import exchange
from trunk_jax.network.network import Network, apply, split
from trunk_torch_ref import baselines as theirs
from trunk_torch_ref.network import exchange as torch_exchange

IMAGE = 224


def read(name: str, file: Path) -> dict[str, np.ndarray]:
    """The state_dict in a published file, under the model's own names.

    UserError if PyTorch cannot read it without running code, or if it holds something else.
    """
    return complete(published_files.read_state_dict(file), name)


def complete(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The state_dict brought from an older PyTorch's form to today's.

    Old files do not count batches, and name a transformer's Linear layers otherwise.
    """
    renamed = {
        re.sub(r"\.mlp\.linear_([12])\.", lambda m: f".mlp.{3 * (int(m[1]) - 1)}.", key): value
        for key, value in weights.items()
    }
    return with_counters(jax_shapes(name), renamed)


def _spec(name: str) -> Architecture:
    spec = architecture(name)
    return replace(spec, head=False) if isinstance(spec, Dinov2) else spec


def jax_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the public model."""
    return exchange.shapes(jax.eval_shape(lambda: split(ours.build(_spec(name)))))


@jax.jit
def _scores(network: Network, x: jax.Array) -> jax.Array:
    return apply(network, x)[0][1]


def check(name: str, weights: dict[str, np.ndarray], seed: int) -> list[Check]:
    """Both frameworks load the weights bit for bit, and compute the same scores with them."""
    prepare_process()
    spec = _spec(name)
    network = exchange.from_state_dict(split(ours.build(spec)), weights)
    module = torch_exchange.from_state_dict(theirs.build(spec), weights).eval()
    back, title = exchange.to_state_dict(network), f"{name}, public weights"
    same = all(np.array_equal(back[key], weights[key]) for key in weights)
    checks = [tolerance.equal(title, "weights", same, True, note=f"{len(weights)} tensors")]
    rng = np.random.default_rng([seed, 5])
    x = rng.normal(size=(2, 3, IMAGE, IMAGE)).astype(np.float32)
    with torch.no_grad():
        theirs32 = module(torch.tensor(x))[1].numpy()
        truth = module.double()(torch.tensor(x, dtype=torch.float64))[1].numpy()
    found = {}
    for dtype, (kind, _) in DTYPES.items():
        with jax.enable_x64(dtype == "float64"):
            image = jnp.asarray(x.transpose(0, 2, 3, 1), kind)
            found[dtype] = np.asarray(_scores(cast(network, dtype), image))
    growth = sum(map(root_of_terms, leaves(module).values()))
    where = f"scores at {IMAGE}x{IMAGE}"
    return [
        *checks,
        tolerance.close(title, where, found["float64"], truth, tolerance.VALUE_64),
        tolerance.fair(title, where, found["float32"], theirs32, truth, growth),
    ]
