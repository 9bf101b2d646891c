"""Training that starts from the weights of a finished tree (`--init`), whose tree it keeps."""

from pathlib import Path

from data.base import writing
from data.base.errors import UserError
from data.images.specs import Spec
from data.inference.model import Model
from data.recipes.recipe import Recipe, image_shape
from data.run import compression, runfolder

_OF_SHAPES = "pointwise_padding"  # the fault that changes the maps' sizes


def need_whole(run: Path) -> None:
    """UserError if a run cannot be trained on: it is no tree's, not finished, or compressed."""
    runfolder.read_recipe_of_tree(run)
    if not (run / "summary.json").exists():
        raise UserError(f"{run} is not finished (go on with --resume); --init takes finished runs")
    if compression.read(run) is not None:
        raise UserError(
            f"{run} is compressed, which is not trained; --init takes the run that it was made of"
        )


def need_fit(run: Path, model: Model, recipe: Recipe, spec: Spec) -> None:
    """UserError if a run's networks are not those that this recipe has for this dataset."""
    ours, theirs = image_shape(recipe), model.image_shape
    pairs = {
        "backbone": (model.recipe.backbone, recipe.backbone),
        "classes": (len(model.classes), len(spec.class_names)),
        "image shape": (list(theirs), list(ours)),
        f"fault {_OF_SHAPES}": (_OF_SHAPES in model.recipe.faults, _OF_SHAPES in recipe.faults),
    }
    for what, (had, wanted) in pairs.items():
        if had != wanted:
            raise UserError(
                f"{run} does not fit: {what} {had}, and here {wanted}; --init takes a "
                "tree of the same shapes"
            )
    for node in model.tree.nodes:
        name = model.tree.names[node]
        had, wanted = model.recipe.network(name), recipe.network(name)
        if had != wanted:
            raise UserError(
                f"{run} does not fit: {name} of {recipe.dataset} has other layers; "
                "--init takes a tree of the same shapes"
            )


def carry(run: Path, folder: Path) -> None:
    """Copy what says how the tree came to be, each node's ASL, where it is not there yet."""
    for file in sorted((run / "asl").glob("*.json")):
        if not (folder / "asl" / file.name).exists():
            writing.write_bytes(folder / "asl" / file.name, file.read_bytes())
