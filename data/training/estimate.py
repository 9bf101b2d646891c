"""How long a run will still take, told once its first epochs have shown how long one takes."""

import time
from collections.abc import Callable
from typing import Any

from data.base.progress import duration
from data.recipes.recipe import Recipe
from data.training.stages import stages_of
from data.tree.hierarchy import Tree

_KNOWN_AFTER = 2  # epochs: the first one compiles
_clock = time.monotonic


def epochs_of_stages(recipe: Recipe, given: Tree | None = None) -> list[float]:
    """Epochs of each stage of a run, the first stage first, each over about all images.

    The nodes of a tree that is to be grown share the root's images below it, so that all of them
    count as one node. A level below those is not counted; few trees have one. `given`: a tree that
    is kept instead, each of whose nodes is trained once, on its share of the images.

    Example: with 4 and 2 epochs a node and 60 together it is [4, 2, 4, 2, 60].
    """
    joint = [] if recipe.joint is None else [recipe.joint.epochs]
    if given is not None:
        shares = [len(given.members(stage.node)) for stage in stages_of(given)]
        phases = [stage.settings(recipe).epochs for stage in stages_of(given)]
        weighed = [k * n / len(given.paths) for k, n in zip(phases, shares, strict=True)]
        return [*weighed, *joint]
    rows = [recipe.root]
    if recipe.baseline is None and recipe.backbone != "monolith":  # which have no other node
        rows.append(recipe.others)
    result: list[float] = []
    for row in rows:
        result.append(row.class_phase.epochs)
        if len(rows) > 1 and recipe.exits is None:  # whose nodes keep one output a class
            result.append(row.group_phase.epochs)
    return result + joint


def telling(
    recipe: Recipe, note: Callable[[str], None], given: Tree | None = None
) -> Callable[[dict[str, Any]], None]:
    """A listener to the rows of `metrics.jsonl` that notes the estimate once, or never.

    To be made when the training starts: what the first stage takes besides its epochs, most of all
    to compile, is counted again for each stage to come. `given`: as in `epochs_of_stages`. A
    resumed run that is past the root's first epochs has none: what is left of it is not known.
    """
    first, *others = epochs_of_stages(recipe, given)
    phase = "class" if given is None else next(stages_of(given)).phase
    after = min(_KNOWN_AFTER, round(first))  # the root has all images: a whole number
    began, seen = _clock(), 0

    def listen(row: dict[str, Any]) -> None:
        nonlocal seen
        if (row["node"], row["phase"]) != ("root", phase):
            return
        seen += 1
        left = first - after + sum(others)
        if row["epoch"] != after or left <= 0:
            return
        start = max(0.0, _clock() - began - seen * row["seconds"])
        note(_line(left, left * row["seconds"], sum(each > 0 for each in others), start))

    return listen


def _line(epochs: float, lasting: float, stages: int, start: float) -> str:
    """`lasting`: seconds of the epochs to come; `start`: of the start of each stage to come."""
    number = max(1, round(epochs))
    some = "about an epoch" if number == 1 else f"some {number} epochs"
    counted = f"{some} over all images ({duration(lasting)})"
    if stages:
        many = f"{stages} stage{'s' if stages > 1 else ''}"
        counted += f" and the start of {many} ({duration(stages * start)})"
    return f"about {duration(lasting + stages * start)} to go: {counted}, as long as those so far"
