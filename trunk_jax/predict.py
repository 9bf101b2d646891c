"""`python -m trunk_jax.predict RUN IMAGE...`: the class of image files, and the way to it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.base.errors import run_command
from data.base.parser import Parser, target
from data.base.writing import STDOUT, save_json
from data.images import datasets
from data.images import files as pictures
from data.images.datasets import Spec
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.tree.hierarchy import ROOT, Tree
from data.tree.hierarchy import Path as NodePath


def follow(
    recipe: Recipe,
    tree: Tree,
    networks: dict[NodePath, Any],
    image: UInt8[np.ndarray, "h w c"],
    spec: Spec,
) -> dict[str, Any]:
    """The path that an image takes, and the probabilities at each node on it.

    Only these nodes are computed. `class`, `label`, `probability` (the product along the
    path), and `path`: for each node its `node`, `output` and `probability`, and all its
    `outputs` with their probabilities.
    """
    from trunk_jax.inference.route import first_input, visit

    leaves = {path: label for label, path in enumerate(tree.paths)}
    x, node, path, probability = first_input(recipe, networks, image), ROOT, [], 1.0
    while node not in leaves:
        x, probabilities = visit(networks[node], x)
        names = [
            spec.class_names[leaves[child]] if child in leaves else tree.names[child]
            for child in ((*node, output) for output in range(len(probabilities)))
        ]
        chosen = int(probabilities.argmax())
        probability *= float(probabilities[chosen])
        path.append(
            {
                "node": tree.names[node],
                "output": names[chosen],
                "probability": float(probabilities[chosen]),
                "outputs": dict(zip(names, map(float, probabilities), strict=True)),
            }
        )
        node = (*node, chosen)
    label = leaves[node]
    return {
        "class": spec.class_names[label],
        "label": label,
        "probability": probability,
        "path": path,
    }


def line(row: dict[str, Any]) -> str:
    """One result for people."""
    way = " > ".join(
        f"{step['node']}: {step['output']} {100 * step['probability']:.1f} %"
        for step in row["path"]
    )
    return f"{row['file']}: {row['class']} {100 * row['probability']:.1f} % ({way})"


def main(arguments: list[str] | None = None) -> None:
    """Classify as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.predict",
        description="Classify image files with a trained tree; show the path that each takes "
        "through it and how probable each step was.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, or a folder of checkpoints/")
    add("images", metavar="IMAGE", nargs="+", help="image files of any common format and size, "
        "folders of them, or - for standard input; the middle square is scaled to the size of "
        "the dataset's images")  # fmt: skip
    add("--as-stored", action="store_true", help="EMNIST: the images are mirrored and rotated "
        "as the dataset's own are (default: upright, light strokes on dark)")  # fmt: skip
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write the results to FILE; - prints them as JSON instead (default: none)",
    )
    options = parser.parse_args(arguments)
    run = Path(options.run)
    recipe, tree = runfolder.read_recipe(run), runfolder.read_tree(run)
    spec = datasets.spec(recipe.dataset)
    names = pictures.files(options.images)
    images = pictures.load(names, spec, as_stored=options.as_stored)
    from trunk_jax.inference.aot import keep_programs
    from trunk_jax.inference.load import load_networks  # after the flags: JAX takes seconds to load

    keep_programs()
    networks = load_networks(run, recipe, tree, spec.image_shape)
    rows = [
        {"file": name} | follow(recipe, tree, networks, image, spec)
        for name, image in zip(names, images, strict=True)
    ]
    if str(options.json) != STDOUT:
        print(*map(line, rows), sep="\n")
    if options.json:
        save_json(options.json, rows)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
