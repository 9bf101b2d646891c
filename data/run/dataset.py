"""The dataset of a run: that it is to be trained on, and that it was trained on."""

from pathlib import Path

from data.images import datasets, specs
from data.images.datasets import Dataset
from data.recipes.recipe import Recipe
from data.run import runfolder


def load_of_recipe(recipe: Recipe, data_dir: str | Path | None = None) -> Dataset:
    """The dataset of a recipe, in `data_dir` or where it was; one known by name may be fetched."""
    if recipe.dataset in specs.SPECS:
        return datasets.load(recipe.dataset, data_dir)
    return datasets.load_again(recipe.spec, data_dir)


def load_of_run(run: Path, recipe: Recipe, data_dir: str | Path | None = None) -> Dataset:
    """The dataset of a run: in `data_dir`, else where the run was trained with it.

    It is not downloaded: a file says which it is, and where, and nobody has asked for it.
    """
    return datasets.load_again(recipe.spec, data_dir or runfolder.data_dir(run))
