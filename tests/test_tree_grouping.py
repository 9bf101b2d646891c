"""ASL, grouping, growth: against naive loops, scipy, and the published CIFAR-10 tree."""

import json

import numpy as np
import pytest
from conftest import by_name
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit
from test_tree_hierarchy import CIFAR10_GROUPS, CIFAR10_NAMES, CIFAR10_PATHS

from data.training import growth
from data.tree import grouping, hierarchy
from data.tree.grouping import group

VOLATILITIES = {"root": 0.88, "sg1": 1.02, "sg3": 1.02, "sg5": 1.02, "sg7": 1.02}

squares = st.integers(2, 8).flatmap(
    lambda n: arrays.arrays(np.float64, (n, n), elements=st.floats(0, 1))
)


# --- the published tree


@pytest.fixture(scope="module")
def published(shared):
    """By node: the published ASL, float64 [n, n], and the groups made from it."""
    import torch  # only to read the published tensors

    folder = shared / "published" / "cifar10-vgg"

    def read(node):
        file = folder / "model_softmax" / f"{node}_avg_softmax.pt"
        asl = torch.load(file, weights_only=True, map_location="cpu").numpy()
        groups = json.loads((folder / f"{node}_supergroups.json").read_text())
        numbered = [groups[f"Group {k + 1}"] for k in range(len(groups))]
        return asl.astype(np.float64), tuple(map(tuple, numbered))

    return {node: read(node) for node in VOLATILITIES}


@pytest.mark.parametrize("node", VOLATILITIES)
@pytest.mark.parametrize("how", ["threshold", "sampled"])
def test_published_groups(published, node, how):
    asl, expected = published[node]
    draws = np.random.default_rng(0) if how == "sampled" else None
    groups = group(asl, VOLATILITIES[node], draws)
    assert groups == expected
    assert grouping.splits(groups) == (node == "root")


def test_the_published_tensors_give_the_published_tree(published):
    """Grown as a run grows it: the root is regrouped, its children keep their leaves."""
    regrouped = []

    def decide(tree, node, take):
        name = tree.names[node]
        asl, _ = published[name]
        assert len(asl) == len(tree.members(node))
        return group(asl, VOLATILITIES[name])

    tree = growth.grow(
        10,
        fit=lambda tree, node, phase: phase == "group" and regrouped.append(tree.names[node]),
        likelihood=lambda tree, node: pytest.fail("taken"),
        decide=decide,
        finish=lambda tree, node: None,
    )
    assert regrouped == ["root"]
    assert by_name(tree) == CIFAR10_NAMES
    assert tree.paths == CIFAR10_PATHS


def test_the_root_is_grouped_by_its_own_volatility(published):
    """With the children's 1.02 the root falls apart further: the volatility does matter."""
    asl, expected = published["root"]
    assert expected == CIFAR10_GROUPS
    assert len(group(asl, 1.02)) > len(expected)


# --- membership and the threshold


@given(squares, st.floats(0.05, 3))
def test_membership_is_the_sigmoid(asl, volatility):
    n = len(asl)
    expected = expit((asl - volatility / n) * 10 * n * volatility)
    # both are a few roundings of numbers up to 1
    np.testing.assert_allclose(grouping.membership(asl, volatility), expected, atol=1e-15, rtol=0)


def test_membership_by_hand():
    asl = np.array([[0.5, 0.6], [0.1, 0.5]])
    # n = 2, v = 1: sigmoid(20 (A - 1/2)) = sigmoid(0), sigmoid(2), sigmoid(-8)
    expected = [[0.5, 0.8807970779778823], [3.3535013046647811e-4, 0.5]]
    # 0.6 - 0.5 is off by one rounding, times 20, times the sigmoid's slope 0.1
    np.testing.assert_allclose(grouping.membership(asl, 1.0), expected, atol=1e-15, rtol=0)


def test_membership_far_from_the_threshold_does_not_overflow():
    asl = np.array([[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(grouping.membership(asl, 100.0), [[0, 0], [0, 0]])
    assert grouping.membership(asl, 1e-300)[0, 1] == 0.5


@given(squares, st.floats(0.05, 3))
def test_groups_are_the_closure_of_likeness(asl, volatility):
    n = len(asl)
    parent = list(range(n))  # union-find, the smaller root wins

    def find(i):
        return i if parent[i] == i else find(parent[i])

    for i in range(n):
        for j in range(i + 1, n):
            if asl[i, j] > volatility / n:
                low, high = sorted((find(i), find(j)))
                parent[high] = low
    expected = {}
    for i in range(n):
        expected.setdefault(find(i), []).append(i)
    assert group(asl, volatility) == tuple(tuple(expected[k]) for k in sorted(expected))


def alike(n, *pairs):
    asl = np.zeros((n, n))
    for i, j in pairs:
        asl[i, j] = 1.0
    return asl


def test_likeness_is_transitive():
    assert group(alike(5, (0, 3), (3, 4)), 1.0) == ((0, 3, 4), (1,), (2,))
    # through a larger index: 0-4 and 2-4 put 0 and 2 together
    assert group(alike(5, (0, 4), (2, 4), (1, 3)), 1.0) == ((0, 2, 4), (1, 3))


def test_only_the_upper_triangle_counts():
    assert group(alike(3, (1, 0), (2, 0), (2, 1)), 1.0) == ((0,), (1,), (2,))
    assert group(alike(3, (0, 0), (1, 1), (2, 2)), 1.0) == ((0,), (1,), (2,))
    assert group(alike(3, (0, 2)), 1.0) == ((0, 2), (1,))


def test_the_threshold_is_strict():
    asl = np.zeros((4, 4))
    asl[0, 1] = 0.25  # exactly v/n
    asl[2, 3] = np.nextafter(0.25, 1)
    assert group(asl, 1.0) == ((0,), (1,), (2, 3))


def test_an_asl_in_float32_is_compared_in_float64():
    asl = np.zeros((10, 10), np.float32)
    asl[0, 1] = 0.07  # the nearest float32 is above 0.07
    assert float(asl[0, 1]) > 0.07
    assert group(asl, 0.7)[0] == (0, 1)


@given(squares, st.floats(0.1, 3), st.integers(0, 2**32))
def test_draws_decide_as_the_threshold_wherever_they_are_sure(asl, volatility, seed):
    """Sure: a membership of at least 0.52 or at most 0.48, where each value is moved.

    That is 12 standard deviations of 100,000 draws (0.0016) from 1/2.
    """
    n = len(asl)
    away = 0.0801 / (10 * n * volatility)  # logit(0.52) = 0.08004
    edge = volatility / n
    asl = np.where(asl > edge, np.maximum(asl, edge + away), np.minimum(asl, edge - away))
    assert group(asl, volatility, np.random.default_rng(seed)) == group(asl, volatility)


def test_draws_are_fair_at_the_threshold():
    """Membership 1/2 is alike in half of the cases: 200 +- 5 standard deviations of 10."""
    asl = np.full((2, 2), 0.5)
    generator = np.random.default_rng(0)
    together = sum(len(group(asl, 1.0, generator)) == 1 for _ in range(400))
    assert 150 <= together <= 250


def test_splits():
    assert not grouping.splits(((0, 1, 2),))
    assert not grouping.splits(((0,), (1,), (2,)))
    assert grouping.splits(((0, 1), (2,)))
    assert not grouping.splits(((0,), (1,)))


# --- ASL


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            arrays.arrays(np.float32, (20, n), elements=st.floats(0, 1, width=32)),
            arrays.arrays(np.int32, 20, elements=st.integers(-1, n - 1)),
        )
    )
)
def test_average_softmax_is_the_mean_by_true_class(case):
    probabilities, targets = case
    n = probabilities.shape[1]
    expected = np.zeros((n, n))
    for i in range(n):
        rows = [row for row, target in zip(probabilities, targets, strict=True) if target == i]
        for j in range(n):
            for row in rows:
                expected[i, j] += float(row[j]) / len(rows)
    asl = grouping.average_softmax(probabilities, targets)
    assert asl.dtype == np.float64
    # at most 20 additions and as many divisions of numbers up to 1: 40 roundings
    np.testing.assert_allclose(asl, expected, atol=40 * 2**-53, rtol=0)


def test_average_softmax_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0.5, 0.5], [0.25, 0.75, 0]])
    asl = grouping.average_softmax(probabilities, np.array([0, 0, 2, -1]))
    np.testing.assert_array_equal(asl, [[0.75, 0.125, 0.125], [0, 0, 0], [0, 0.5, 0.5]])


def test_average_softmax_sums_in_float64():
    """Ten million float32 summed one by one would stop growing at 2**24 * 0.1."""
    probabilities = np.full((200_000, 1), 0.1, np.float32)
    asl = grouping.average_softmax(probabilities, np.zeros(200_000, np.int32))
    # the sum of 200,000 numbers in float64, pairwise or not, is good to 2e5 * 2**-53
    assert abs(asl[0, 0] - float(np.float32(0.1))) < 1e-11


# --- growth


def test_a_tree_is_grown_breadth_first_with_siblings_in_name_order():
    groups = {
        "root": ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9), (10,), (11,)),
        "sg1": ((0, 1), (2, 3)),  # both become nodes
        "sg6": ((0,), (1, 2)),  # one leaf, one node
        "sg10": ((0, 1, 2),),  # one group: keeps its leaves
    }
    done = []

    def decide(tree, node, take):
        name = tree.names[node]
        asl = take()
        assert asl == f"asl of {name}"
        done.append(f"decide {name}")
        count = len(tree.members(node))
        return groups.get(name, tuple((k,) for k in range(count)))

    def fit(tree, node, phase):
        outputs = len(tree.members(node))
        if phase == "group":
            outputs = tree.width(node)
        done.append(f"{phase} {tree.names[node]} {outputs}")

    def finish(tree, node):
        done.append(f"finish {tree.names[node]} {tree.width(node)}")

    tree = growth.grow(
        12,
        fit=fit,
        likelihood=lambda tree, node: f"asl of {tree.names[node]}",
        decide=decide,
        finish=finish,
    )
    assert done == [
        "class root 12",
        "decide root",
        "group root 5",
        "finish root 5",
        "class sg1 4",
        "decide sg1",
        "group sg1 2",
        "finish sg1 2",
        "class sg6 3",
        "decide sg6",
        "group sg6 2",
        "finish sg6 2",
        "class sg10 3",
        "decide sg10",
        "finish sg10 3",  # after sg6: numbers by value
        "class sg2 2",
        "decide sg2",
        "finish sg2 2",
        "class sg3 2",
        "decide sg3",
        "finish sg3 2",
        "class sg8 2",
        "decide sg8",
        "finish sg8 2",
    ]
    assert tree.paths == (
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, 0),
        (1, 1, 0),
        (1, 1, 1),
        (2, 0),
        (2, 1),
        (2, 2),
        (3,),
        (4,),
    )


def test_a_likelihood_on_record_is_not_taken_again():
    def likelihood(tree, node):
        raise AssertionError("taken")

    tree = growth.grow(
        2,
        fit=lambda tree, node, phase: None,
        likelihood=likelihood,
        decide=lambda tree, node, take: ((0, 1),),
        finish=lambda tree, node: None,
    )
    assert tree == hierarchy.bare(2)
