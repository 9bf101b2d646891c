"""Images that stay on disk: batches are read ahead of their use, and all bits are the same."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import trunk_jax.train
import trunk_torch_ref.train
from data.base.errors import UserError
from data.base.prefetch import prefetched
from data.images import cache, datasets, room
from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import OnDisk, part
from data.images.splits import split
from tests import test_jax_fit as jax_fit
from trunk_jax.training import feature_cache, fit, windows
from trunk_jax.training.source import Source


def on_disk(source):
    """A source as one whose images are stored in another order, with others between them."""
    images = np.asarray(source.images)
    rng = np.random.default_rng(0)
    rows = rng.permutation(2 * len(images))[: len(images)]
    stored = np.full((2 * len(images), *images.shape[1:]), 99, np.uint8)
    stored[rows] = images
    return dataclasses.replace(source, images=OnDisk(stored, rows))


def test_what_is_indexed_is_read_in_the_order_that_was_asked_for():
    stored = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((2, 3, 1), np.uint8)
    images = OnDisk(stored, np.array([7, 2, 5, 11]))
    assert (images.shape, images.nbytes, len(images)) == ((4, 2, 3, 1), 24, 4)
    assert images[[3, 0, 0]][:, 0, 0, 0].tolist() == [11, 7, 7]
    assert images[np.array([[1, 2], [3, 0]])][..., 0, 0, 0].tolist() == [[2, 5], [11, 7]]
    assert images[1:3][:, 1, 2, 0].tolist() == [2, 5]
    assert images[2][0, 0].tolist() == [5]
    assert np.asarray(images)[:, 0, 0, 0].tolist() == [7, 2, 5, 11]
    assert np.asarray(part(images, 1, 4))[:, 0, 0, 0].tolist() == [2, 5, 11]
    assert as_images(images, (2, 3, 1)) is images
    with pytest.raises(UserError, match=r"the shape \[4, 2, 3, 1\], not"):
        as_images(images, (3, 2, 1))


def test_the_next_item_is_made_while_one_is_used_and_no_more():
    made = []

    def make(item):
        made.append(item)
        if item == 3:
            raise UserError("three")
        return -item

    items = prefetched(make, range(1, 6))
    assert made == []
    assert next(items) == -1
    assert next(items) == -2
    assert made[:2] == [1, 2]
    assert 4 not in made[:3]
    with pytest.raises(UserError, match="three"):
        next(items)
    assert 5 not in made


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("policy", [Augmentation(), Augmentation(crop_padding=2)], ids=str)
def test_a_node_trains_to_the_same_bits_in_jax(steps, policy, monkeypatch):
    """70 images fill 3 batches of 20, so 2 steps a window leave one in the last window."""
    train, check = jax_fit.source(jax_fit.COUNT), jax_fit.source(jax_fit.CHECKED)
    inside, rows, _ = jax_fit.run(train=train, check=check, augment=policy)
    monkeypatch.setattr(windows, "BYTES", steps * 20 * 64)
    outside, others, _ = jax_fit.run(train=on_disk(train), check=on_disk(check), augment=policy)
    assert jax_fit.same(inside.network, outside.network)
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in others]
