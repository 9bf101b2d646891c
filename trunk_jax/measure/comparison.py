"""Trees and baselines side by side: what each costs and achieves, in groups."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.base import tables
from data.images.specs import Spec
from data.recipes.recipe import FOLDER, Recipe
from data.run import results, runfolder
from data.tree.hierarchy import Tree

TREES, MONOLITHS, BASELINES, UNTRAINED = (
    "trees",
    "one network of about a tree's cost",
    "baselines",
    "baselines, untrained",
)


@dataclass(frozen=True)
class Row:
    """A network on one dataset.

    Attributes:
      name: what it is called, unlike any other row.
      group: `TREES`, `MONOLITHS`, `BASELINES`, `UNTRAINED`, or the ablation that it is part of.
      model: the backbone of its nodes, or the baseline.
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
    group: str
    model: str
    source: str
    accuracy: float | None
    published: float | None
    latency: float
    throughput: float
    memory: int
    multiply_adds: float
    parameters: float


def published(model: str, dataset: str) -> float | None:
    """The published accuracy of a model or of a tree with such nodes, 0 to 1."""
    rows = tomllib.loads((FOLDER / "baselines" / "accuracy.toml").read_text("utf-8"))
    share = rows.get(model, {}).get(dataset)
    return None if share is None else share / 100


def runs(folder: Path, data: Spec) -> tuple[list[Path], list[Path]]:
    """The finished runs on a dataset in or below a folder: of its image size, and of others."""
    found: tuple[list[Path], list[Path]] = ([], [])
    for file in sorted(folder.rglob("summary.json")):
        run, config = file.parent, file.with_name("config.json").exists()
        if config and results.read_summary(run)["dataset"] == data.name:
            shape = runfolder.read_recipe(run).spec.image_shape
            found[shape != data.image_shape].append(run)
    return found


def identity(folder: Path, recipe: Recipe, tree: Tree) -> tuple[str, str]:
    """(name, group) of a finished run.

    Example: `("vgg tree of 4 nodes", "trees")`.
    """
    if recipe.baseline is not None:
        return recipe.backbone, BASELINES
    if (folder.parent / "ablation.csv").exists():
        name = f"{recipe.backbone}, volatility {recipe.root.volatility:g}"
        return name, f"ablation {folder.parent.name.removeprefix('ablation-')}"
    count = len(tree.nodes)
    if recipe.backbone == "monolith":
        return "monolith", MONOLITHS
    if count == 1:
        return f"{recipe.backbone}, one node", MONOLITHS
    return f"{recipe.backbone} tree of {count} nodes", TREES


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows by group and cost; names that several have gain the run folder's."""
    often = Counter(row.name for row in rows)
    named = [
        replace(row, name=f"{row.name} ({Path(row.source).name})") if often[row.name] > 1 else row
        for row in rows
    ]
    groups = [
        TREES,
        *sorted({r.group for r in rows if r.group.startswith("ablation ")}),
        MONOLITHS,
        BASELINES,
        UNTRAINED,
    ]
    return sorted(named, key=lambda row: (groups.index(row.group), row.multiply_adds))


def print_table(title: str, rows: Sequence[Row]) -> None:
    """The rows, in `distinct`'s order, on standard output, each group under its name."""
    columns = (
        "network",
        "test %",
        "published %",
        "latency ms",
        "images/s",
        "memory MB",
        "mult-adds M",
        "params M",
    )
    cells: list[tables.Row] = []
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            cells.append(group)
        cells.append(
            (
                f"  {row.name}",
                _percent(row.accuracy),
                _percent(row.published),
                f"{row.latency:.2f}",
                f"{row.throughput:.1f}",
                f"{row.memory / 1e6:.1f}",
                f"{row.multiply_adds / 1e6:.1f}",
                f"{row.parameters / 1e6:.3f}",
            )
        )
    tables.print_table(title, columns, cells)
    trained = [(row.name, row.source) for row in rows if row.accuracy is not None]
    if trained:
        tables.print_table("", ("network", "run"), trained, left=(0, 1))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
