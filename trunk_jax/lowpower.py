"""`python -m trunk_jax.lowpower`: one small CNN and four ways to make it smaller, measured."""

import sys
from functools import partial
from typing import Any

from data.base.errors import run_command
from data.base.progress import working
from data.base.streams import stream
from data.run import lowpower


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say. UserError for anything a user can put right."""
    options = lowpower.options_of("jax", arguments)
    with working("measuring a small network and four smaller forms of it"):
        device, rows = _measure(options)
    lowpower.report(options, "jax", device, rows)


def _measure(options: lowpower.Options) -> tuple[str, dict[str, dict[str, Any]]]:
    """The device's kind, and what `lowpower.report` shows of each form."""
    from trunk_jax.machine import backend

    backend.start()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from trunk_jax.layers.basic import layer_shapes
    from trunk_jax.measure.timing import percentiles, seconds
    from trunk_jax.network.exchange import to_state_dict
    from trunk_jax.network.network import apply, cost, merge
    from trunk_jax.shrink.lowpower import networks

    @jax.jit
    def scores(network: Any, x: Any) -> Any:
        return apply(network, x)[0][1]

    def structure(network: Any) -> list[str]:
        image = jax.ShapeDtypeStruct((1, *lowpower.IMAGE), jnp.float32)
        return [
            f"{type(layer).__name__:<16} {'x'.join(map(str, x.shape[1:]))} to "
            f"{'x'.join(map(str, y.shape[1:]))}"
            for layer, x, y in layer_shapes(lambda network, x: merge(network)(x), network, image)
        ]

    def one(network: Any) -> None:
        scores(network, x[:1]).block_until_ready()

    x = jnp.asarray(lowpower.images(options.seed, options.images))
    rows, first = {}, None
    for name, network in networks(stream(options.seed, "lowpower", "weights")).items():
        with working(f"measuring the form {name}"):
            out = np.asarray(scores(network, x))
            first = out if first is None else first
            taken = seconds(partial(one, network), options.repeats)
            costs = cost(network, lowpower.IMAGE)
            rows[name] = {
                "structure": structure(network),
                "bytes": sum(array.nbytes for array in to_state_dict(network).values()),
                **costs,
                "flops": 2 * costs["multiply_adds"],
                "ms": 1e3 * percentiles(taken)[0],
                **lowpower.agreement(out, first),
            }
    return jax.devices()[0].device_kind, rows


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
