"""What the train and evaluate commands need of a framework: all that they differ in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from data.base.errors import UserError, out_of_memory
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.run.results import Costs
from data.tree.hierarchy import Node, Tree

Networks = dict[Node, Any]  # of each node; their type is the framework's own
ImageShape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Grown:
    """A tree and the network of each of its nodes."""

    tree: Tree
    networks: Networks


@dataclass(frozen=True)
class Predictions:
    """`labels`: the predicted class. `confidence`: the product of probabilities on its path."""

    labels: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Framework:
    """A framework's part in the commands.

    Attributes:
      name: `jax` or `torch`.
      device: what it computes on, for the manifest.
      grow: (recipe, splits, classes, run folder, report) to a trained tree.
      load_networks: (run folder, recipe, tree, image shape) to a finished run's networks.
      predict: (recipe, tree, networks, images) to predictions.
      costs: (tree, networks, image shape) to each node's parameters and multiply-adds.
      out_of_memory: whether an error of the others says so.
      settings: what beside the recipe decides a result, for `config.json`.
      exact: a context in which results repeat bit for bit.
      int8: of a run of a quantisation-aware baseline, (recipe, its networks, images) to the
        int8 model's predicted labels and its size in bytes.

    """

    name: str
    device: Callable[[], dict[str, Any]]
    grow: Callable[[Recipe, Splits, int, Path, Callable[..., None]], Grown]
    load_networks: Callable[[Path, Recipe, Tree, ImageShape], Networks]
    predict: Callable[[Recipe, Tree, Networks, UInt8[np.ndarray, "n h w c"]], Predictions]
    costs: Callable[[Tree, Networks, ImageShape], Costs]
    out_of_memory: Callable[[RuntimeError], bool]
    settings: Callable[[], dict[str, Any]]
    int8: Callable[[Recipe, Networks, UInt8[np.ndarray, "n h w c"]], tuple[np.ndarray, int]]
    exact: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def within_memory(framework: Framework, advice: str) -> Iterator[None]:
    """UserError, with the advice, if memory runs out in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = isinstance(error, RuntimeError) and framework.out_of_memory(error)
        if not told and not out_of_memory(error):
            raise
        raise UserError(f"out of memory; {advice}") from error
