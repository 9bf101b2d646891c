"""Joint training: the whole tree at once, on batches that hold every group in a fixed number.

An image's group is the last network on its true path. In a batch the groups follow each other
in depth-first order, so the images that belong to a node (its own group and those below it)
are neighbours: a node's part of every batch is one slice, known when a program is compiled,
and no node computes an image that is not its own.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from data.base.errors import UserError
from data.base.streams import stream
from data.recipes.recipe import Exits, Recipe
from data.training.batches import Plan
from data.tree.hierarchy import ROOT, Node, Tree


@dataclass(frozen=True)
class Share:
    """A node's part of every batch.

    `start`, `stop`: its rows. `parent`: the place in the list of shares of the node above, -1
    for the root; parents come before their children. `targets[label]`: its right output.
    `weight`: what its loss counts. `above`: in a tree with exits, the output of the node above for
    each of its own.
    """

    name: str
    path: Node
    parent: int
    start: int
    stop: int
    targets: tuple[int, ...]
    weight: float = 1.0
    above: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How the batches of a tree are made up.

    `shares`: of each node, in depth-first order. `counts`: images of each node's own group.
    `distil`: what it counts that a node learns from its children's answers.
    """

    shares: tuple[Share, ...]
    counts: tuple[int, ...]
    distil: float = 0.0

    @property
    def width(self) -> int:
        """Images in a batch."""
        return sum(self.counts)


def layout(
    tree: Tree,
    labels: Int[np.ndarray, " n"],
    batch_size: int,
    balanced: bool = False,
    exits: Exits | None = None,
) -> Layout:
    """Batches of `batch_size` images with the groups' shares of `labels`, but 2 at least.

    With `balanced`, the groups' shares of the classes that `labels` has. `exits`: what losses of
    a tree with exits count. UserError if a batch is too small for that.
    """
    order = tree.nodes
    groups = [own_labels(tree, node) for node in order]
    counted = np.unique(labels) if balanced else labels
    totals = np.array([np.isin(counted, group).sum() for group in groups])
    if len(labels) < batch_size:
        batch_size = len(labels)
    counts = _proportional(totals, batch_size)
    places = np.concatenate([[0], np.cumsum(counts)])
    shares = []
    for place, node in enumerate(order):
        below = [other for other in order if other[: len(node)] == node]
        parent = -1 if node == ROOT else order.index(node[:-1])
        targets = tuple(int(target) for target in tree.targets(node))
        start, stop = int(places[place]), int(places[place + len(below)])
        share = Share(tree.names[node], node, parent, start, stop, targets)
        if exits is not None:
            weight = exits.weight if tree.children(node) else 1.0
            places_above = tree.class_targets(node[:-1])[list(tree.members(node))].tolist()
            share = replace(share, weight=weight, above=() if parent < 0 else tuple(places_above))
        shares.append(share)
    distil = 0.0 if exits is None else exits.distil
    return Layout(tuple(shares), tuple(int(count) for count in counts), distil)


def own_labels(tree: Tree, node: Node) -> tuple[int, ...]:
    """The labels that leave the tree at `node`: those of its outputs that are leaves."""
    return tuple(label for label, path in enumerate(tree.paths) if path[:-1] == node)


def _proportional(totals: Int[np.ndarray, " groups"], size: int) -> Int[np.ndarray, " groups"]:
    """Whole numbers in proportion to `totals` that add up to `size`; 2 or more where it is not 0.

    Largest remainders are rounded up; what small groups get extra the largest ones give.
    """
    exact = totals * size / totals.sum()
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: size - counts.sum()]
    counts[rest] += 1
    least = np.where(totals > 0, 2, 0)
    if least.sum() > size:
        raise UserError(
            f"--batch-size {size} is too small for a tree of {len(totals)} nodes that is trained "
            f"as a whole; give at least {least.sum()}"
        )
    counts = np.maximum(counts, least)
    while counts.sum() > size:
        counts[np.argmax(counts - least)] -= 1
    return counts


def batches(
    recipe: Recipe, stage: str, epoch: int, tree: Tree, plan: Layout, labels: Int[np.ndarray, " n"]
) -> Plan:
    """The batches of an epoch: as many as the images fill.

    A group whose share was rounded up meets some of its images twice, one that was rounded
    down leaves some out, each epoch others. With `recipe.balanced` the classes of a group
    come equally often: images of rare ones return, of frequent ones some are left out.
    """
    steps = max(1, len(labels) // plan.width)
    columns = []
    for share, count in zip(plan.shares, plan.counts, strict=True):
        generator = stream(recipe.seed, stage, epoch, "order", share.name)
        group = own_labels(tree, share.path)
        if recipe.balanced:
            order = _balanced_order(generator, group, labels, steps * count)
        else:
            order = generator.permutation(np.flatnonzero(np.isin(labels, group)))
        columns.append(np.resize(order, (steps, count)))
    index = np.concatenate(columns, axis=1).astype(np.int32)
    return Plan(index, np.ones(index.shape, bool))


def _balanced_order(
    generator: np.random.Generator,
    group: tuple[int, ...],
    labels: Int[np.ndarray, " n"],
    size: int,
) -> Int[np.ndarray, " size"]:
    """`size` images of the classes in `group`, equally many of each up to one, shuffled.

    No image of a class comes again before all of that class have come.
    """
    own = [np.flatnonzero(labels == label) for label in group]
    shuffled = [generator.permutation(rows) for rows in own if len(rows)]
    if not shuffled:
        return np.zeros(0, np.int64)
    each = -(-size // len(shuffled))
    in_turn = np.stack([np.resize(rows, each) for rows in shuffled], axis=1).ravel()[:size]
    return generator.permutation(in_turn)
