"""The order in which a tree is grown (docs/trunk.md, section 1); the same for every framework."""

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import numpy as np

from data.base.streams import stream
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.training.stages import Stage, row_of
from data.tree import grouping, hierarchy
from data.tree.grouping import splits
from data.tree.hierarchy import ROOT, Groups, Path, Tree

Ahead = Callable[[Sequence[Stage]], None]


def grow(
    classes: int,
    *,
    fit: Callable[[Tree, Path, str], None],
    likelihood: Callable[[Tree, Path], np.ndarray],
    decide: Callable[[Tree, Path, Callable[[], np.ndarray]], Groups],
    finish: Callable[[Tree, Path], None],
    ahead: Ahead | None = None,
) -> Tree:
    """Grow a tree breadth first, siblings in name order.

    Args:
      fit: train a node for the phase `class` (one output a class) or `group`.
      likelihood: the ASL of a node that was trained for its classes.
      decide: the node's groups, from its ASL (called for only if not on record).
      finish: called when a node has its final network and the tree its new shape.
      ahead: if given, the children of a node go on side by side: it is called with their
        stages of one phase before `fit` is called for each. The tree is the same: a stage
        depends on its node's own classes and ancestors alone.

    """
    tree = hierarchy.bare(classes)
    waiting = [[ROOT]]
    while waiting:
        nodes, regrouped = waiting.pop(0), []
        if ahead:
            ahead([Stage(tree, node, "class") for node in nodes])
        for node in nodes:
            fit(tree, node, "class")
            groups = decide(tree, node, lambda tree=tree, node=node: likelihood(tree, node))
            if splits(groups):
                tree = hierarchy.regroup(tree, node, groups)
                regrouped.append(node)
        if ahead and regrouped:
            ahead([Stage(tree, node, "group") for node in regrouped])
        for node in regrouped:
            fit(tree, node, "group")
            paths = {tree.names[child]: child for child in hierarchy.children(tree, node)}
            children = [paths[name] for name in hierarchy.name_order(paths)]
            waiting += [children] if ahead else [[child] for child in children]
        for node in nodes:
            finish(tree, node)
    return tree


def grow_into(
    folder: FilePath,
    recipe: Recipe,
    classes: int,
    *,
    fit: Callable[[Stage], None],
    likelihood: Callable[[Stage], np.ndarray],
    weights: Callable[[Path], dict[str, np.ndarray]],
    joint: Callable[[Stage], None],
    ahead: Ahead | None = None,
) -> Tree:
    """Grow a tree and keep it in a run folder; an ASL that is there already is used again.

    Args:
      fit: train a stage's node.
      likelihood: the ASL of a node after its class stage.
      weights: a trained node's state_dict.
      joint: train all nodes of the grown tree together, if the recipe says so.
      ahead: as in `grow`.

    """

    def decide(tree: Tree, node: Path, take: Callable[[], np.ndarray]) -> Groups:
        if recipe.monolith is not None:
            return (tuple(range(len(hierarchy.members(tree, node)))),)  # one group: no children
        name = tree.names[node]
        recorded = runfolder.read_asl(folder, name, len(hierarchy.members(tree, node)))
        if recorded is not None:
            return recorded[1]
        asl, volatility = take(), row_of(recipe, node).volatility
        draws = stream(recipe.seed, name, "grouping") if recipe.grouping == "sampled" else None
        groups = grouping.group(asl, volatility, draws)
        runfolder.write_asl(folder, name, asl, volatility, groups)
        return groups

    def finish(tree: Tree, node: Path) -> None:
        runfolder.write_tree(folder, tree)
        runfolder.write_weights(folder, tree.names[node], weights(node))

    tree = grow(
        classes,
        fit=lambda tree, node, phase: fit(Stage(tree, node, phase)),
        likelihood=lambda tree, node: likelihood(Stage(tree, node, "class")),
        decide=decide,
        finish=finish,
        ahead=ahead,
    )
    if recipe.joint is not None:
        joint(Stage(tree, ROOT, "joint"))
        for node in hierarchy.nodes(tree):
            runfolder.write_weights(folder, tree.names[node], weights(node))
    return tree
