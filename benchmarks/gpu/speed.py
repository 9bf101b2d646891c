"""`python -m benchmarks.gpu.speed KIND PAIR`: one case, ours and PyTorch's forms in turns."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import run, worker
from benchmarks.cases import FORMS, PAIRS, PRECISIONS, Case
from benchmarks.gpu import answer
from data.base.errors import UserError, run_command

# Against torch.compile of the same precision: what we mean to stay under.
BAR = 0.5
# Seconds an image of a step of CIFAR-10 vgg's root at 2,048, by precision. Bytes bound it: an image
# moves some 15 MB in float32 and 7 MB in bfloat16, at 4.3 TB/s (an H200) 3.4 and 1.7 us.
LIMITS = {("cifar10", "vgg", 2048, "float32"): 5.5e-6, ("cifar10", "vgg", 2048, "bfloat16"): 2.5e-6}
AGAINST = {
    "step": FORMS,
    "forward": FORMS,
    "node": ("channels_last",),
    "epoch": ("ancestors",),
    "tree": ("eager",),
    "image": ("eager",),
}


def case_of(kind: str, pair: str, batch: int | None, precision: str | None) -> Case:
    """The case that the flags name. UserError if there is none."""
    pairs = {"-".join(each): each for each in PAIRS}
    if pair not in pairs:
        raise UserError(f"no networks {pair!r}; the choices: {', '.join(pairs)}")
    limit = None
    if kind == "step" and batch is not None and precision is not None:
        limit = LIMITS.get((*pairs[pair], batch, precision))
    bar = BAR if kind == "step" else None
    return Case(kind, *pairs[pair], AGAINST[kind], bar, limit, batch, precision)


def measured(case: Case, rounds: int, forms: tuple[str, ...]) -> dict[str, Any]:
    """The row of a case against these forms of PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (worker.start(name, folder) for name in ("jax", "torch"))
        chosen = Case(**(vars(case) | {"theirs": forms}))
        row = run.measure(chosen, ours, theirs, rounds, Path(folder))
        row["device"] = ours("platform")
    medians = {
        form: sorted(times)[len(times) // 2] for form, times in row["rounds"].items() if times
    }
    if "compile" in medians:
        row["ratio_to_compile"] = medians["ours"] / medians["compile"]
    return row


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    parser = answer.parser("speed", "Time one case in JAX and in PyTorch.")
    add = parser.add_argument
    add("kind", choices=sorted(AGAINST))
    add("pair", metavar="DATASET-BACKBONE")
    add("--batch", type=int, help="images at a time (default: the benchmark's own)")
    add("--precision", choices=PRECISIONS, help="of both sides (default: each one's own)")
    add("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    add("--forms", nargs="+", help="of PyTorch (default: all that the case has)")
    options = parser.parse_args(arguments)
    case = case_of(options.kind, options.pair, options.batch, options.precision)
    forms = tuple(options.forms or case.theirs)
    row = measured(case, options.rounds, forms)
    text = f"{1e6 * row['ours_s']:.2f} us, {row['best']} {1e6 * row['theirs_s']:.2f} us"
    answer.give(row, options.json, f"{case.name}: {text}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
