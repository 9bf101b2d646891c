"""`python -m benchmarks.gpu.card`: which card it is, and the two rates that bound everything.

A product of two matrices gives the most multiply-adds a second, in each precision; a copy the most
bytes a second, those read and those written counted.
"""

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import answer
from data.base.errors import run_command

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "numpy")


def best(run: Callable[[], Any], repeats: int = 10) -> float:
    """The least seconds that a call takes, after two calls that are not counted."""
    for _ in range(2):
        jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


def products(size: int) -> dict[str, float]:
    """Multiply-adds a second of a product of two random matrices of that size, by precision."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    result = {}
    for name, precision in PRECISIONS.items():
        mine = x.astype(jnp.bfloat16) if name == "bfloat16" else x
        with jax.default_matmul_precision(precision):
            product = jax.jit(lambda a, b: a @ b)
            result[name] = size**3 / best(partial(product, mine, mine))
    return result


def copy(mib: int) -> float:
    """Bytes a second, read and written, of x + 1 over so many MiB."""
    x = jnp.zeros(mib * 2**18, jnp.float32)
    step = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / best(lambda: step(x))


def about() -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    device = jax.devices()[0]
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    parser = answer.parser("card", "Which card it is, and what bounds it.")
    parser.add_argument("--size", type=int, default=8192, help="of matrices (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=4096, help="to copy (default: %(default)s)")
    options = parser.parse_args(arguments)
    rates, copied = products(options.size), copy(options.mib)
    value = about() | {"multiply_adds_per_s": rates, "copy_bytes_per_s": copied}
    told = ", ".join(f"{name} {rate / 1e12:.1f} T" for name, rate in rates.items())
    answer.give(value, options.json, f"{value['kind']}: {told}, copy {copied / 1e12:.2f} TB/s")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
