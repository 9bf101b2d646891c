"""What is exported: a trained tree with its networks and what is known of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from data.inference import stopping
from data.inference.stopping import Stopping
from data.recipes.recipe import Recipe
from data.run import results, runfolder
from data.tree import hierarchy
from data.tree.hierarchy import Tree
from trunk_jax.inference.load import load
from trunk_jax.inference.model import Model
from trunk_jax.nodes import Shape

CODE_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Trained:
    """A tree with its networks, and `about` it: metadata for a file, all text."""

    model: Model
    about: Mapping[str, str]

    @property
    def recipe(self) -> Recipe:
        """How it was trained."""
        return self.model.recipe

    @property
    def tree(self) -> Tree:
        """The tree of its labels."""
        return self.model.tree

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of an image."""
        return self.model.image_shape


def of_run(run: Path) -> Trained:
    """What is in a finished run's folder. UserError if it is not finished."""
    model = load(run)
    facts = _measured(run, model.stopping != Stopping())
    stopping.need_one_branch(model.stopping, "export")
    return Trained(model, about(model.recipe, model.tree) | facts)


def about(recipe: Recipe, tree: Tree) -> dict[str, str]:
    """What any file says of itself: `classes` and `tree` as JSON, recipe, data, licences.

    And how an image file becomes one of the dataset's: `light_strokes` on a dark ground, and
    `turned`, with rows and columns exchanged; `yes` or `no`.
    """
    spec = recipe.spec
    return {
        "classes": json.dumps(list(spec.class_names)),
        "tree": json.dumps(hierarchy.to_json(tree)),
        "recipe": recipe.name,
        "backbone": recipe.backbone,
        "dataset": spec.title,
        "licence": CODE_LICENCE,
        "data_licence": spec.licence,
        "light_strokes": "yes" if spec.light_strokes else "no",
        "turned": "yes" if spec.turned else "no",
        "trunk_jax": metadata.version("trunk-jax"),
    }


def _measured(run: Path, ruled: bool) -> dict[str, str]:
    """What the run says of itself: test accuracy, and the commit that trained it.

    `ruled`: whether images stop by a rule, which then has to have been measured on test.
    """
    summary: dict[str, Any] = results.read_summary(run)
    git = runfolder.read_manifest(run).get("git") or {}
    found = results.standing(run, summary)
    right, total = found["correct"], found["total"]
    known = found["stopped"] == ruled
    return {
        "dataset": summary["dataset_title"],
        "accuracy": f"{right / total:.6f}" if known else "unknown",
        "test_images_right": f"{right} of {total}" if known else "unknown",
        "commit": git.get("commit", "unknown"),
    }
