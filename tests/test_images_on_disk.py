"""Images that stay on disk: batches are read ahead of their use, and all bits are the same."""

import dataclasses
import importlib
import json
import os
import threading

import numpy as np
import pytest
import test_training_fit as jax_fit

from data.base import machine
from data.base.errors import UserError
from data.base.prefetch import prefetched
from data.images import datasets, room
from data.images.arrays import as_images
from data.images.augmentation import Augmentation
from data.images.on_disk import OnDisk, part
from data.images.splits import split
from data.training import placement
from data.training.placement import Free
from data.tree import grouping
from trunk_jax.training import feature_cache, fit, windows


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
    made, second = [], threading.Event()

    def make(item):
        made.append(item)
        if item == 2:
            second.set()
        if item == 4:
            raise UserError("four")
        return -item

    items = prefetched(make, range(1, 7))
    assert made == []
    assert next(items) == -1
    assert second.wait(60)  # without having been asked for
    assert made == [1, 2]
    assert [next(items), next(items)] == [-2, -3]
    with pytest.raises(UserError, match="four"):
        next(items)
    assert 6 not in made


@pytest.mark.parametrize(
    ("steps", "policy"),
    [
        (2, Augmentation(crop_padding=2)),
        # with a window that holds all steps, and nothing to augment
        pytest.param(50, Augmentation(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_node_trains_to_the_same_bits_in_jax(steps, policy, monkeypatch):
    """70 images fill 3 batches of 20, so 2 steps a window leave one in the last window."""
    train, check = jax_fit.source(jax_fit.COUNT), jax_fit.source(jax_fit.CHECKED)
    inside, rows, _ = jax_fit.run(train=train, check=check, augment=policy)
    monkeypatch.setattr(windows, "BYTES", steps * 20 * 64)
    outside, others, _ = jax_fit.run(train=on_disk(train), check=on_disk(check), augment=policy)
    assert jax_fit.same(inside.network, outside.network)
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in others]


def test_kept_inputs_are_computed_from_disk_to_the_same_bits(monkeypatch):
    train = jax_fit.source(300, above=(jax_fit.node(),), keep=(1, 3))
    program = fit.program_of(jax_fit.RECIPE, jax_fit.SHORT, jax_fit.node())

    def kept(source):
        return feature_cache.cached_source(program, source, Augmentation(), 2, lambda note: None)

    inside = kept(train)
    assert len(inside.cached) == 256  # two steps of 128
    monkeypatch.setattr(windows, "BYTES", 1)
    outside = kept(on_disk(train))
    assert np.asarray(inside.cached).tobytes() == np.asarray(outside.cached).tobytes()
    assert outside.images.shape == (0, 8, 8, 1)  # none is needed any more


def test_a_node_trains_to_the_same_bits_in_pytorch():
    import test_training_torch as port

    from trunk_torch_ref.training import pixels

    def trained(train, check):
        result, rows = port._fit(port._node(), train=train, check=check)
        weights = result.network.state_dict()
        times = [row | {"seconds": 0} for row in rows]
        return times, {key: value.numpy().tobytes() for key, value in weights.items()}

    def outside(source):
        images = source.images.numpy().transpose(0, 2, 3, 1)
        found = on_disk(dataclasses.replace(source, images=images)).images
        return dataclasses.replace(source, images=pixels.FromDisk(found, source.targets.device))

    train, check = port._source(70), port._source(50)
    assert trained(train, check) == trained(outside(train), outside(check))


QUICK = ["--image-size", "16", "--budget", "300k", "--epochs", "2", "--volatility", "1.2"]


@pytest.mark.parametrize(
    "package", ["trunk_torch_ref", pytest.param("trunk_jax", marks=pytest.mark.slow)]
)
def test_a_tree_trains_to_the_same_weights_from_disk(package, tmp_path, monkeypatch, capfd):
    """Growth, groups, children, joint training; windows of two steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = (rng.integers(0, 90, (90, 16, 16)) + 50 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "three.npz", images=images, labels=labels)
    monkeypatch.setattr(windows, "BYTES", 1)
    monkeypatch.setattr(
        grouping, "group", lambda asl, *_: ((0, 1), (2,)) if len(asl) == 3 else ((0,), (1,))
    )
    main = importlib.import_module(f"{package}.train").main
    weights, said = {}, {}
    for where in placement.CHOICES[1:]:
        out = tmp_path / where
        words = ["--dataset", str(tmp_path / "three.npz"), *QUICK, "--images-in", where]
        main([*words, "--out", str(out)])
        weights[where] = {f.name: f.read_bytes() for f in (out / "weights").iterdir()}
        said[where] = capfd.readouterr().err
    assert len(weights["memory"]) == 2  # a root and a child
    assert weights["memory"] == weights["disk"]
    summary = [json.loads((tmp_path / w / "summary.json").read_text()) for w in weights]
    assert summary[0] == summary[1]
    assert "images: 0.0 MB in memory" in said["memory"]
    assert "images: 0.0 MB are read from the cache as they are used\n" in said["disk"]


@pytest.mark.parametrize(
    ("free", "on_disk", "words"),
    [
        (Free(None, None), False, "images: 1.0 GB in memory"),
        (Free(6 * 10**9), False, "images: 1.0 GB in memory"),
        (Free(6 * 10**9 - 1), True, "in memory they would take 3.0 GB of the 6.0 GB free"),
        (Free(6 * 10**9, 2 * 10**9), False, "images: 1.0 GB in memory"),
        (Free(6 * 10**9, 2 * 10**9 - 1), True, "much of the device's 2.0 GB free"),
    ],
)
def test_memory_is_taken_where_it_has_room(free, on_disk, words):
    found = placement.place("auto", 10**9, free, "the cache")
    assert (found.on_disk, words in found.line) == (on_disk, True)
    assert placement.place("memory", 10**9, free, "the cache").on_disk is False
    assert placement.place("disk", 10**9, free, "the cache").on_disk is True


def test_siblings_together_need_memory():
    from trunk_jax.training import siblings

    assert siblings.wanted("auto", on_disk=True) is False
    with pytest.raises(UserError, match="add --images-in memory"):
        siblings.wanted("together", on_disk=True)


def test_what_is_decoded_lies_in_a_file_where_memory_is_short(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "available_memory", lambda: 399)
    mapped = room.images(25, (2, 2, 1))  # 100 bytes: more than a quarter
    assert placement.stored_in(mapped) == "the cache"
    assert placement.stored_in(room.images(24, (2, 2, 1))) == "the host's memory"
    mapped[:] = np.arange(25, dtype=np.uint8)[:, None, None, None]
    chosen = room.gathered(mapped, np.array([24, 3, 3, *range(22)]))
    assert placement.stored_in(chosen) == "the cache"
    assert chosen[:4, 0, 0, 0].tolist() == [24, 3, 3, 0]
    assert np.shares_memory(room.gathered(mapped, np.arange(3, 9)), mapped)
    both = room.joined(mapped[:3], chosen)
    assert both[:5, 1, 1, 0].tolist() == [0, 1, 2, 24, 3]
    assert list((tmp_path / "cache").iterdir()) == []  # the files have no names
    if hasattr(os, "posix_fallocate"):

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"0\.0 GB on the disk of .*No space left.*TRUNK_CACHE"):
            room.images(25, (2, 2, 1))


def test_a_dataset_is_mapped_from_the_cache_the_first_time_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    for _ in range(2):
        found = datasets.load("digits")
        assert placement.stored_in(found.train.images) == "the cache"
    parts = split(found, "holdout", 0, on_disk=True)
    plain = split(found, "holdout", 0)
    for name in ("train", "validation", "test"):
        one, other = getattr(parts, name), getattr(plain, name)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
