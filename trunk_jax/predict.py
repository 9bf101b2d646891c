"""`python -m trunk_jax.predict RUN IMAGE...`: the class of image files, and the way to it."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.progress import working
from data.base.writing import is_stdout, save_json
from data.images import files, fitting
from data.inference.model import Model, predictions
from data.inference.shipped import run_of
from data.run import runfolder
from data.tree.hierarchy import Node


def row_of(model: Model, pixels: UInt8[np.ndarray, "h w c"]) -> dict[str, Any]:
    """The path that an image takes, and the probabilities at each node on it.

    Only these nodes are computed. `class`, `label`, `probability` (the product along the
    path), and `path`: for each node its `node`, `output` and `probability`, and all its
    `outputs` with their probabilities. In a tree with exits the outputs are classes; the output
    of the last node is the class that it finds most probable, of others the node that comes next.
    """
    tree, visits = model.tree, list(model.visits(pixels[None]))
    found, path = predictions(tree, visits, 1), []
    for visit in visits:
        branches = [(*visit.node, branch) for branch in range(len(tree.branches(visit.node)))]
        names = [_title(model, branch) for branch in branches]
        shares = np.exp(visit.likelihoods[0])
        taken = int(visit.chosen[0])
        probability = float(shares[taken])
        outputs = names
        if tree.exits:
            outputs = [model.classes[label] for label in tree.members(visit.node)]
            stops = taken < 0
            if stops:
                names, taken = outputs, int(shares.argmax())
            of = [taken] if stops else tree.columns(visit.node)[taken]
            probability = float(shares[list(of)].sum())
        path.append(
            {
                "node": tree.names[visit.node],
                "output": names[taken],
                "probability": probability,
                "outputs": dict(zip(outputs, shares.tolist(), strict=True)),
            }
        )
    label = int(found.labels[0])
    return {
        "class": model.classes[label],
        "label": label,
        "probability": float(found.confidence[0]),
        "path": path,
    }


def _title(model: Model, branch: Node) -> str:
    """What a branch is called: the class that it leads to, or the node."""
    if branch in model.tree.paths:
        return model.classes[model.tree.paths.index(branch)]
    return model.tree.names[branch]


def line(row: dict[str, Any], titles: Mapping[str, str], notes: Sequence[str]) -> str:
    """One result for people. `titles`: what each node is called.

    `notes`: what had to be decided about the image.
    """
    steps = [
        (step["node"], titles.get(step["output"], step["output"]), 100 * step["probability"])
        for step in row["path"]
    ]
    way = " > ".join(f"{node}: {output} {share:.1f} %" for node, output, share in steps)
    decided = f" [{'; '.join(notes)}]" if notes else ""
    return f"{row['file']}: {row['class']} {100 * row['probability']:.1f} % ({way}){decided}"


def main(arguments: list[str] | None = None) -> int:
    """Classify as the flags say; 1 if some files cannot be read, which stops no others.

    UserError for anything else that a user can put right, and if no file can be read.
    """
    parser = Parser(
        prog="python -m trunk_jax.predict",
        description="Classify image files with a trained tree; show the path that each takes "
        "through it and how probable each step was.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, or a folder of checkpoints/")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files of any common format and size, folders of them, or - for standard input",
    )
    add(
        "--invert",
        choices=fitting.INVERT,
        default="auto",
        help="exchange black and white; auto: "
        "where the dataset has light strokes on a dark ground, and the image a light border "
        "(default: %(default)s)",
    )
    add(
        "--fit",
        choices=fitting.FIT,
        default="crop",
        help="what becomes of an image of other "
        "proportions: crop takes its middle, pad adds of its border's colour, stretch changes "
        "the proportions (default: %(default)s)",
    )
    add(
        "--as-stored",
        action="store_true",
        help="EMNIST: the images are mirrored and rotated "
        "as the dataset's own are (default: upright)",
    )
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write the results to FILE; - prints them as JSON instead (default: none)",
    )
    options = parser.parse_args(arguments)
    run = run_of(options.run)
    recipe, tree = runfolder.read_recipe(run), runfolder.read_tree(run)
    spec = recipe.spec
    names = files.files(options.images)
    how = fitting.Options(options.invert, options.fit, options.as_stored)
    titles = tree.titles(spec.class_names)
    rows: list[dict[str, Any]] = []
    model, bad = None, 0
    for name in names:
        try:
            picture = files.read(name, spec, how)
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            rows.append({"file": name, "error": str(error)})
            bad += 1
            continue
        first = working("loading and compiling the tree") if model is None else nullcontext()
        with first:
            model = model or _model(run)
            row = {"file": name} | row_of(model, picture.pixels)
        rows.append(row | {"image": fitting.about(picture)})
        if not (options.json and is_stdout(options.json)):
            print(line(row, titles, fitting.notes(picture)))
    if bad == len(names):
        raise UserError(f"none of the {bad} images can be read")
    if options.json:
        save_json(options.json, rows)
    if bad:
        print(f"error: {bad} of {len(names)} images cannot be read", file=sys.stderr)
    return 1 if bad else 0


def _model(run: Path) -> Model:
    """The run's tree, with programs that are kept for the next time."""
    from trunk_jax.machine import backend  # after the flags: JAX takes seconds to load

    backend.start()
    from trunk_jax.inference.aot import keep_programs
    from trunk_jax.inference.load import load

    keep_programs()
    return load(run)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
