"""What a run is measured by: confusion, accuracy by node, path costs, scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, softmax

from data.tree import hierarchy, metrics

# 5 classes: sg1 holds 0 and 1, sg4 holds 2 and 3, and 4 is a leaf of the root
TREE = hierarchy.regroup(hierarchy.bare(5), hierarchy.ROOT, ((0, 1), (2, 3), (4,)))
LABELS = np.array([0, 0, 0, 1, 2, 2, 3, 4], np.int32)
PREDICTED = np.array([0, 1, 3, 1, 2, 4, 2, 0], np.int32)


def test_confusion_has_true_classes_in_rows():
    expected = [
        [1, 1, 0, 1, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 1],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(metrics.confusion(LABELS, PREDICTED, 5), expected)


def test_confusion_keeps_classes_that_do_not_occur():
    table = metrics.confusion(np.array([0]), np.array([1]), 3)
    np.testing.assert_array_equal(table, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_node_accuracy_by_hand():
    assert TREE.names[(1,)] == "sg4"
    assert metrics.node_accuracy(TREE, LABELS, PREDICTED) == {
        # right child: 0->0, 0->1, 1->1, 2->2, 3->2; wrong: 0->3, 2->4, 4->0
        "root": {"accuracy": 5 / 8, "correct": 5, "total": 8},
        # of the four images of 0 and 1 three arrived here; 0->1 went wrong here
        "sg1": {"accuracy": 2 / 3, "correct": 2, "total": 3},
        # 2->2 right, 3->2 wrong, 2->4 never arrived, and 0->3 does not belong
        "sg4": {"accuracy": 1 / 2, "correct": 1, "total": 2},
    }


def test_a_node_that_no_image_reaches_has_no_accuracy():
    found = metrics.node_accuracy(TREE, np.array([0, 2]), np.array([0, 4]))
    assert found["sg4"] == {"accuracy": None, "correct": 0, "total": 0}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_an_image_is_right_when_every_node_on_its_path_is(pairs):
    labels, predicted = np.array(pairs).T
    found = metrics.node_accuracy(TREE, labels, predicted)
    right = int((labels == predicted).sum())
    leaf = int(((labels == 4) & (predicted == 4)).sum())  # ends at the root
    assert found["sg1"]["correct"] + found["sg4"]["correct"] + leaf == right
    assert found["sg1"]["total"] + found["sg4"]["total"] + leaf == found["root"]["correct"]
    assert found["root"]["total"] == len(pairs)


def test_path_costs_by_hand():
    costs = {
        "root": {"parameters": 100, "multiply_adds": 1000},
        "sg1": {"parameters": 30, "multiply_adds": 7000},
        "sg4": {"parameters": 50, "multiply_adds": 400},
    }
    found = metrics.path_costs(TREE, costs, LABELS)
    assert found["shortest"] == {"parameters": 100, "multiply_adds": 1000}
    assert found["longest"] == {"parameters": 130, "multiply_adds": 8000}
    # 4 images of 0 and 1, 3 of 2 and 3, 1 of 4; whole numbers below 2**53, one division
    assert found["mean"] == {
        "parameters": (4 * 130 + 3 * 150 + 100) / 8,
        "multiply_adds": (4 * 8000 + 3 * 1400 + 1000) / 8,
    }
    flat = metrics.path_costs(hierarchy.bare(3), costs, np.array([0, 1]))
    assert flat["shortest"] == flat["longest"] == flat["mean"] == costs["root"]


scores = st.integers(1, 6).flatmap(
    lambda n: arrays.arrays(np.float32, (7, n), elements=st.floats(-100, 100, width=32))
)


@given(scores)
def test_softmax(values):
    found = metrics.softmax(values)
    assert found.dtype == np.float64
    # exp, a sum of at most 6 and a division in float64: a few roundings of numbers up to 1
    np.testing.assert_allclose(found, softmax(values.astype(np.float64), axis=1), atol=1e-15)


@given(scores, st.data())
def test_score_accuracy(values, data):
    n = values.shape[1]
    targets = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=7, max_size=7)))
    accuracy, loss = metrics.score_accuracy(values, targets)
    exact = values.astype(np.float64)
    assert accuracy == np.mean([row.argmax() == t for row, t in zip(exact, targets, strict=True)])
    rows = log_softmax(exact, axis=1)
    # terms up to 200, so a rounding is 2**-46; some ten of them
    assert loss == pytest.approx(
        -np.mean([r[t] for r, t in zip(rows, targets, strict=True)]), abs=10 * 2**-46
    )


def test_scores_need_not_be_normalised_and_may_be_large():
    accuracy, loss = metrics.score_accuracy(
        np.array([[1000.0, 1000.0], [0.0, 0.0]], np.float32), np.array([0, 1])
    )
    assert accuracy == 0.5  # ties go to the first
    assert loss == np.log(2)
    np.testing.assert_array_equal(metrics.softmax(np.array([[1e4, 0.0, -1e4]])), [[1, 0, 0]])
