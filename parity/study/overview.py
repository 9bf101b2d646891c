"""What a study found, as tables: they stand first in its summary, its page and what it prints."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from data.base import tables
from data.base.words import plural
from parity.study import bounds, statistics

NAMES = {"jax": "JAX", "torch": "PyTorch"}
PAIRS = {"jax, jax": "two of JAX", "torch, torch": "two of PyTorch", "jax, torch": "one of each"}


@dataclass(frozen=True)
class Table:
    """Columns and rows of text. `title` stands above it; the columns of `words` on the left."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Collection[int] = (0,)

    def markdown(self) -> str:
        """Its title and the table in Markdown."""
        right = [place for place in range(len(self.columns)) if place not in self.words]
        return f"{self.title}:\n\n{tables.markdown(self.columns, self.rows, right=right)}"

    def print(self) -> None:
        """On standard output."""
        tables.print_table(self.title, self.columns, self.rows, left=self.words)


def of_stepwise(trained: Sequence[dict[str, Any]]) -> list[Table]:
    """Of each seed, type and framework: its steps, and where it came nearest to a bound."""
    columns: tuple[str, ...] = (
        "seed",
        "type",
        "whose error",
        "steps judged",
        "agree",
        "beyond",
        "open",
    )
    columns += ("nearest to its bound", "in a", "other side of an edge")
    rows = []
    for value in trained:
        for dtype, one in value["types"].items():
            counts = [f"{one[key]:,}" for key in ("agree", "beyond", "open")]
            for name, worst in one["worst"].items():
                kind = max(worst, key=lambda kind: _number(worst[kind]))
                near = _share(worst[kind])
                who = NAMES[name] if dtype == "float32" else "JAX and PyTorch"
                sides = one["on_other_sides"].get(name)
                rows.append(
                    [
                        str(value["seed"]),
                        dtype,
                        who,
                        f"{value['judged']:,}",
                        *counts,
                        near,
                        bounds.WORDS[kind],
                        "-" if sides is None else f"{sides:,}",
                    ]
                )
    return [Table("Steps", columns, rows, words=(0, 1, 2, 8))]


def _share(worst: float | None) -> str:
    """How much of a bound an error is, in few characters however far beyond it is."""
    if worst is None:
        return "not finite"
    return f"{100 * worst:.0f} %" if worst < 100 else f"{worst:.1e} times"


def of_coupled(runs: Sequence[dict[str, Any]]) -> list[Table]:
    """How far apart each stage ended, its answers, and the groups that each framework made."""
    rows, answers, groups = [], [], []
    for one in runs:
        head = [one["dtype"], str(one["seed"])]
        for stage in one["stages"]:
            series = stage["series"]
            low, high = (size(number) for number in series["control"]["weight"][-1])
            reach = stage["resolution"]["weight"]
            rows.append(
                [
                    *head,
                    stage["stage"],
                    f"{stage['steps']:,}",
                    size(series["distance"]["weight"][-1]),
                    f"{low} to {high}",
                    "-" if not told(stage) else size(reach),
                ]
            )
            answers.append([*head, stage["stage"], *_answers(stage["epochs"][-1]["test"])])
        if one["predictions"]:
            answers.append([*head, "whole tree", *_answers(one["predictions"])])
        for node, row in one["groups"].items():
            groups.append(
                [
                    *head,
                    node,
                    "same" if row["same"] else "OTHER",
                    str(len(row["groups"]["torch"])),
                    f"{row['adjusted_rand']:.2f}",
                    f"{row['controls_same']} of {row['controls']}",
                    size(row["asl_difference"]),
                    size(row["margin"]),
                ]
            )
    columns: tuple[str, ...] = ("type", "seed", "stage", "steps", "weights apart", "controls apart")
    columns += ("would be seen from",)
    found = [Table("At the end of each stage", columns, rows, words=(0, 1, 2))]
    columns = ("type", "seed", "stage", "right: JAX", "PyTorch", "images", "equal")
    columns += ("controls equal",)
    found.append(Table("Answers then, on test images", columns, answers, words=(0, 1, 2)))
    if groups:
        columns = ("type", "seed", "node", "groups", "how many", "adjusted Rand index")
        columns += ("controls with the same", "likelihoods apart", "nearest to the threshold")
        found.append(Table("Groups", columns, groups, words=(0, 1, 2, 3)))
    return found


def told(stage: dict[str, Any]) -> bool:
    """Whether the controls are still so near at the end that a difference could be seen."""
    reach = stage["resolution"]["weight"]
    return reach is not None and reach < 1


def _answers(row: dict[str, Any]) -> list[str]:
    """Right answers of each, images, equal answers of the two, of the controls with theirs."""
    pairs = dict(row["pairs"])
    cross = pairs.pop("jax, torch")["agree"]
    agree = [pair["agree"] for pair in pairs.values()]
    return [
        *(f"{row['right'][name]:,}" for name in NAMES),
        f"{row['images']:,}",
        f"{cross:,}",
        f"{min(agree):,} to {max(agree):,}" if agree else "-",
    ]


def of_independent(value: dict[str, Any]) -> list[Table]:
    """Accuracy over seeds, what the tests say of it, and how like each other two runs are."""
    c, accuracies = value["comparison"], value["accuracies"]
    rows = [
        [
            label,
            str(len(accuracies[name])),
            f"{c['means'][place]:.2f}",
            f"{c['spreads'][place]:.2f}",
        ]
        for place, (name, label) in enumerate(NAMES.items())
    ]
    accuracy = Table(
        "Accuracy", ("framework", "runs", "mean, %", "standard deviation, points"), rows
    )
    low, high = c["interval"]
    seen = f"{c['difference']:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"
    rows = [
        ["Do the means differ?", "Welch", _p(c["p_difference"]), seen],
        [
            f"Are they equal within {plural(c['margin'], 'point', 'g')}?",
            "two one-sided",
            _p(c["p_equivalence"]),
            _equivalence(c),
        ],
    ]
    if c["p_variance"] is not None:
        answer = "different" if c["p_variance"] < statistics.ALPHA else "not shown"
        rows.append(["Do the variances differ?", "Brown-Forsythe", _p(c["p_variance"]), answer])
    tests = Table("Tests", ("question", "test", "p", "answer"), rows, words=(0, 1, 3))
    columns: tuple[str, ...] = (
        "two runs",
        "pairs",
        "equal predictions, %",
        "kappa",
        "same root groups",
    )
    columns += ("adjusted Rand index: mean", "least", "same trees")
    rows = []
    for name, label in PAIRS.items():
        agree, trees = value["agreement"][name], value["trees"][name]
        kappa = "-" if agree["kappa"] is None else f"{agree['kappa']:.3f}"
        same = "-" if trees["same_trees"] is None else str(trees["same_trees"])
        rows.append(
            [
                label,
                str(trees["pairs"]),
                f"{100 * agree['agree']:.1f}",
                kappa,
                str(trees["same_groups"]),
                f"{trees['adjusted_rand']:.2f}",
                f"{trees['lowest']:.2f}",
                same,
            ]
        )
    return [accuracy, tests, Table("Any two runs", columns, rows)]


def _equivalence(c: dict[str, Any]) -> str:
    if c["equivalent"]:
        return "equivalent"
    return "not shown, and the means differ" if c["different"] else "not shown"


def _p(value: float) -> str:
    return f"{value:.2g}"


def of_devices(value: dict[str, Any]) -> list[Table]:
    """Each precision's answers beside those of float64 on the CPU."""
    columns = ("framework", "precision", "device", "right", "decisions changed", "error of scores")
    rows = [["", "float64", "cpu", f"{value['truth']:,}", "-", "-"]]
    rows += [
        [
            NAMES[row["framework"]],
            row["mode"],
            value["device"][row["framework"]],
            f"{row['right']:,}",
            f"{row['changed']:,}",
            size(row["error"]),
        ]
        for row in value["rows"]
    ]
    return [Table(f"Precisions, {value['images']:,} images", columns, rows, words=(0, 1, 2))]


def size(number: float | None) -> str:
    """A distance, as a share."""
    return "infinitely far" if number is None else f"{number:.1e}"


def _number(value: float | None) -> float:
    return float("inf") if value is None else value
