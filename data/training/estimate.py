"""How long a whole run will take, told once the first epochs have shown how long one takes."""

from collections.abc import Callable
from typing import Any

from data.base.progress import duration
from data.recipes.recipe import Recipe

_KNOWN_AFTER = 2  # epochs: the first one compiles


def epochs_to_come(recipe: Recipe, done: int) -> int:
    """Epochs after the first `done` of the root's class phase, each over about all images.

    The nodes below the root share its images, so that all of them count as one node. A level
    below those is not counted; few trees have one.

    Example: with 4 and 2 epochs a node and 60 together, after 2: 2 + 2 + 4 + 2 + 60 = 70.
    """
    alone = recipe.root.class_phase.epochs
    if recipe.baseline is None and recipe.backbone != "monolith":  # which have no other node
        alone += recipe.others.class_phase.epochs
        if recipe.exits is None:  # whose nodes keep one output a class
            alone += recipe.root.group_phase.epochs + recipe.others.group_phase.epochs
    joint = recipe.joint.epochs if recipe.joint is not None else 0
    return alone + joint - done


def telling(recipe: Recipe, note: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """A listener to the rows of `metrics.jsonl` that notes the estimate once, or never.

    It is of a tree that is grown from nothing. A resumed run that is past the root's first epochs
    has none: what is left of it is not known.
    """
    after = min(_KNOWN_AFTER, recipe.root.class_phase.epochs)

    def listen(row: dict[str, Any]) -> None:
        if (row["node"], row["phase"], row["epoch"]) != ("root", "class", after):
            return
        left = epochs_to_come(recipe, after)
        if left > 0:
            note(
                f"about {duration(left * row['seconds'])} for the whole run: some {left} epochs "
                "over all images are to come, each taken to be as long as the last one"
            )

    return listen
