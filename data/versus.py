"""`python -m data.versus RUN RUN`: is one run's test accuracy higher, image by image?

Two networks that see the same test images mostly fail on the same ones, so what tells them apart
is the images that only one gets right: McNemar's test ("Note on the sampling error of the
difference between correlated proportions or percentages", Psychometrika 12, 1947), here exact.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from data.base import tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.writing import save_json
from data.run import results, runfolder
from data.tree.interval import Z


def mcnemar(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """What is known of the difference of two accuracies, from which images each got right.

    Returns `only_a`, `only_b` (images), `difference` (accuracy of a minus that of b),
    `interval` (its 95 % interval, Wald's for paired shares) and `p` (two-sided, exact).
    """
    only_a, only_b, total = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    apart = only_a + only_b
    difference = (only_a - only_b) / total
    half = Z * math.sqrt(apart - (only_a - only_b) ** 2 / total) / total
    return {
        "only_a": only_a,
        "only_b": only_b,
        "difference": difference,
        "interval": [difference - half, difference + half],
        "p": float(binomtest(only_a, apart).pvalue) if apart else 1.0,
    }


def compare(a: Path, b: Path) -> dict[str, Any]:
    """`mcnemar` of two finished runs on the test images, and which runs these are.

    UserError if one is not finished, or their test images are not the same.
    """
    summaries = [results.read_summary(run) for run in (a, b)]
    if summaries[0]["dataset"] != summaries[1]["dataset"]:
        raise UserError(f"{a} and {b} are of different datasets")
    marks = [runfolder.read_config(run).get("dataset_sha256") for run in (a, b)]
    classes = len(runfolder.read_recipe(a).spec.class_names)
    (labels, guess_a), (others, guess_b) = (
        results.read_predictions(run, "test", classes) for run in (a, b)
    )
    # Of one dataset the labels in order tell which images, also where --limit left some out.
    if marks[0] != marks[1] or not np.array_equal(labels, others):
        raise UserError(f"{a} and {b} have other test images")
    return {
        "dataset": summaries[0]["dataset_title"],
        "images": len(labels),
        "runs": [
            {
                "folder": str(run),
                "network": f"{summary['recipe']} {summary['backbone']}",
                "correct": int((labels == guess).sum()),
                "mean_multiply_adds": results.standing(run, summary)["multiply_adds"],
            }
            for run, summary, guess in zip((a, b), summaries, (guess_a, guess_b), strict=True)
        ],
        **mcnemar(labels == guess_a, labels == guess_b),
    }


def lines(value: dict[str, Any]) -> list[str]:
    """The comparison for people."""
    low, high = (100 * end for end in value["interval"])
    rows = [f"{value['dataset']}, {value['images']:,} test images"]
    cells = [
        [
            name,
            tables.percent(run["correct"] / value["images"]),
            f"{run['correct']:,}",
            f"{run['mean_multiply_adds'] / 1e6:.1f}",
            run["network"],
            run["folder"],
        ]
        for name, run in zip("AB", value["runs"], strict=True)
    ]
    columns = ("", "accuracy", "right", "multiply-adds, M", "network", "run")
    table = tables.text(columns, cells, left=(0, 4, 5), width=98)
    rows += [f"  {line}" for line in table.splitlines()]
    rows.append(f"  right in A alone {value['only_a']:,}, in B alone {value['only_b']:,}")
    rows.append(
        f"  A - B  {100 * value['difference']:+.2f} points ({low:+.2f} to {high:+.2f}), "
        f"McNemar's p = {value['p']:.2g}"
    )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Compare two runs as the flags say."""
    parser = Parser(
        prog="python -m data.versus",
        description="Compare two finished runs on the same test images: the difference of their "
        "accuracies, its 95 % interval, and McNemar's exact test. It covers the sampling of test "
        "images, not that of trainings.",
    )
    parser.add_argument("a", metavar="RUN", help="a run folder")
    parser.add_argument("b", metavar="RUN", help="another")
    parser.add_argument(
        "--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)"
    )
    options = parser.parse_args(arguments)
    value = compare(Path(options.a), Path(options.b))
    print("\n".join(lines(value)))
    if options.json:
        save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
