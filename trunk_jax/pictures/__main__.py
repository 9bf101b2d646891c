"""`python -m trunk_jax.pictures RUN...`: PNG and SVG pictures of a run, or of several in one."""

import sys
from pathlib import Path

from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder
from data.run import derived
from trunk_jax.pictures.accuracy_cost import accuracy_cost, curve, point, published
from trunk_jax.pictures.run import drawings
from trunk_jax.pictures.style import write


def main(arguments: list[str] | None = None) -> None:
    """Draw as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.pictures",
        description="Draw a finished run of either framework: its tree, confusion matrix, training "
        "curves and likelihoods. Confusions are those of the last evaluate. Of several runs draw "
        "one picture: accuracy against multiply-adds.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="*", help="a run folder, or several to compare")
    add(
        "--split",
        choices=("train", "validation", "test"),
        default="test",
        help="the predictions to show; evaluate writes them (default: %(default)s)",
    )
    add(
        "--leaves",
        choices=("images", "names"),
        default="images",
        help="what stands at the tree's leaves beside the classes' names (default: %(default)s)",
    )
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets, for --leaves images (default: the run's own)",
    )
    add(
        "--published",
        metavar="FILE",
        action="append",
        default=[],
        help="with several runs or a curve: a JSON list of published points to draw beside them, "
        "such as docs/published.json (again for another)",
    )
    add(
        "--curve",
        metavar="LABEL=FILE",
        action="append",
        default=[],
        help="draw what `evaluate --curve --json FILE` wrote as a curve in the same picture; LABEL "
        "stands in the legend (again for another)",
    )
    add(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="where they go (default: runs/<the run's name>/figures; of "
        "several runs: runs/figures)",
    )
    options = parser.parse_args(arguments)
    if len(options.runs) > 1 or options.curve:
        points = [p for file in options.published for p in published(Path(file))]
        points += [point(Path(run)) for run in options.runs]
        curves = [curve(named) for named in options.curve]
        drawing = accuracy_cost(points, "What accuracy costs", curves)
        print(*write(drawing, Path(options.out or "runs/figures"), "accuracy-cost"), sep="\n")
        return
    if options.published:
        raise UserError("--published draws points beside several runs; name two or more RUNs")
    if not options.runs:
        raise UserError("no RUN is named: a run folder, several to compare, or --curve LABEL=FILE")
    folder = Path(options.runs[0])
    out = Path(options.out) if options.out else derived.place(folder) / "figures"
    made = drawings(folder, options.split, options.leaves == "images", options.data_dir)
    if not options.out:
        derived.claim(folder)
    for name, drawing in made.items():
        print(*write(drawing, out, name), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
