"""`python -m benchmarks.profile DATASET BACKBONE`: where a training step of ours spends its time.

The root's step is run under JAX's profiler, and the time of each operation of the compiled
program is summed. Operations run on several threads, and those that hand work on to them (some
products and convolutions on a CPU) may show less than they take.
"""

import collections
import glob
import re
import sys
import tempfile

import jax
import jax.numpy as jnp

from benchmarks.cases import FORMS, PAIRS, STEP_BATCH, Case, labels, recipe_of
from benchmarks.ours import inputs_of, root_of
from data.base import tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser
from trunk_jax.layers.basic import Mode
from trunk_jax.training import fit
from trunk_jax.training.objective import optimizer


def operations(case: Case) -> list[tuple[str, str, float, int]]:
    """(operation, where it comes from, milliseconds, how often) of one step, dearest first."""
    network, recipe = root_of(case), recipe_of(case)
    phase = recipe.root.class_phase
    program = fit.program_of(recipe, phase, network)
    x, targets = inputs_of(case, STEP_BATCH), jnp.asarray(labels(case, STEP_BATCH), jnp.int32)

    def step(state, x, targets):
        rate = jnp.asarray(phase.lr, x.dtype)
        return fit.train_step(program, state, x, targets, Mode(True, key=jax.random.key(0)), rate)

    state = fit.State(network, optimizer(phase).init(network.params))
    compiled = jax.jit(step).lower(state, x, targets).compile()
    jax.block_until_ready(compiled(state, x, targets))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(state, x, targets))
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(file)
    spent: collections.Counter[str] = collections.Counter()
    often: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    spent[name] += event.duration_ns
                    often[name] += 1
    origin = dict(re.findall(r"%(\S+) = .*?op_name=\"([^\"]*)\"", compiled.as_text() or ""))
    return [(n, origin.get(n, ""), ns / 1e6, often[n]) for n, ns in spent.most_common()]


def main(arguments: list[str] | None = None) -> None:
    """Profile as the flags say."""
    parser = Parser(prog="python -m benchmarks.profile", description="Profile a training step.")
    parser.add_argument("dataset")
    parser.add_argument("backbone")
    parser.add_argument("--most", type=int, default=25, help="rows (default: %(default)s)")
    options = parser.parse_args(arguments)
    if (options.dataset, options.backbone) not in PAIRS:
        choices = ", ".join(" ".join(pair) for pair in PAIRS)
        raise UserError(f"nothing to profile there; the choices: {choices}")
    print("compiling a step, and tracing it ...", file=sys.stderr)
    found = operations(Case("step", options.dataset, options.backbone, FORMS))
    rows = [
        [name, origin[-70:], f"{spent:.2f}", str(often)]
        for name, origin, spent, often in found[: options.most]
    ]
    tables.print_table("", ("operation", "from", "ms a step", "times"), rows, left=(0, 1))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
