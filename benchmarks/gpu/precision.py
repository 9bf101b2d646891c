"""`python -m benchmarks.gpu.precision`: how far a GPU's arithmetic leads a training from the truth.

The same steps of CIFAR-10 vgg's root, from the same weights on the same images, in float64 on the
CPU, which is taken for the truth, and on the GPU in float32, TF32 and bfloat16. After each step:
how far the weights are from the truth's, as a share of the way that the truth has gone.
"""

import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours
from benchmarks.cases import FORMS, Case, images, labels, recipe_of
from benchmarks.gpu import answer
from data.base.errors import run_command
from trunk_jax.layers.basic import Mode
from trunk_jax.training import fit
from trunk_jax.training.objective import optimizer

WAYS = {"float64": "highest", "float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
RATE = 1e-2


def steps(way: str, count: int, batch: int) -> list[np.ndarray]:
    """All parameters in one row, before the first and after each step. SGD, so that no step is
    larger than its gradient makes it; without dropout's randomness differing: the key is the same.
    """
    case = Case("step", "cifar10", "vgg", FORMS)
    recipe = recipe_of(case)
    phase = replace(recipe.root.class_phase, optimizer="sgd", momentum=0.9, weight_decay=0.0)
    if way == "bfloat16":
        phase = replace(phase, precision="bfloat16")
    dtype = jnp.float64 if way == "float64" else jnp.float32
    device = jax.devices("cpu")[0] if way == "float64" else jax.devices()[0]

    def typed(leaf: Any) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.device_put(leaf.astype(dtype) if floating else leaf, device)

    with jax.default_device(device), jax.default_matmul_precision(WAYS[way]):
        network = jax.tree.map(typed, ours.root_of(case))
        program = fit.program_of(recipe, phase, network)
        state = fit.State(network, optimizer(phase).init(network.params))
        pixels, targets = images(case, count * batch), labels(case, count * batch)

        @jax.jit
        def step(state, x, y, key):
            rate = jnp.asarray(RATE, dtype)
            return fit.train_step(program, state, x, y, Mode(True, key=key), rate)[0]

        rows = [_row(state)]
        for place in range(count):
            part = slice(place * batch, (place + 1) * batch)
            x = typed(jnp.asarray(pixels[part], dtype) / 255 - 0.5)
            y = jax.device_put(jnp.asarray(targets[part], jnp.int32), device)
            state = step(state, x, y, jax.random.key(place))
            rows.append(_row(state))
    return rows


def _row(state: fit.State) -> np.ndarray:
    leaves = jax.tree.leaves(state.network.params)
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def main(arguments: list[str] | None = None) -> None:
    """Compare as the flags say."""
    parser = answer.parser("precision", "float32, TF32 and bfloat16 against float64, by step.")
    parser.add_argument("--steps", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
    options = parser.parse_args(arguments)
    with jax.enable_x64(True):
        value = _compared(options.steps, options.batch)
    told = ", ".join(f"{way} {values[-1]:.1e}" for way, values in value["apart"].items())
    answer.give(value, options.json, f"apart after {options.steps} steps, of the way gone: {told}")


def _compared(count: int, batch: int) -> dict[str, Any]:
    truth = steps("float64", count, batch)
    gone = [float(np.linalg.norm(row - truth[0])) for row in truth[1:]]
    apart = {}
    for way in ("float32", "tf32", "bfloat16"):
        rows = zip(steps(way, count, batch)[1:], truth[1:], gone, strict=True)
        apart[way] = [float(np.linalg.norm(row - right)) / length for row, right, length in rows]
    return {"steps": count, "batch": batch, "apart": apart, "gone": gone}


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
