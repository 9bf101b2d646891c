"""The tree algebra: invariants under random regroupings, published names, malformed input."""

import copy
import json

import numpy as np
import pytest
from conftest import by_name, group_paths
from hypothesis import given
from hypothesis import strategies as st

from data.base.errors import UserError
from data.tree import hierarchy
from data.tree.hierarchy import ROOT, Tree

# --- strategies


def partitions(count):
    """Ways to put indices 0 to count-1 into at least two groups, in the order grouping gives."""
    return (
        st.lists(st.integers(0, count - 1), min_size=count, max_size=count)
        .map(lambda marks: [[i for i in range(count) if marks[i] == m] for m in set(marks)])
        .map(hierarchy.as_groups)
        .filter(lambda groups: len(groups) > 1)
    )


@st.composite
def histories(draw):
    """(classes, [(node, groups), ...]): a random sequence of regroupings, any node, any order."""
    classes = draw(st.integers(2, 12))
    tree, steps = hierarchy.bare(classes), []
    for _ in range(draw(st.integers(0, 5))):
        node = draw(st.sampled_from(tree.nodes))
        groups = draw(partitions(len(tree.members(node))))
        tree = hierarchy.regroup(tree, node, groups)
        steps.append((node, groups))
    return classes, steps


def replay(history):
    classes, steps = history
    tree = hierarchy.bare(classes)
    for node, groups in steps:
        tree = hierarchy.regroup(tree, node, groups)
    return tree


trees = histories().map(replay)
everyday = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    everyday,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


# --- invariants


@given(trees)
def test_every_label_is_reached_by_following_the_targets(tree):
    inner = set(tree.nodes)
    for label, path in enumerate(tree.paths):
        node = ROOT
        while node in inner:
            node = (*node, int(tree.targets(node)[label]))
            assert len(node) <= len(path)
        assert node == path
    assert tree.depth == max(len(path) for path in tree.paths)


@given(trees)
def test_leaves_hold_one_class_and_nodes_several(tree):
    assert all(tree.members(path) == (i,) for i, path in enumerate(tree.paths))
    assert all(len(tree.members(node)) >= 2 for node in tree.nodes)
    assert tree.members(ROOT) == tuple(range(len(tree.paths)))


@given(trees)
def test_children_are_numbered_from_0_and_partition_the_members(tree):
    leaves = set(tree.paths)
    for node in tree.nodes:
        width = tree.width(node)
        parts = [tree.members((*node, output)) for output in range(width)]
        assert all(parts)
        assert tree.members((*node, width)) == ()
        assert sorted(sum(parts, ())) == list(tree.members(node))
        networks = [(*node, k) for k in range(width) if (*node, k) not in leaves]
        assert list(tree.children(node)) == networks


@given(trees)
def test_targets_agree_with_members_and_paths(tree):
    for node in tree.nodes:
        members = tree.members(node)
        targets, ranks = tree.targets(node), tree.class_targets(node)
        assert targets.dtype == ranks.dtype == np.int32
        assert targets.shape == ranks.shape == (len(tree.paths),)
        for label, path in enumerate(tree.paths):
            belongs = path[: len(node)] == node
            assert (label in members) == belongs
            assert targets[label] == (path[len(node)] if belongs else -1)
            assert ranks[label] == (sum(m < label for m in members) if belongs else -1)
        groups = group_paths(tree, node)
        for output, group in enumerate(groups):
            assert [members[index] for index in group] == np.flatnonzero(targets == output).tolist()


@given(trees)
def test_nodes_come_in_pre_order_after_their_ancestors(tree):
    nodes = tree.nodes

    def visit(node):
        yield node
        for child in tree.children(node):
            yield from visit(child)

    assert list(visit(ROOT)) == list(nodes)
    for node in nodes:
        assert hierarchy.ancestors(node) == tuple(node[:k] for k in range(len(node)))
        assert set(hierarchy.ancestors(node)) < set(nodes)


@given(trees)
def test_names_are_unique_and_belong_to_nodes_with_classes(tree):
    assert len(set(tree.names.values())) == len(tree.names)
    assert all(tree.members(path) for path in tree.names)
    assert set(tree.nodes) <= set(tree.names)
    assert by_name(tree)["root"] == ROOT
    assert {tree.names[path]: path for path in tree.names} == by_name(tree)


@given(trees)
def test_json_round_trip_is_the_identity(tree):
    text = json.dumps(hierarchy.to_json(tree))
    assert hierarchy.from_json(json.loads(text)) == tree


@given(trees, st.integers(0, 2))
def test_published_files_round_trip(tree, more):
    """The target map padded with -1, and names whose order alone tells where they belong."""
    length = tree.depth + 1 + more
    padded = {str(k): [*path, *[-1] * (length - len(path))] for k, path in enumerate(tree.paths)}
    models = {tree.names[path]: [[3, 32, 32], 1] for path in sorted(tree.names)}
    assert hierarchy.from_published(padded, models) == tree


@given(histories().filter(lambda history: history[1]))
def test_regrouping_changes_the_node_alone(history):
    classes, steps = history
    before = replay((classes, steps[:-1]))
    node, groups = steps[-1]
    after = hierarchy.regroup(before, node, groups)
    labels = before.members(node)
    assert after.members(node) == labels
    assert group_paths(after, node) == groups
    for label, path in enumerate(after.paths):
        if label not in labels:
            assert path == before.paths[label]
            assert after.names[path] == before.names[path]
            continue
        output = next(k for k, group in enumerate(groups) if labels.index(label) in group)
        group = sorted(labels[index] for index in groups[output])
        assert path == (*node, output, *([group.index(label)] if len(group) > 1 else []))
        assert all(path[:k] in after.names for k in range(len(path) + 1))
    for path in before.names.keys() & after.names.keys():
        assert after.names[path] == before.names[path]


# --- names: an oracle that follows the words of docs/trunk.md on a live tree of mutable nodes


class Live:
    def __init__(self, name):
        self.name, self.children, self.used = name, {}, True

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()


def live_regroup(root, paths):
    for node in root.all():
        node.used = node is root
    for path in paths:
        node = root
        for step in path:
            if step not in node.children:
                names = {each.name for each in root.all()}
                name = f"sg{len(node.children) + 1}"
                if name in names:
                    name = f"sg{max(int(n[2:]) for n in names - {'root'}) + 1}"
                node.children[step] = Live(name)
            node = node.children[step]
            node.used = True
    for node in list(root.all()):
        node.children = {step: child for step, child in node.children.items() if child.used}


def live_names(node, path=()):
    return {path: node.name} | {
        at: name
        for step, child in node.children.items()
        for at, name in live_names(child, (*path, step)).items()
    }


@given(histories())
def test_names_follow_the_release(history):
    classes, steps = history
    tree, live = hierarchy.bare(classes), Live("root")
    for node, groups in steps:
        tree = hierarchy.regroup(tree, node, groups)
        live_regroup(live, tree.paths)
        assert dict(tree.names) == live_names(live)


CIFAR10_GROUPS = ((0, 8), (1, 9), (2, 4, 7), (3, 5), (6,))
CIFAR10_NAMES = {  # in depth-first pre-order, as in the published inputs_to_models.json
    "root": (),
    "sg1": (0,),
    "sg2": (0, 0),
    "sg13": (0, 1),
    "sg3": (1,),
    "sg4": (1, 0),
    "sg14": (1, 1),
    "sg5": (2,),
    "sg6": (2, 0),
    "sg9": (2, 1),
    "sg12": (2, 2),
    "sg7": (3,),
    "sg8": (3, 0),
    "sg10": (3, 1),
    "sg11": (4,),
}
CIFAR10_PATHS = (
    (0, 0),
    (1, 0),
    (2, 0),
    (3, 0),
    (2, 1),
    (3, 1),
    (4,),
    (2, 2),
    (0, 1),
    (1, 1),
)


def cifar10():
    return hierarchy.regroup(hierarchy.bare(10), ROOT, CIFAR10_GROUPS)


def test_cifar10_names():
    tree = cifar10()
    assert by_name(tree) == CIFAR10_NAMES
    assert tree.paths == CIFAR10_PATHS
    names = [tree.names[node] for node in tree.nodes]
    assert names == ["root", "sg1", "sg3", "sg5", "sg7"]
    assert [tree.width(node) for node in tree.nodes] == [5, 2, 2, 3, 2]


def test_cifar10_published_files(shared):
    folder = shared / "published" / "cifar10-vgg"
    models = json.loads((folder / "model_weights" / "inputs_to_models.json").read_text())
    target_map = json.loads((folder / "target_map.json").read_text())
    assert list(models) == list(CIFAR10_NAMES)
    assert hierarchy.from_published(target_map, models) == cifar10()


def test_svhn_target_map():
    """docs/trunk.md, section 1."""
    groups = ((0, 6, 8, 9), (1,), (2,), (3, 5), (4,), (7,))
    tree = hierarchy.regroup(hierarchy.bare(10), ROOT, groups)
    expected = {
        0: [0, 0],
        1: [1],
        2: [2],
        3: [3, 0],
        4: [4],
        5: [3, 1],
        6: [0, 1],
        7: [5],
        8: [0, 2],
        9: [0, 3],
    }
    assert {label: list(path) for label, path in enumerate(tree.paths)} == expected


def test_a_deeper_regrouping_by_hand():
    first = hierarchy.regroup(hierarchy.bare(6), ROOT, ((0, 1, 2, 3), (4,), (5,)))
    # sg1's first leaf would be sg1 again: taken, so one above the highest, and so on
    assert by_name(first) == {
        "root": (),
        "sg1": (0,),
        "sg2": (0, 0),
        "sg3": (0, 1),
        "sg4": (0, 2),
        "sg5": (0, 3),
        "sg6": (1,),
        "sg7": (2,),
    }
    second = hierarchy.regroup(first, (0,), ((0, 2), (1,), (3,)))
    assert second.paths == ((0, 0, 0), (0, 1), (0, 0, 1), (0, 2), (1,), (2,))
    assert by_name(second) == {
        "root": (),
        "sg1": (0,),
        "sg2": (0, 0),  # an old leaf is now a supergroup and keeps its name
        "sg8": (0, 0, 0),
        "sg9": (0, 0, 1),  # sg1 and sg2 are taken: one above the highest
        "sg3": (0, 1),
        "sg4": (0, 2),  # and sg5 holds no class any more
        "sg6": (1,),
        "sg7": (2,),
    }
    assert second.depth == 3
    assert second.children((0,)) == ((0, 0),)


def test_a_second_regrouping_of_the_root():
    flat = hierarchy.regroup(hierarchy.bare(4), ROOT, ((0, 1), (2, 3)))
    assert by_name(flat) == {
        "root": (),
        "sg1": (0,),
        "sg2": (0, 0),
        "sg3": (0, 1),
        "sg4": (1,),
        "sg5": (1, 0),
        "sg6": (1, 1),
    }
    # the root's outputs 0 and 1 keep their names, (1, 0) and (1, 1) go, 2 is new: k = 3 of
    # 3 children at that moment is sg3, still in the tree as the old leaf (0, 1)
    again = hierarchy.regroup(flat, ROOT, ((0, 3), (1,), (2,)))
    assert by_name(again) == {
        "root": (),
        "sg1": (0,),
        "sg2": (0, 0),
        "sg3": (0, 1),
        "sg4": (1,),
        "sg7": (2,),
    }


def test_regroup_wants_a_partition():
    tree = hierarchy.bare(3)
    for groups in (((0, 1),), ((0, 1), (1, 2)), ((0, 1), (2, 3)), ((0,), (1,), (2,), (2,))):
        with pytest.raises(ValueError, match="do not partition"):
            hierarchy.regroup(tree, ROOT, groups)


def test_names_are_ordered_by_their_numbers():
    names = ["sg10", "root", "sg9", "sg1", "sg2", "sg22"]
    assert hierarchy.name_order(names) == ["sg1", "sg2", "sg9", "sg10", "sg22", "root"]


def test_groups_in_canonical_order():
    assert hierarchy.as_groups([[9, 1], [6], [8, 0], [5, 3]]) == ((0, 8), (1, 9), (3, 5), (6,))


def test_a_tree_cannot_be_changed():
    names = {ROOT: "root"}
    tree = Tree(((0,), (1,)), names)
    names[ROOT] = "other"
    assert tree.names[ROOT] == "root"
    with pytest.raises(TypeError):
        tree.names[ROOT] = "other"


# --- malformed input


def with_targets(**changes):
    """A good tree.json of 4 classes with some paths exchanged."""
    value = hierarchy.to_json(hierarchy.regroup(hierarchy.bare(4), ROOT, ((0, 1), (2,), (3,))))
    value["targets"] |= {key[1:]: path for key, path in changes.items()}
    return value


def with_nodes(drop=(), **changes):
    value = with_targets()
    value["nodes"] = {k: v for k, v in value["nodes"].items() if k not in drop} | changes
    return value


def flat(targets, nodes=None):
    return {"targets": targets, "nodes": {"root": []} if nodes is None else nodes}


MALFORMED = {
    "null": None,
    "true": True,
    "number": 7,
    "nan": float("nan"),
    "text": "targets nodes",
    "list": [],
    "list of keys": ["targets", "nodes"],
    "empty": {},
    "no nodes": {"targets": {"0": [0], "1": [1]}},
    "no targets": {"nodes": {"root": []}},
    "targets is null": flat(None),
    "targets is a list": flat([[0], [1]]),
    "targets is text": flat("01"),
    "nodes is null": {"targets": {"0": [0], "1": [1]}, "nodes": None},
    "nodes is a list": flat({"0": [0], "1": [1]}, ["root"]),
    "no classes": flat({}),
    "one class": flat({"0": [0]}),
    "labels from 1": flat({"1": [0], "2": [1]}),
    "a label missing": flat({"0": [0], "2": [1]}),
    "labels as words": flat({"zero": [0], "one": [1]}),
    "a label written 01": flat({"0": [0], "01": [1]}),
    "a negative label": flat({"-1": [0], "0": [1]}),
    "too many labels": flat({str(label): [label] for label in range(100_001)}),
    "path is null": with_targets(_2=None),
    "path is a number": with_targets(_2=1),
    "path is text": with_targets(_2="1"),
    "path is an object": with_targets(_2={"0": 1}),
    "path of text": with_targets(_2=["1"]),
    "path of floats": with_targets(_2=[1.0]),
    "path of booleans": with_targets(_2=[True]),
    "path of lists": with_targets(_2=[[1]]),
    "path of null": with_targets(_2=[None]),
    "path of nan": with_targets(_2=[float("nan")]),
    "negative step": with_targets(_2=[-1]),
    "huge step": with_targets(_2=[10**30]),
    "endless path": with_targets(_2=[0] * 1001),
    "empty path": with_targets(_2=[]),
    "shared path": with_targets(_2=[2]),
    "a leaf with children": with_targets(_2=[1], _3=[1, 0]),
    "a gap": with_targets(_2=[5]),
    "children from 1": with_targets(_0=[0, 1], _1=[0, 2]),
    "a single child": with_targets(_1=[3]),
    "no root": with_nodes(drop=["root"]),
    "root elsewhere": with_nodes(drop=["root", "sg1"], root=[0], top=[]),
    "a name for nothing": with_nodes(sg9=[7]),
    "below a leaf": with_nodes(sg9=[1, 0]),
    "two names": with_nodes(sg9=[0]),
    "an inner node without a name": with_nodes(drop=["sg1"]),
    "node path is text": with_nodes(sg1="0"),
    "node path is null": with_nodes(sg1=None),
    "node path negative": with_nodes(sg1=[-1]),
    "node path fractional": with_nodes(sg1=[0.5]),
    "an empty name": with_nodes(drop=["sg1"], **{"": [0]}),
    "a name that leaves the folder": with_nodes(drop=["sg1"], **{"../sg1": [0]}),
    "an absolute name": with_nodes(drop=["sg1"], **{"/sg1": [0]}),
    "a dotted name": with_nodes(drop=["sg1"], **{"..": [0]}),
    "a hidden name": with_nodes(drop=["sg1"], **{".sg1": [0]}),
    "a name like a flag": with_nodes(drop=["sg1"], **{"-sg1": [0]}),
    "a name of two lines": with_nodes(drop=["sg1"], **{"sg\n1": [0]}),
    "a bad path under a name of two lines": with_nodes(**{"sg\n1": 5}),
    "a name that ends its line": with_nodes(drop=["sg1"], **{"sg1\n": [0]}),
    "a name with NUL": with_nodes(drop=["sg1"], **{"sg\0": [0]}),
    "a name in Greek": with_nodes(drop=["sg1"], σ=[0]),
    "an endless name": with_nodes(drop=["sg1"], **{"s" * 65: [0]}),
}

GOOD_MAP = {"0": [0, 0, -1], "1": [0, 1, -1], "2": [1, -1, -1]}
GOOD_MODELS = dict.fromkeys(("root", "sg1", "sg2", "sg3", "sg4"))
MALFORMED_PUBLISHED = {
    "both null": (None, None),
    "map is null": (None, GOOD_MODELS),
    "map is a list": (list(GOOD_MAP.values()), GOOD_MODELS),
    "map is text": ("0", GOOD_MODELS),
    "models is null": (GOOD_MAP, None),
    "models is a list": (GOOD_MAP, list(GOOD_MODELS)),
    "empty": ({}, {}),
    "no models": (GOOD_MAP, {}),
    "a model short": (GOOD_MAP, dict.fromkeys(list(GOOD_MODELS)[:-1])),
    "a model over": (GOOD_MAP, GOOD_MODELS | {"sg5": None}),
    "root not first": (GOOD_MAP, dict.fromkeys(("sg1", "root", "sg2", "sg3", "sg4"))),
    "a model's name leaves the folder": (
        GOOD_MAP,
        dict.fromkeys(("root", "../sg1", "sg2", "sg3", "sg4")),
    ),
    "path is null": (GOOD_MAP | {"2": None}, GOOD_MODELS),
    "path is a number": (GOOD_MAP | {"2": 1}, GOOD_MODELS),
    "path is text": (GOOD_MAP | {"2": "1"}, GOOD_MODELS),
    "path of text": (GOOD_MAP | {"2": ["1"]}, GOOD_MODELS),
    "path of floats": (GOOD_MAP | {"2": [1.0, -1]}, GOOD_MODELS),
    "path of lists": (GOOD_MAP | {"2": [[1], -1]}, GOOD_MODELS),
    "path of nan": (GOOD_MAP | {"2": [float("nan")]}, GOOD_MODELS),
    "padding only": (GOOD_MAP | {"2": [-1, -1, -1]}, GOOD_MODELS),
    "padding with -2": (GOOD_MAP | {"2": [1, -2, -2]}, GOOD_MODELS),
    "goes on after padding": (GOOD_MAP | {"2": [1, -1, 0]}, GOOD_MODELS),
    "starts with padding": (GOOD_MAP | {"2": [-1, 1]}, GOOD_MODELS),
    "shared path": (GOOD_MAP | {"2": [0, 1]}, GOOD_MODELS),
    "a gap": (GOOD_MAP | {"2": [2]}, GOOD_MODELS),
    "a leaf with children": (GOOD_MAP | {"2": [0]}, GOOD_MODELS),
    "labels from 1": ({"1": [0, 0], "2": [0, 1], "3": [1]}, GOOD_MODELS),
    "a label of two lines": (GOOD_MAP | {"2\n3": 1}, GOOD_MODELS),
}


def refused(function, *values):
    with pytest.raises(UserError) as caught:
        function(*copy.deepcopy(values))
    text = str(caught.value)
    assert text.startswith("not a tree: ")
    assert len(text.splitlines()) == 1
    assert len(text) < 300


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_trees_are_refused(value):
    refused(hierarchy.from_json, value)


@pytest.mark.parametrize("value", MALFORMED_PUBLISHED.values(), ids=MALFORMED_PUBLISHED.keys())
def test_malformed_published_files_are_refused(value):
    refused(hierarchy.from_published, *value)


@pytest.mark.parametrize(
    ("paths", "names", "why"),
    [
        ([[0, 0], [0, 1], [1], [1]], {"sg1": [0]}, "two labels share a path"),
        ([[0, 0], [0, 1], [1], [0]], {"sg1": [0]}, "label 3 ends at a node that has children"),
        ([[0, 0], [0, 2], [1]], {"sg1": [0]}, "the children of [0] are not numbered 0 to 1"),
        ([[0, 0], [1], [2]], {"sg1": [0]}, "node [0] has a single child"),
        ([[0, 0], [0, 1], [1]], {"sg1": [0], "sg2": [2]}, "sg2 is named but holds no class"),
        ([[0, 0], [0, 1], [1]], {}, "node [0] has no name"),
        ([[0], [1]], {"sg1": [0], "sg2": [0]}, "two nodes share a path"),
        ([[0]], {}, "1 classes; at least 2 are needed"),
    ],
)
def test_a_refusal_says_why(paths, names, why):
    targets = {str(label): path for label, path in enumerate(paths)}
    with pytest.raises(UserError) as caught:
        hierarchy.from_json({"targets": targets, "nodes": {"root": []} | names})
    assert str(caught.value) == f"not a tree: {why}"


def test_what_the_malformed_are_made_from_is_good():
    assert hierarchy.from_json(with_targets()).names[(0,)] == "sg1"
    assert hierarchy.from_json(with_nodes()) == hierarchy.from_json(with_targets())
    assert hierarchy.from_published(GOOD_MAP, GOOD_MODELS).paths == ((0, 0), (0, 1), (1,))


def read_or_refuse(function, *values):
    """Whatever comes in, a tree or one line comes out."""
    message = "one line"
    try:
        tree = function(*values)
    except UserError as error:
        message = str(error)
    else:
        assert hierarchy.from_json(hierarchy.to_json(tree)) == tree
    assert len(message.splitlines()) == 1


def damage(data, value):
    """The value with something else in one of its places (keys included)."""
    if not value or not isinstance(value, dict | list) or data.draw(st.integers(0, 3)) == 0:
        return data.draw(anything | st.integers(-2, 4) | st.lists(st.integers(-2, 4), max_size=3))
    value = copy.copy(value)
    place = data.draw(
        st.sampled_from(list(value) if isinstance(value, dict) else range(len(value)))
    )
    if isinstance(value, dict) and data.draw(st.booleans()):
        value[data.draw(st.text(max_size=5) | st.sampled_from(["0", "1", "sg1", "root"]))] = (
            value.pop(place)
        )
    else:
        value[place] = damage(data, value[place])
    return value


@given(anything)
def test_any_json_gives_a_tree_or_one_line(value):
    read_or_refuse(hierarchy.from_json, value)
    read_or_refuse(hierarchy.from_published, value, value)


@given(st.data(), trees)
def test_a_damaged_tree_gives_a_tree_or_one_line(data, tree):
    read_or_refuse(hierarchy.from_json, damage(data, hierarchy.to_json(tree)))
    target_map = {str(label): [*path, -1] for label, path in enumerate(tree.paths)}
    models = dict.fromkeys(tree.names[path] for path in sorted(tree.names))
    read_or_refuse(hierarchy.from_published, damage(data, target_map), models)
    read_or_refuse(hierarchy.from_published, target_map, damage(data, models))
