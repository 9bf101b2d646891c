"""`python -m benchmarks.sweep VARIANT`: a training step and its compiling, with a switch.

The variants, with what is expected of each and why, are in `sweep.toml`. Flags are XLA's own and
belong to a process, so each variant is one.
"""

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base import reading, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from trunk_jax.machine import xla

FILE = Path(__file__).parent / "sweep.toml"
PLATFORMS = ("any", "cpu", "gpu")
_VARIANT: reading.Form = {
    "platform": str,
    "expect": str,
    "why": str,
    "flags?": str,
    "channels?": int,
    "one_pass?": bool,
}


@dataclass(frozen=True)
class Variant:
    """One switch. `expect`, `why`: what was expected before it was measured, for which reason."""

    name: str
    platform: str
    expect: str
    why: str
    flags: str = ""
    channels: int = 1
    one_pass: bool = False


def variants(file: Path = FILE) -> dict[str, Variant]:
    """All variants by name. UserError if the file is not of this form."""
    table = reading.toml_file(file)
    try:
        reading.need(table, {str: _VARIANT})
    except ValueError as error:
        raise UserError(f"{file} holds no variants ({error})") from None
    return {name: Variant(name, **row) for name, row in table.items()}


def measured(variant: Variant, options: Any) -> list[dict[str, Any]]:
    """Seconds to compile and seconds an image, by batch and precision. XLA's flags are set."""
    import jax

    from benchmarks import ours
    from benchmarks.cases import FORMS, Case
    from trunk_jax.layers.forms import Forms, using

    rows = []
    with using(Forms(variant.channels, variant.one_pass)):
        for batch in options.batches:
            for precision in options.precisions:
                dataset, backbone = options.pair.split("-")
                kind = options.kind
                case = Case(kind, dataset, backbone, FORMS, batch=batch, precision=precision)
                # A line, and no live display: that would take time from what is measured.
                print(f"measuring {options.pair}, batch {batch}, {precision} ...", file=sys.stderr)
                jax.clear_caches()
                run = ours.prepare(case, "ours", Path())
                began = time.perf_counter()
                run()
                first = time.perf_counter() - began
                times = [run() for _ in range(options.rounds)]
                seconds = statistics.median(times)
                rows.append(
                    {
                        "batch": batch,
                        "precision": precision,
                        "first_s": first,
                        "seconds": seconds,
                        "rounds": times,
                    }
                )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    every = variants()
    parser = Parser(prog="python -m benchmarks.sweep", description="Time a step with a switch.")
    add = parser.add_argument
    add("variant", nargs="?", help=f"one of {', '.join(every)}")
    add("--pair", default="cifar10-vgg", metavar="DATASET-BACKBONE", help="(default: %(default)s)")
    add("--kind", choices=("step", "forward"), default="step", help="(default: %(default)s)")
    add("--batches", nargs="+", type=int, default=[128, 2048], help="(default: 128 2048)")
    add(
        "--precisions",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=("float32", "tf32", "bfloat16"),
        help="(default: float32 bfloat16)",
    )
    add("--rounds", type=int, default=5, help="of each (default: %(default)s)")
    add("--steps", type=int, help="in a program (default: the benchmark's own)")
    add(
        "--any-platform",
        action="store_true",
        help="measure where the switch does nothing too (default: off)",
    )
    add(
        "--list",
        action="store_true",
        help="print the variants and what is expected of them (default: off)",
    )
    add("--json", type=target, metavar="FILE", help="write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    if options.list:
        for variant in every.values():
            print(f"{variant.name} ({variant.platform}): {variant.expect}; for {variant.why}")
        return
    if options.variant not in every:
        raise UserError(f"no variant {options.variant!r}; --list names them")
    variant = every[options.variant]
    xla.set_flags(variant.flags)
    import jax  # once its flags are set

    platform = jax.default_backend()
    if variant.platform not in ("any", platform) and not options.any_platform:
        raise UserError(f"{variant.name} is for a {variant.platform}, and this is a {platform}")
    from benchmarks import ours

    if options.steps:
        ours.STEPS = ours.ACCELERATED_STEPS = options.steps
    rows = measured(variant, options)
    for row in rows:
        print(
            f"{variant.name}, {options.pair}, batch {row['batch']}, {row['precision']}: first "
            f"call {row['first_s']:.1f} s, {1e6 * row['seconds']:.2f} us an image"
        )
    if options.json:
        value = {
            "variant": variant.name,
            "pair": options.pair,
            "kind": options.kind,
            "platform": platform,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "rows": rows,
        }
        writing.save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
