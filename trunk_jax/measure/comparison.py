"""Trees and baselines side by side: a table and a picture of what each costs and achieves."""

import io
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from data.recipes.recipe import FOLDER
from data.run import results, runfolder

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Row:
    """A network on one dataset.

    Attributes:
      name: of the model, or of a tree's nodes.
      kind: `tree` or `baseline`.
      source: the run folder that it was trained in, or `untrained`.
      accuracy: measured on test in that run, 0 to 1; None if untrained.
      published: the published accuracy, for comparison; None if there is none.
      latency: milliseconds for one image, its bytes to the answer (median).
      throughput: images a second, in batches.
      memory: bytes of the weights and of what one image's program needs besides.
      multiply_adds: for one image; of a tree the mean over the test classes.
      parameters: of a tree the mean over the test classes' paths.

    """

    name: str
    kind: str
    source: str
    accuracy: float | None
    published: float | None
    latency: float
    throughput: float
    memory: int
    multiply_adds: float
    parameters: float


def published(name: str, dataset: str) -> float | None:
    """The published accuracy of a model or of a tree with such nodes, 0 to 1."""
    rows = tomllib.loads((FOLDER / "baselines" / "accuracy.toml").read_text("utf-8"))
    share = rows.get(name, {}).get(dataset)
    return None if share is None else share / 100


def runs(folder: Path, dataset: str) -> list[Path]:
    """The finished runs on a dataset in or below a folder."""
    found = []
    for file in sorted(folder.rglob("summary.json")):
        config = file.with_name("config.json").exists()
        if config and results.read_summary(file.parent)["dataset"] == dataset:
            found.append(file.parent)
    return found


def print_table(title: str, rows: Sequence[Row]) -> None:
    """The rows on standard output, the cheapest first."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("network", "test %", "published %"):
        table.add_column(column)
    for column in ("latency ms", "images/s", "memory MB", "mult-adds M", "parameters M"):
        table.add_column(column, justify="right")
    table.add_column("source", overflow="fold")
    for row in sorted(rows, key=lambda row: row.multiply_adds):
        table.add_row(
            f"{row.name} ({row.kind})", _percent(row.accuracy), _percent(row.published),
            f"{row.latency:.2f}", f"{row.throughput:.1f}", f"{row.memory / 1e6:.1f}",
            f"{row.multiply_adds / 1e6:.1f}", f"{row.parameters / 1e6:.3f}", row.source,
        )  # fmt: skip
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def picture(file: Path, title: str, rows: Sequence[Row]) -> None:
    """Accuracy against multiply-adds and against latency, as PNG.

    Networks without an accuracy are ticks at the foot: they cost something, and no more is known.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    trained = [row for row in rows if row.accuracy is not None]
    for axis, of, label in (
        (axes[0], lambda row: row.multiply_adds / 1e6, "multiply-adds for one image, millions"),
        (axes[1], lambda row: row.latency, "latency for one image, ms"),
    ):
        for kind, mark in (("tree", "o"), ("baseline", "s")):
            mine = [row for row in trained if row.kind == kind]
            shares = [100 * row.accuracy for row in mine]
            axis.scatter([of(row) for row in mine], shares, marker=mark, label=kind)
        for row in trained:
            at = (of(row), 100 * row.accuracy)
            axis.annotate(row.name, at, xytext=(4, 4), textcoords="offset points", fontsize=7)
        foot, before, height = axis.get_xaxis_transform(), 0.0, 0.04
        for row in sorted((row for row in rows if row.accuracy is None), key=of):
            near = of(row) < 1.08 * before  # its name would lie on the one before
            before, height = of(row), height + 0.27 if near else 0.04
            axis.plot([of(row)] * 2, [0, 0.03], transform=foot, color="grey", lw=1)
            axis.text(of(row), height, row.name, transform=foot, rotation=90, fontsize=6,
                      color="grey", ha="center", va="bottom")  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    if trained:
        axes[0].legend()
    else:
        axes[0].set_yticks([])
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    pyplot.close(figure)
    runfolder.write_bytes(file, content.getvalue())
