"""The order in which a tree is grown (docs/trunk.md, section 1); the same for every framework."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.base.progress import working
from data.base.streams import stream
from data.recipes.recipe import AUTO, Recipe
from data.run import runfolder
from data.training.stages import Stage, row_of, stages_of
from data.tree import grouping, hierarchy, selection
from data.tree.grouping import splits
from data.tree.hierarchy import ROOT, Groups, Node, Tree
from data.tree.selection import HeldOut, Selection

FitSiblings = Callable[[Sequence[Stage]], None]


def grow(
    classes: int,
    *,
    fit: Callable[[Tree, Node, str], None],
    likelihood: Callable[[Tree, Node], np.ndarray],
    decide: Callable[[Tree, Node, Callable[[], np.ndarray]], Groups],
    finish: Callable[[Tree, Node], None],
    fit_siblings: FitSiblings | None = None,
    exits: bool = False,
    regroups: Callable[[Groups], bool] = splits,
) -> Tree:
    """Grow a tree breadth first, siblings in name order.

    Args:
      fit: train a node for the phase `class` (one output a class) or `group`; with `exits` the
        former gives it its outputs, and there is no other.
      likelihood: the ASL of a node that was trained for its classes.
      decide: the node's groups, from its ASL (called for only if not on record).
      finish: called when a node has its final network and the tree its new shape.
      fit_siblings: if given, the children of a node go on side by side: it is called with their
        stages of one phase before `fit` is called for each. The tree is the same: a stage
        depends on its node's own classes and ancestors alone.
      exits: nodes score the classes below them (`Tree.exits`).
      regroups: whether groups give a node children.

    """
    tree = hierarchy.bare(classes, exits)
    waiting = [[ROOT]]
    while waiting:
        nodes, regrouped = waiting.pop(0), []
        if fit_siblings:
            fit_siblings([Stage(tree, node, "class") for node in nodes])
        for node in nodes:
            fit(tree, node, "class")
            groups = decide(tree, node, partial(likelihood, tree, node))
            if regroups(groups):
                tree = hierarchy.regroup(tree, node, groups)
                regrouped.append(node)
        if fit_siblings and regrouped and not exits:
            fit_siblings([Stage(tree, node, "group") for node in regrouped])
        for node in regrouped:
            if not exits:
                fit(tree, node, "group")
            paths = {tree.names[child]: child for child in tree.children(node)}
            children = [paths[name] for name in hierarchy.name_order(paths)]
            waiting += [children] if fit_siblings else [[child] for child in children]
        for node in nodes:
            finish(tree, node)
    return tree


def grow_into(
    folder: Path,
    recipe: Recipe,
    classes: int,
    *,
    fit: Callable[[Stage], None],
    likelihood: Callable[[Stage], np.ndarray],
    held_out: Callable[[Stage], HeldOut],
    cost: Callable[[Tree, Node], int],
    weights: Callable[[Node], dict[str, np.ndarray]],
    joint: Callable[[Stage], None],
    report: Callable[..., None],
    program: str,
    fit_siblings: FitSiblings | None = None,
    given: Tree | None = None,
) -> Tree:
    """Grow a tree and keep it in a run folder; an ASL that is there already is used again.

    Args:
      fit: train a stage's node.
      likelihood: the ASL of a node after its class stage.
      held_out: its predictions of validation images then.
      cost: multiply-adds of one image in a node's network of a tree that is thought of.
      weights: a trained node's state_dict.
      joint: train all nodes of the grown tree together, if the recipe says so.
      report: told in notes how groups were chosen, and why a node has none.
      program: the framework's package, for advice.
      fit_siblings: as in `grow`.
      given: a tree that is there already: its nodes are trained once each, and none is regrouped.

    """

    def decide(tree: Tree, node: Node, take: Callable[[], np.ndarray]) -> Groups:
        mine = tree.members(node)
        if recipe.baseline is not None:
            return (tuple(range(len(mine))),)  # one group: no children
        name = tree.names[node]
        recorded = runfolder.read_asl(folder, name, len(mine))
        if recorded is not None:
            return recorded[1]
        asl = take()
        with working(f"{name}: choosing groups"):
            decision = decision_of(
                recipe, tree, node, asl, lambda: held_out(Stage(tree, node, "class")), cost
            )
        for line in _notes(recipe, tree, node, decision, folder, program):
            report(stage=name, note=line)
        record(folder, name, decision)
        return decision.groups

    def take(tree: Tree, node: Node) -> np.ndarray:
        with working(f"{tree.names[node]}: taking the average likelihoods"):
            return likelihood(Stage(tree, node, "class"))

    def finish(tree: Tree, node: Node) -> None:
        runfolder.write_tree(folder, tree)
        runfolder.write_weights(folder, tree.names[node], weights(node))

    if given is None:
        tree = grow(
            classes,
            fit=lambda tree, node, phase: fit(Stage(tree, node, phase)),
            likelihood=take,
            decide=decide,
            finish=finish,
            fit_siblings=fit_siblings,
            **kind_of(recipe),
        )
    else:
        tree = given
        for stage in stages_of(tree):
            fit(stage)
            finish(tree, stage.node)
    if recipe.joint is not None:
        joint(Stage(tree, ROOT, "joint"))
        for node in tree.nodes:
            runfolder.write_weights(folder, tree.names[node], weights(node))
    return tree


def kind_of(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `grow` that follow from a recipe: `exits` and `regroups`."""
    one = recipe.grouping == "one"
    return {"exits": recipe.exits is not None, "regroups": grouping.whole if one else splits}


@dataclass(frozen=True)
class Decision:
    """A node's groups, what they came from, and a volatility that gives them (None: none does).

    `selection`: with the volatility auto, what they were chosen from.
    """

    asl: np.ndarray
    groups: Groups
    volatility: float | None
    selection: Selection | None = None


def decision_of(
    recipe: Recipe,
    tree: Tree,
    node: Node,
    asl: np.ndarray,
    held_out: Callable[[], HeldOut],
    cost: Callable[[Tree, Node], int],
) -> Decision:
    """The groups of a node after its class phase. For the arguments see `grow_into`."""
    given = row_of(recipe, node).volatility
    if recipe.grouping == "one":  # the root's child has all classes, and no child of its own
        classes = tuple(range(len(asl)))
        return Decision(asl, (classes,) if node == ROOT else tuple((k,) for k in classes), None)
    if given != AUTO:
        sampled = recipe.grouping == "sampled"
        draws = stream(recipe.seed, tree.names[node], "grouping") if sampled else None
        return Decision(asl, grouping.group(asl, given, draws), given)
    known = remembered(recipe, cost)
    found = selection.select(
        asl,
        held_out(),
        lambda groups, shares: mean_cost(
            hierarchy.regroup(tree, node, groups), node, shares, known
        ),
        is_root=node == ROOT,
        balanced=recipe.balanced,
        budget=recipe.budget,
    )
    chosen = found.chosen.candidate if found.chosen else selection.candidates(asl)[0]
    return Decision(asl, chosen.groups, selection.volatility_of(chosen, asl), found)


def mean_cost(
    tree: Tree, node: Node, shares: Sequence[float], cost: Callable[[Tree, Node], int]
) -> float:
    """Multiply-adds of the mean path of a node's images, from the root to its children.

    `shares`: of those images, by the node's classes; they add up to 1.
    """
    above = sum(cost(tree, each) for each in (*hierarchy.ancestors(node), node))
    mine = dict(zip(tree.members(node), shares, strict=True))
    below = (
        cost(tree, child) * sum(mine[label] for label in tree.members(child))
        for child in tree.children(node)
    )
    return above + sum(below)


def record(folder: Path, name: str, decision: Decision) -> None:
    """Store a node's decision in its run's folder."""
    found = selection.to_json(decision.selection) if decision.selection else None
    runfolder.write_asl(folder, name, decision.asl, decision.volatility, decision.groups, found)


def class_names(recipe: Recipe, labels: Sequence[int]) -> list[str]:
    """Labels in words."""
    return [recipe.spec.class_names[label] for label in labels]


def remembered(recipe: Recipe, cost: Callable[[Tree, Node], int]) -> Callable[[Tree, Node], int]:
    """`cost`, computed once for nodes that have one network, number of outputs and place."""
    known: dict[Any, int] = {}

    def of(tree: Tree, node: Node) -> int:
        words = recipe.network(tree.names[node])
        key = (words, tree.width(node), node[:-1])
        if key not in known:
            known[key] = cost(tree, node)
        return known[key]

    return of


def _notes(
    recipe: Recipe, tree: Tree, node: Node, decision: Decision, folder: Path, program: str
) -> list[str]:
    """What is said of a node's decision: what it was chosen from, or why there are no groups."""
    if decision.selection is None:
        return _why_flat(recipe, node, decision, folder, program)
    if node != ROOT and not decision.selection.estimates:
        return []  # two classes: nothing to choose
    names = class_names(recipe, tree.members(node))
    return selection.lines(decision.selection, names)


def _why_flat(
    recipe: Recipe, node: Node, decision: Decision, folder: Path, program: str
) -> list[str]:
    """A line if a given volatility has left a node without groups, and what to do about it."""
    single = recipe.backbone == "monolith"  # which is not meant to have children
    if single or decision.volatility is None or splits(decision.groups) or len(decision.asl) < 3:
        return []
    why, other = selection.why_flat(decision.asl, decision.groups, decision.volatility)
    value = f"{other:.4g}" if other is not None and node == ROOT else AUTO
    advice = f"go on with: python -m {program}.train --from {folder} --volatility {value} --out NEW"
    return [f"no groups: {why}; {advice}"]
