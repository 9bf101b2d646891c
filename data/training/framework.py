"""What the train and evaluate commands need of a framework: all that they differ in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from data.base.errors import UserError, out_of_memory
from data.images.on_disk import Images
from data.inference.model import Model, Predictions
from data.run.results import Costs
from data.training.placement import Free
from data.tree.hierarchy import Node

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Framework(Generic[M]):
    """A framework's part in the commands; `M` is its kind of model.

    Attributes:
      name: `jax` or `torch`.
      device: what it computes on, for the manifest.
      free: the memory that is free, the least of all processes'.
      grow: (recipe, splits, classes, run folder, report) to a trained tree; with `init`, a tree to
        start from, that tree trained further.
      load: a finished run's folder to its tree.
      predict: (a tree, images) to predictions.
      scores: (a tree, images) to the scores of every node for all of them, by node.
      costs: a tree to each node's parameters and multiply-adds.
      out_of_memory: whether an error of the others says so.
      settings: what beside the recipe decides a result, for `config.json`.
      exact: a context in which results repeat bit for bit.
      int8: of a run of a quantisation-aware baseline, (its tree, images) to the int8 model's
        predicted labels and its size in bytes.

    """

    name: str
    device: Callable[[], dict[str, Any]]
    free: Callable[[], Free]
    grow: Callable[..., M]
    load: Callable[[Path], M]
    predict: Callable[[M, Images], Predictions]
    scores: Callable[[M, Images], dict[Node, np.ndarray]]
    costs: Callable[[M], Costs]
    out_of_memory: Callable[[RuntimeError], bool]
    settings: Callable[[], dict[str, Any]]
    int8: Callable[[M, Images], tuple[np.ndarray, int]]
    exact: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def within_memory(framework: Framework[Any], advice: str) -> Iterator[None]:
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
