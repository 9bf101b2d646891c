"""`python -m data.grown RUN...`: what each run's recipe grew, beside the network without groups.

The same images chose the epochs, and with `--volatility auto` the groups as well: differences
here are of validation images, and as good as those can be.
"""

import sys
from pathlib import Path
from typing import Any

from data.base import tables
from data.base.errors import run_command
from data.base.parser import Parser, target
from data.base.writing import save_json
from data.run import results, runfolder
from data.table import insert
from data.training import growth
from data.tree import hierarchy, selection

COLUMNS = (
    "data",
    "recipe",
    "backbone",
    "framework",
    "seed",
    "nodes",
    "root's groups",
    "root alone, %",
    "monolith, %",
    "tree, %",
    "tree - monolith or root, points",
)
MONOLITH = "monolith"


def row(run: Path, monoliths: dict[tuple[Any, ...], float]) -> dict[str, Any]:
    """What a finished run of a tree grew. UserError if it is not finished."""
    recipe, tree = runfolder.read_recipe_of_tree(run), runfolder.read_tree(run)
    summary, config = results.read_summary(run), runfolder.read_config(run)
    labels = tree.members(hierarchy.ROOT)
    groups = _root_groups(tree)
    accuracy = summary["accuracy"]["validation"]["accuracy"]
    alone = _class_phase(run)
    equal = monoliths.get(_key(run))
    return {
        "data": summary["dataset_title"],
        "recipe": recipe.name,
        "backbone": recipe.backbone,
        "framework": config["framework"],
        "seed": recipe.seed,
        "epochs": config["flags"].get("epochs"),
        "limit": recipe.limit,
        "nodes": len(tree.nodes),
        "depth": tree.depth,
        "groups": [list(group) for group in groups],
        "in_words": selection.in_words(groups, growth.class_names(recipe, labels)),
        "root_alone": alone,
        "monolith": equal,
        "tree": accuracy,
        "difference": accuracy - (alone if equal is None else equal),
        "images": summary["accuracy"]["validation"]["total"],
    }


def _root_groups(tree: hierarchy.Tree) -> hierarchy.Groups:
    tops: dict[int, list[int]] = {}
    for label, path in enumerate(tree.paths):
        tops.setdefault(path[0], []).append(label)
    return hierarchy.as_groups(list(tops.values()))


def _class_phase(run: Path) -> float | None:
    """The root's validation accuracy with one output a class: of its best epoch."""
    rows = runfolder.read_metrics(run)
    found = [
        row["validation_accuracy"]
        for row in rows
        if (row.get("node"), row.get("phase")) == ("root", "class")
    ]
    return max(found, default=None)


def _key(run: Path) -> tuple[Any, ...]:
    """What a tree and its monolith have in common."""
    recipe, config = runfolder.read_recipe(run), runfolder.read_config(run)
    flags = config["flags"]
    return (
        config["framework"],
        config["dataset_sha256"],
        recipe.name,
        recipe.seed,
        recipe.limit,
        flags.get("epochs"),
    )


def rows(runs: list[Path]) -> list[dict[str, Any]]:
    """A row for each tree; monoliths among the runs are what the trees are compared with."""
    single = [run for run in runs if runfolder.read_recipe(run).backbone == MONOLITH]
    monoliths = {
        _key(run): results.read_summary(run)["accuracy"]["validation"]["accuracy"] for run in single
    }
    return [row(run, monoliths) for run in runs if run not in single]


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    rows = []
    for each in found:
        cut = "".join(f", {key} {each[key]}" for key in ("epochs", "limit") if each[key])
        cells = (
            each["data"],
            each["recipe"] + cut,
            each["backbone"],
            each["framework"],
            str(each["seed"]),
            str(each["nodes"]),
            each["in_words"],
            percent(each["root_alone"]),
            percent(each["monolith"]),
            percent(each["tree"]),
            f"{100 * each['difference']:+.2f}",
        )
        rows.append(cells)
    return tables.markdown(COLUMNS, rows)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or write it into a file."""
    parser = Parser(
        prog="python -m data.grown",
        description="What finished runs grew: the root's groups, and validation accuracy of the "
        "tree, of its root with one output a class, and of the monolith of the same recipe, seed "
        "and framework if that is among the runs. As a Markdown table, which may be wide.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument(
        "--write",
        type=target,
        metavar="FILE",
        help="put it into a Markdown file, "
        "between two marks, as data.table does (default: print it)",
    )
    parser.add_argument(
        "--json", type=target, metavar="FILE", help="also write the rows to FILE (default: none)"
    )
    options = parser.parse_args(arguments)
    found = rows([Path(run) for run in options.runs])
    if options.write:
        insert(options.write, table(found))
    else:
        print(table(found))
    if options.json:
        save_json(options.json, found)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
