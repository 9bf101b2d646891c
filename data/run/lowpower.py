"""The low-power background demonstration: one small CNN, and four ways to make it smaller.

The networks are those of the published demonstration (docs/trunk.md, section 4): 3x32x32 in,
1000 out. What both frameworks measure of them, and how it is shown, is here.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.base import tables
from data.base.errors import UserError
from data.base.parser import Parser, target
from data.base.streams import stream
from data.base.writing import save_json

IMAGE = (32, 32, 3)  # height, width, channels
OUTPUTS = 1000
CHANNELS = 16
SHARE = 0.2  # of rows that are pruned
FORMS = {
    "base": "two 3x3 convolutions and one linear layer, float32",
    "int8": "the same; the linear layer in int8, its input quantised in each call",
    "masked": "a fifth of all rows set to zero, by L2 norm; as published",
    "removed": "a fifth of the convolutions' rows taken out, by L2 norm",
    "compressed": "another network: depthwise-separable, global average pool",
}


@dataclass(frozen=True)
class Options:
    """What `lowpower` was asked for."""

    seed: int
    images: int
    repeats: int
    json: Path | None


def options_of(framework: str, arguments: list[str] | None) -> Options:
    """Parse the flags of either framework's `lowpower`. UserError for any that makes no sense."""
    parser = Parser(
        prog=f"python -m trunk_{'jax' if framework == 'jax' else 'torch_ref'}.lowpower",
        description="Make one small CNN smaller in four ways and compare size, arithmetic, time "
        "and outputs. Nothing is trained: weights and images are random.",
        formatter_class=argparse.HelpFormatter,
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of weights and images (default: %(default)s)")
    add(
        "--images",
        type=int,
        default=64,
        help="on which outputs are compared (default: %(default)s)",
    )
    add("--repeats", type=int, default=20, help="timed calls (default: %(default)s)")
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    given = parser.parse_args(arguments)
    if given.seed < 0 or given.images < 1 or given.repeats < 1:
        raise UserError("--seed must be 0 or more, --images and --repeats above 0")
    return Options(given.seed, given.images, given.repeats, given.json)


def images(seed: int, count: int) -> Float[np.ndarray, "n 32 32 3"]:
    """Normal random images, float32."""
    generator = stream(seed, "lowpower", "images")
    return generator.normal(size=(count, *IMAGE)).astype(np.float32)


def agreement(
    scores: Float[np.ndarray, "n outputs"], base: Float[np.ndarray, "n outputs"]
) -> dict[str, float]:
    """How near the outputs are to the base's: `same` largest output, `relative_error` (L2)."""
    scores, base = scores.astype(np.float64), base.astype(np.float64)
    error = float(np.linalg.norm(scores - base) / np.linalg.norm(base))
    return {"same": float((scores.argmax(1) == base.argmax(1)).mean()), "relative_error": error}


def report(options: Options, framework: str, device: str, forms: dict[str, dict[str, Any]]) -> None:
    """Print the table, and write the JSON that was asked for.

    `forms`: by name, `structure` (lines), `bytes`, `parameters`, `multiply_adds`, `ms`, `same`
    and `relative_error`.
    """
    for name, row in forms.items():
        print(f"{name}: {FORMS[name]}")
        print(*(f"  {line}" for line in row["structure"]), sep="\n")
    print(
        "\nMB are 1e6 bytes, M are millions; FLOPs: two a multiply-add of the layers with weights"
    )
    columns = [
        "form",
        "size MB",
        "parameters",
        "multiply-adds M",
        "FLOPs M",
        "ms a call",
        "same largest output as base",
        "relative error",
    ]
    rows = [
        [
            name,
            tables.mb(row["bytes"]),
            f"{row['parameters']:,}",
            tables.millions(row["multiply_adds"]),
            tables.millions(row["flops"]),
            f"{row['ms']:.2f}",
            tables.percent(row["same"]),
            f"{row['relative_error']:.4f}",
        ]
        for name, row in forms.items()
    ]
    tables.print_table(f"{framework} on {device}, one image a call", columns, rows)
    print("The compressed form shares no weights with the base; its outputs agree by chance alone.")
    if options.json:
        value = {"framework": framework, "device": device, "seed": options.seed, "forms": forms}
        save_json(options.json, value)
