"""`python -m benchmarks.gpu.modes`: what TF32 and bfloat16 cost, in each node network."""

import sys
from dataclasses import asdict

import jax

from benchmarks.gpu import answer
from data.base.errors import UserError, run_command
from parity.checks import modes
from parity.pairs.families import FAMILIES


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    parser = answer.parser("modes", "Errors of float32, TF32 and bfloat16 against float64.")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="networks whose name has TEXT in it (default: all)",
    )
    options = parser.parse_args(arguments)
    chosen = [family for family in FAMILIES if options.only in family.name]
    if not chosen:
        raise UserError(f"no network has {options.only!r} in its name")
    offered = [mode for mode in modes.MODES if mode != "tf32" or jax.default_backend() == "gpu"]
    rows = modes.costs(chosen, 0, offered)
    worst = {mode: max(row.jax for row in rows if row.mode == mode) for mode in offered}
    changed = {mode: sum(row.changed[0] for row in rows if row.mode == mode) for mode in offered}
    value = {"rows": [asdict(row) for row in rows], "worst": worst, "changed": changed}
    told = ", ".join(f"{mode} {worst[mode]:.1e}, {changed[mode]} decisions" for mode in offered)
    answer.give(value, options.json, f"largest error of JAX's scores, decisions changed: {told}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
