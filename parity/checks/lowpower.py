"""Check of the low-power background: each form made by each framework from the same weights."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import trunk_jax.network.exchange
import trunk_jax.network.network
import trunk_jax.shrink.lowpower
import trunk_torch_ref.measure.costs
import trunk_torch_ref.network.exchange
import trunk_torch_ref.network.network
import trunk_torch_ref.shrink.lowpower
from data.base.streams import stream
from data.run import lowpower
from parity.checks import tolerance
from parity.checks.tolerance import Check
from parity.pairs.conversion import to_torch
from trunk_torch_ref.shrink.lowpower import SmallNetwork

IMAGES = 8


@torch.no_grad()
def check_lowpower(seed: int) -> list[Check]:
    """Weights, sizes and outputs of all forms.

    Each framework quantises and prunes on its own; int8 weights, scales and the rows that are
    left must be identical. Outputs are judged against the float64 truth. With inputs quantised
    in each call a last bit can move a value by a whole step, so there the layer is compared
    alone, given the same input: its sums are whole numbers.
    """
    rng = stream(seed, "parity", "background")
    start = trunk_jax.network.network.split(trunk_jax.shrink.lowpower.base(rng))
    other = trunk_jax.network.network.split(trunk_jax.shrink.lowpower.compressed(rng))
    ours = trunk_jax.shrink.lowpower.forms(start, other)
    theirs = trunk_torch_ref.shrink.lowpower.forms(
        to_torch(start, trunk_torch_ref.shrink.lowpower.base()),
        to_torch(other, trunk_torch_ref.shrink.lowpower.compressed()),
    )
    x = lowpower.images(seed, IMAGES)
    checks = []
    for form, network in ours.items():
        name, module = f"low-power {form}", theirs[form]
        checks += _same_weights(name, network, module)
        checks += _same_costs(name, network, module)
        if form == "int8":
            checks.append(_dynamic_layer(name, network, module, x))
        else:
            checks.append(_outputs(name, network, module, x))
    return checks


def _same_weights(
    name: str, network: trunk_jax.network.network.Network, module: SmallNetwork
) -> list[Check]:
    left = trunk_jax.network.exchange.to_state_dict(network)
    right = trunk_torch_ref.network.exchange.to_state_dict(module)
    checks = [tolerance.equal(name, "names of tensors", sorted(left), sorted(right))]
    checks += [
        tolerance.equal(name, key, left[key], right[key], str(left[key].dtype))
        for key in sorted(left.keys() & right.keys())
    ]
    return checks


def _same_costs(
    name: str, network: trunk_jax.network.network.Network, module: SmallNetwork
) -> list[Check]:
    height, width, channels = lowpower.IMAGE
    left = trunk_jax.network.network.cost(network, lowpower.IMAGE)
    right = trunk_torch_ref.measure.costs.cost(module, (channels, height, width))
    return [tolerance.equal(name, key, left[key], right[key]) for key in left]


def _outputs(
    name: str, network: trunk_jax.network.network.Network, module: SmallNetwork, x: np.ndarray
) -> Check:
    pixels = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    scores = jax.jit(lambda network, x: trunk_jax.network.network.apply(network, x)[0][1])
    truth = copy.deepcopy(module).double()(pixels.double())[1].numpy()
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    growth = sum(math.sqrt(weight[0].numel()) for weight in weights)
    return tolerance.fair(
        name,
        "scores",
        np.asarray(scores(network, jnp.asarray(x))),
        module(pixels)[1].numpy(),
        truth,
        growth,
    )


def _dynamic_layer(
    name: str, network: trunk_jax.network.network.Network, module: SmallNetwork, x: np.ndarray
) -> Check:
    pixels = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    flat = module.features(pixels).flatten(1)
    # a product of two scales, a product with it, a sum: at most three roundings each
    bound = 6 * tolerance.UNIT
    if not _exact_quotients():
        flat = torch.tensor(off_ties(flat.numpy()))
        # a row's scale is a quotient: two units in the last place
        bound += 4 * tolerance.UNIT
    ours = trunk_jax.network.network.merge(network)
    assert isinstance(ours, trunk_jax.shrink.lowpower.SmallNetwork)
    left = ours.classifier[1](jnp.asarray(flat.numpy()))
    right = module.classifier[1](flat)
    return tolerance.close(
        name, "scores of the same features", left, right.numpy(), bound, dtype="float32"
    )


def _exact_quotients() -> bool:
    """Whether JAX's quotients of float32 are exact to the last bit: on a GPU they are not."""
    return jax.default_backend() != "gpu"


def off_ties(x: np.ndarray) -> np.ndarray:
    """float32 [b, n], each value at most 0.4 steps from a whole number of its row's int8 steps.

    So no last bit of a quotient decides which step a value becomes.
    """
    step = np.abs(x).max(1, keepdims=True) / 127
    step[step == 0] = 1
    near = np.rint(x / step)
    return ((near + 0.8 * (x / step - near)) * step).astype(np.float32)
