"""The tree of labels: an immutable value, and pure functions on it.

A `Node` is known by its path: the tuple of child indices from the root, () for the root.
A label's path ends in its leaf. Names (`root`, `sg1`, ...) are those of the published files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from data.base.errors import UserError

Node = tuple[int, ...]
Groups = tuple[tuple[int, ...], ...]

ROOT: Node = ()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Tree:
    """`paths[label]` is the label's path; `names[path]` the name of each node and leaf.

    A root without children (a flat classifier) has the paths (0,), (1,), ... and no
    named leaves. With `exits` a node has an output for each class below it, and an image may end
    at any node; else one for each of its branches, and an image goes on to a leaf.
    """

    paths: tuple[Node, ...]
    names: Mapping[Node, str]
    exits: bool = False

    def __post_init__(self):
        object.__setattr__(self, "names", MappingProxyType(dict(self.names)))
        problem = _problem(self)
        if problem:
            raise UserError(f"not a tree: {problem}")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that hold a network, that is all but the leaves, in depth-first pre-order."""
        return tuple(sorted({path[:depth] for path in self.paths for depth in range(len(path))}))

    @property
    def depth(self) -> int:
        """The number of networks on the longest path; 1 for a flat tree."""
        return max(map(len, self.paths))

    def members(self, node: Node) -> tuple[int, ...]:
        """The labels whose path passes through `node` (or ends there), in order."""
        return tuple(label for label, path in enumerate(self.paths) if path[: len(node)] == node)

    def branches(self, node: Node) -> tuple[tuple[int, ...], ...]:
        """The labels of each branch of `node`, in index order: a single one is a leaf."""
        count = len({self.paths[label][len(node)] for label in self.members(node)})
        return tuple(self.members((*node, branch)) for branch in range(count))

    def columns(self, node: Node) -> tuple[tuple[int, ...], ...]:
        """For each branch of `node`, the places of its labels among all that are below the node."""
        place = {label: index for index, label in enumerate(self.members(node))}
        return tuple(tuple(place[label] for label in labels) for labels in self.branches(node))

    def width(self, node: Node) -> int:
        """The number of outputs of `node`: one a branch; with `exits` one a class."""
        return len(self.members(node) if self.exits else self.branches(node))

    def children(self, node: Node) -> tuple[Node, ...]:
        """The children of `node` that hold a network, in index order."""
        return tuple(child for child in self.nodes if child != ROOT and child[:-1] == node)

    def targets(self, node: Node) -> np.ndarray:
        """For each label the right output of `node`, int32 [classes]; -1 for non-members."""
        if self.exits:
            return self.class_targets(node)
        result = np.full(len(self.paths), -1, np.int32)
        for label in self.members(node):
            result[label] = self.paths[label][len(node)]
        return result

    def class_targets(self, node: Node) -> np.ndarray:
        """As `targets` with one output a class (the class phase): rank by label among members."""
        result = np.full(len(self.paths), -1, np.int32)
        for rank, label in enumerate(self.members(node)):
            result[label] = rank
        return result

    def titles(self, class_names: Sequence[str], most: int = 12) -> dict[str, str]:
        """What to call each node for people, by its name: a supergroup by its classes.

        `most`: classes that are listed; of more the first ones, and how many are left out.

        Example: `{"root": "root", "sg1": "sg1 {cat dog}"}`.
        """
        result = {}
        for node in self.nodes:
            mine = [class_names[label] for label in self.members(node)]
            shown = mine if len(mine) <= most else [*mine[:most], f"+{len(mine) - most}"]
            name = self.names[node]
            result[name] = name if node == ROOT else f"{name} {{{' '.join(shown)}}}"
        return result


def bare(classes: int, exits: bool = False) -> Tree:
    """The tree before any grouping: a root with one output a class."""
    return Tree(tuple((label,) for label in range(classes)), {ROOT: "root"}, exits)


def ancestors(node: Node) -> tuple[Node, ...]:
    """The nodes above `node`, from the root down."""
    return tuple(node[:depth] for depth in range(len(node)))


def name_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers by value: sg2 before sg10. The order in which siblings are grown."""
    parts = re.compile(r"(\d+)")
    return sorted(names, key=lambda name: [(len(p), p) for p in parts.split(name)])


def regroup(tree: Tree, node: Node, groups: Groups) -> Tree:
    """The tree after the members of `node` are put into `groups` of local class indices.

    A group of one class becomes a leaf; a larger one a child with a leaf a class. Names
    follow the release (docs/trunk.md, section 1): labels are visited in order, each new
    path is walked from the root, a slot that exists keeps its name, and a new one is
    `sg{k+1}` for the parent's k children if that is free, else one above the highest.
    """
    labels = tree.members(node)
    if sorted(index for group in groups for index in group) != list(range(len(labels))):
        raise ValueError(f"groups {groups} do not partition {len(labels)} classes")
    paths = list(tree.paths)
    for output, group in enumerate(groups):
        for rank, index in enumerate(sorted(group)):
            paths[labels[index]] = (*node, output) if len(group) == 1 else (*node, output, rank)

    names = dict(tree.names)
    for path in paths:
        for length in range(1, len(path) + 1):
            if path[:length] not in names:
                names[path[:length]] = _fresh_name(names, path[: length - 1])
    used = {path[:length] for path in paths for length in range(len(path) + 1)}
    used_names = {path: name for path, name in names.items() if path in used}
    return Tree(tuple(paths), used_names, tree.exits)


def _fresh_name(names: Mapping[Node, str], parent: Node) -> str:
    siblings = sum(1 for path in names if path and path[:-1] == parent)
    taken = set(names.values())
    candidate = f"sg{siblings + 1}"
    if candidate not in taken:
        return candidate
    return f"sg{max(int(name[2:]) for name in taken if re.fullmatch(r'sg[0-9]+', name)) + 1}"


def to_json(tree: Tree) -> dict[str, Any]:
    """The form stored in `tree.json`."""
    order = sorted(tree.names)
    exits = {"exits": True} if tree.exits else {}
    return exits | {
        "targets": {str(label): list(path) for label, path in enumerate(tree.paths)},
        "nodes": {tree.names[path]: list(path) for path in order},
    }


def from_json(value: Any) -> Tree:
    """Read `to_json`'s form. UserError if it is not a tree."""
    if not isinstance(value, dict) or not {"targets", "nodes"} <= value.keys():
        raise UserError("not a tree: needs the keys targets and nodes")
    targets, named, exits = value["targets"], value["nodes"], value.get("exits", False)
    if type(exits) is not bool:
        raise UserError("not a tree: exits must be true or false")
    if not isinstance(targets, dict) or not isinstance(named, dict):
        raise UserError("not a tree: targets and nodes must be objects")
    paths = _paths_by_label(targets)
    names = {_path(path, f"{name!r:.80}"): name for name, path in named.items()}
    if len(names) != len(named):
        raise UserError("not a tree: two nodes share a path")
    return Tree(paths, names, exits)


def from_published(target_map: Any, models: Any) -> Tree:
    """The tree of a published folder (docs/trunk.md, section 5).

    `target_map`: the content of `target_map.json`, label -> path padded with -1;
    `models`: that of `inputs_to_models.json`, whose keys are in depth-first pre-order.
    """
    if not isinstance(target_map, dict) or not isinstance(models, dict):
        raise UserError("not a tree: target_map.json and inputs_to_models.json must hold objects")
    unpadded = {}
    for label, path in target_map.items():
        if not isinstance(path, list):
            raise UserError(f"not a tree: target map of label {label!r:.80} is no list")
        end = path.index(-1) if -1 in path else len(path)
        if any(step != -1 for step in path[end:]):
            raise UserError(f"not a tree: target map of label {label!r:.80} goes on after its -1")
        unpadded[label] = path[:end]
    paths = _paths_by_label(unpadded)
    everything = sorted({path[:length] for path in paths for length in range(len(path) + 1)})
    flat = all(len(path) == 1 for path in paths)
    order = [ROOT] if flat and len(models) == 1 else everything
    if len(order) != len(models):
        raise UserError(
            f"not a tree: inputs_to_models.json names {len(models)} nodes, the target map has "
            f"{len(order)}"
        )
    return Tree(paths, dict(zip(order, models, strict=True)))


def _paths_by_label(targets: Mapping[str, Any]) -> tuple[Node, ...]:
    if len(targets) > _MOST_CLASSES:
        raise UserError(f"not a tree: more than {_MOST_CLASSES} labels")
    if set(targets) != {str(label) for label in range(len(targets))}:
        raise UserError(f"not a tree: the labels are not 0 to {len(targets) - 1}")
    return tuple(_path(targets[str(label)], f"label {label}") for label in range(len(targets)))


def _path(value: Any, what: str) -> Node:
    good = isinstance(value, list) and len(value) <= 1000
    if not good or not all(type(step) is int and 0 <= step <= _MOST_CLASSES for step in value):
        raise UserError(f"not a tree: the path of {what} must be a list of child indices")
    return tuple(value)


def _problem(tree: Tree) -> str | None:
    """What is wrong with a tree, or None."""
    if len(tree.paths) < 2:
        return f"{len(tree.paths)} classes; at least 2 are needed"
    if len(set(tree.paths)) != len(tree.paths):
        return "two labels share a path"
    inner = {path[:length] for path in tree.paths for length in range(len(path))}
    for label, path in enumerate(tree.paths):
        if path in inner:
            return f"label {label} ends at a node that has children"
    outputs: dict[Node, set[int]] = {}
    for path in sorted(inner | set(tree.paths)):
        if path:
            outputs.setdefault(path[:-1], set()).add(path[-1])
    for node, used in outputs.items():
        if used != set(range(len(used))):
            return f"the children of {list(node)} are not numbered 0 to {len(used) - 1}"
        if len(used) == 1 and not tree.exits:
            return f"node {list(node)} has a single child"
    if tree.names.get(ROOT) != "root":
        return "the root is not named root"
    if len(set(tree.names.values())) != len(tree.names):
        return "two nodes share a name"
    for path, name in tree.names.items():
        if not _NAME.fullmatch(name):
            return f"{name!r:.80} is no node name (letters, digits, - and _)"
        if path not in inner and path not in tree.paths:
            return f"{name} is named but holds no class"
    for path in inner:
        if path not in tree.names:
            return f"node {list(path)} has no name"
    return None


def as_groups(value: Sequence[Sequence[int]]) -> Groups:
    """Groups in canonical order: members sorted, groups by their smallest member."""
    return tuple(sorted(tuple(sorted(group)) for group in value))
