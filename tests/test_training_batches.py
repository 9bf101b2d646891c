"""Which images make up each batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.training.batches import Plan, pad, plan


@st.composite
def epochs(draw):
    """(order, member, batch size): a shuffled dataset, or a part of it, and who belongs."""
    count = draw(st.integers(1, 40))
    order = draw(st.permutations(range(count)))[: draw(st.integers(0, count))]
    member = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return np.array(order, np.int64), np.array(member), draw(st.integers(1, 50))


def rows(batches):
    """The images of each batch; padding must be index 0 and come last."""
    assert batches.index.dtype == np.int32
    assert batches.valid.dtype == np.bool_
    assert batches.index.shape == batches.valid.shape
    assert (batches.index[~batches.valid] == 0).all()
    result = []
    for index, valid in zip(batches.index, batches.valid, strict=True):
        assert (np.diff(valid.astype(int)) <= 0).all()
        result.append(index[valid].tolist())
    assert batches.images == sum(map(len, result))
    return result


def chunks(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


@given(epochs())
def test_each_member_is_seen_once_in_order(epoch):
    order, member, size = epoch
    members = [i for i in order.tolist() if member[i]]
    assert rows(plan(order, member, size)) == chunks(members, size)


@given(epochs())
def test_dropping_the_last_partial_batch(epoch):
    order, member, size = epoch
    members = [i for i in order.tolist() if member[i]]
    full = min(size, max(1, len(members)))  # fewer images than a batch: they are the batch
    expected = [batch for batch in chunks(members, full) if len(batch) == full]
    assert rows(plan(order, member, size, drop_last=True)) == expected


@given(epochs(), st.booleans())
def test_subsets_of_batches_of_everything(epoch, drop_last):
    """The release's loop: a batch of the whole dataset, and of it the members."""
    order, member, size = epoch
    full = min(size, max(1, len(order)))
    expected = []
    for batch in chunks(order.tolist(), full):
        if drop_last and len(batch) < full:
            continue
        kept = [i for i in batch if member[i]]
        if kept:
            expected.append(kept)
    assert rows(plan(order, member, size, subset=True, drop_last=drop_last)) == expected


def test_by_hand():
    order = np.array([4, 0, 3, 1, 2, 5])
    member = np.array([True, False, True, True, True, False])
    assert rows(plan(order, member, 3)) == [[4, 0, 3], [2]]
    assert rows(plan(order, member, 3, drop_last=True)) == [[4, 0, 3]]
    assert rows(plan(order, member, 2, subset=True)) == [[4, 0], [3], [2]]
    assert rows(plan(order, member, 4, subset=True)) == [[4, 0, 3], [2]]
    assert rows(plan(order, member, 4, subset=True, drop_last=True)) == [[4, 0, 3]]
    batches = plan(order, member, 3)
    np.testing.assert_array_equal(batches.index, [[4, 0, 3], [2, 0, 0]])
    np.testing.assert_array_equal(batches.valid, [[True] * 3, [True, False, False]])


def test_no_members():
    batches = plan(np.arange(3), np.zeros(3, bool), 2)
    assert rows(batches) == []
    assert batches.images == 0


@given(epochs(), st.integers(0, 3), st.integers(0, 3))
def test_padding_adds_no_image(epoch, more_steps, more_width):
    batches = plan(*epoch)
    steps, width = batches.index.shape
    padded = pad(batches, steps + more_steps, width + more_width)
    assert padded.index.shape == (steps + more_steps, width + more_width)
    assert rows(padded) == rows(batches) + [[]] * more_steps


def test_padding_cannot_shrink():
    batches = Plan(np.zeros((2, 3), np.int32), np.ones((2, 3), bool))
    for steps, width in ((1, 3), (2, 2)):
        with pytest.raises(ValueError, match="negative"):
            pad(batches, steps, width)
