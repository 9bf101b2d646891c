"""`python -m benchmarks.gpu.reproduction RUN`: the published recipe's run and the published tree.

It reads the run's files only, of an unfinished run too: its groups, and of each phase of each node
the epochs done, the best and its accuracies.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.gpu import answer
from data.base.errors import UserError, run_command
from data.base.tables import print_table
from data.run import results, runfolder
from data.tree import grouping

FILE = Path(__file__).parent / "published.toml"


def of_run(run: Path) -> dict[str, Any]:
    """What there is of a run. UserError if it is none, or one of another recipe.

    `groups` by node, as lists of labels; `phases`: rows of node, phase, epochs, best epoch, its
    accuracy on the images that epochs are chosen by, and the highest training accuracy; `test`,
    `right`, `total`: None until it is finished.
    """
    recipe = runfolder.read_recipe(run)
    if recipe.name != "published":
        raise UserError(f"{run} has the recipe {recipe.name!r}, not 'published'")
    groups = {}
    if (run / "tree.json").exists():
        tree = runfolder.read_tree(run)
        for node in tree.nodes:
            mine = tree.members(node)
            asl = runfolder.read_asl(run, tree.names[node], len(mine))
            if asl is not None and grouping.splits(asl[1]):
                groups[tree.names[node]] = [[mine[i] for i in group] for group in asl[1]]
    phases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in runfolder.read_metrics(run):
        phases.setdefault((row["node"], row["phase"]), []).append(row)
    rows = []
    for (name, phase), epochs in phases.items():
        best = max(epochs, key=lambda row: (row["validation_accuracy"], -row["epoch"]))
        rows.append(
            {
                "node": name,
                "phase": phase,
                "epochs": len(epochs),
                "best_epoch": best["epoch"],
                "best_accuracy": best["validation_accuracy"],
                "train_accuracy": max(row["train_accuracy"] for row in epochs),
            }
        )
    finished = (run / "summary.json").exists()
    test = results.read_summary(run)["accuracy"]["test"] if finished else None
    return {
        "dataset": recipe.dataset,
        "backbone": recipe.backbone,
        "seed": recipe.seed,
        "groups": groups,
        "phases": rows,
        "right": test and test["correct"],
        "total": test and test["total"],
        "test": test and test["accuracy"],
    }


def published(dataset: str, backbone: str) -> dict[str, Any]:
    """What is known of the published tree; empty if nothing is."""
    return tomllib.loads(FILE.read_text()).get(f"{dataset}-{backbone}", {})


def main(arguments: list[str] | None = None) -> None:
    """Show a run as the flags say."""
    parser = answer.parser("reproduction", "A run beside the published tree.")
    parser.add_argument("run", metavar="RUN", help="the run folder")
    options = parser.parse_args(arguments)
    ours = of_run(Path(options.run))
    theirs = published(ours["dataset"], ours["backbone"])
    rows = [
        [
            row["node"],
            row["phase"],
            str(row["epochs"]),
            str(row["best_epoch"]),
            f"{100 * row['best_accuracy']:.2f}",
            f"{100 * row['train_accuracy']:.2f}",
        ]
        for row in ours["phases"]
    ]
    columns = ("node", "phase", "epochs", "best", "its accuracy, %", "training, %")
    print_table(f"{options.run}", columns, rows)
    for node, groups in ours["groups"].items():
        print(f"groups of {node}: {groups}")
    for line in theirs.get("facts", []):
        print(f"published: {line}")
    told = "not finished" if ours["test"] is None else f"test {100 * ours['test']:.2f} %"
    answer.give(ours | {"published": theirs}, options.json, told)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
