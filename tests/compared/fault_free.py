"""Comparisons of models without a fault: none may be reported.

python -m tests.compared.fault_free --count 200 --json tests/compared/fault-free.json
"""

import sys
import time

import numpy as np

from data.base.errors import run_command
from data.base.parser import Parser, target
from data.base.writing import save_json
from parity.comparing.comparison import compare
from parity.comparing.report import FLOAT32
from tests.compared.faults import PAIRS, made


def options(model: str, rng: np.random.Generator) -> dict:
    """Sizes of a random small model."""
    if model == "resnet":
        widths = tuple(int(x) for x in rng.integers(2, 9, 2))
        return {"widths": widths, "depths": (1, int(rng.integers(1, 3)))}
    if model == "vit":
        heads = int(rng.integers(1, 4))
        return {
            "heads": heads,
            "width": heads * int(rng.integers(2, 6)),
            "hidden": int(rng.integers(5, 25)),
            "layers": int(rng.integers(1, 3)),
        }
    if model == "decoder":
        kv = int(rng.integers(1, 3))
        heads = kv * int(rng.integers(1, 3))
        return {
            "heads": heads,
            "kv_heads": kv,
            "width": heads * 2 * int(rng.integers(1, 4)),
            "hidden": int(rng.integers(5, 25)),
            "layers": int(rng.integers(1, 3)),
            "vocabulary": int(rng.integers(5, 40)),
        }
    if model == "lstm":
        return {"features": int(rng.integers(1, 9)), "hidden": int(rng.integers(1, 12))}
    groups = int(rng.integers(1, 4))
    return {
        "groups": groups,
        "width": groups * int(rng.integers(1, 4)) * 2,
        "size": int(rng.integers(8, 12)),
        "flat": bool(rng.integers(2)),
        "resize": int(rng.integers(8, 16)),
    }


def one(seed: int, *, train: bool) -> dict:
    """A comparison: what was compared and what was reported."""
    model = list(PAIRS)[seed % len(PAIRS)]
    sizes = options(model, np.random.default_rng(seed))
    if model == "cnn" and not sizes["flat"]:
        sizes["size"] = sizes["size"] // 2 * 2
    theirs, ours, x = made(model, seed, sizes)
    report = compare(theirs, ours, x, train=train)
    return {
        "seed": seed,
        "model": model,
        "sizes": sizes,
        "train": train,
        "passed": report.passed,
        "worst": max(s.difference for s in report.sections if s.title != FLOAT32),
        "float32": max((s.difference for s in report.sections if s.title == FLOAT32), default=None),
        "found": [f"{f.stage} {f.path} {f.cause}" for f in report.findings],
    }


def _differs(result: dict) -> bool:
    """Whether a difference was reported, of more than float32 alone."""
    return not result["passed"] and not all(f.startswith("float32 ") for f in result["found"])


def main(arguments: list[str] | None = None) -> int:
    """Compare as the flags say; 1 if anything was reported."""
    parser = Parser(
        prog="python -m tests.compared.fault_free",
        description="Compare random small models without a fault; no difference may be reported.",
    )
    add = parser.add_argument
    add("--start", type=int, default=0, help="the first seed (default: %(default)s)")
    add("--count", type=int, default=200, help="seeds (default: %(default)s)")
    add(
        "--train-every",
        type=int,
        default=1,
        help="train mode as well where the seed is a multiple of it (default: %(default)s)",
    )
    add("--until", type=float, default=float("inf"), help="seconds after which it ends")
    add("--json", type=target, required=True, metavar="FILE", help="the result; it grows")
    flags = parser.parse_args(arguments)
    results, began = [], time.time()
    for seed in range(flags.start, flags.start + flags.count):
        results.append(one(seed, train=seed % flags.train_every == 0))
        print(seed, results[-1]["model"], results[-1]["passed"], results[-1]["worst"], flush=True)
        found = {
            "comparisons": len(results),
            "with train mode": sum(r["train"] for r in results),
            "reported": sum(_differs(r) for r in results),
            "less exact in float32": sum(not r["passed"] and not _differs(r) for r in results),
            "results": results,
        }
        save_json(flags.json, found)
        if time.time() - began > flags.until:
            break
    return int(any(_differs(r) for r in results))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
