"""Splits under both protocols, and the named random streams that they are drawn from."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from data.base import streams
from data.base.errors import UserError
from data.images.datasets import Examples
from data.images.splits import split, stratified

SIZES = (100, 37, 5, 62)  # images a class: 10 % is 10, 4 (3.7), 1 (a class is never without), 6


def examples(sizes, first=0):
    """Images that can be told apart: number k holds k in its two bytes."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(len(labels)).permutation(labels).astype(np.int32)
    numbers = np.arange(first, first + len(labels))
    images = np.stack([numbers // 256, numbers % 256], 1).astype(np.uint8).reshape(-1, 1, 1, 2)
    return Examples(images, labels)


def dataset(train=SIZES, test=(30, 20, 10, 40)):
    return SimpleNamespace(
        spec=SimpleNamespace(class_names=tuple(map(str, range(len(train)))), validation=0),
        train=examples(train),
        test=examples(test, first=10_000),
    )


def numbers(part):
    high, low = part.images.reshape(-1, 2).astype(int).T
    return (high * 256 + low).tolist()


DATA = dataset()


def labels_of(part):
    """Each image still has the label it came with."""
    for number, label in zip(numbers(part), part.labels, strict=True):
        whole = DATA.test if number >= 10_000 else DATA.train
        assert whole.labels[number % 10_000] == label
    return np.bincount(part.labels, minlength=4).tolist()


def test_holdout_is_a_tenth_of_each_class():
    parts = split(DATA, "holdout", seed=0)
    assert labels_of(parts.validation) == [10, 4, 1, 6]
    assert labels_of(parts.train) == [90, 33, 4, 56]
    assert labels_of(parts.test) == [30, 20, 10, 40]


def test_holdout_splits_train_without_overlap():
    parts = split(DATA, "holdout", seed=0)
    train, validation = numbers(parts.train), numbers(parts.validation)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == list(range(sum(SIZES)))
    assert numbers(parts.test) == list(range(10_000, 10_100))
    assert train == sorted(train)  # stored order


def test_the_seed_decides():
    first, again, other = (split(DATA, "holdout", seed=seed) for seed in (3, 3, 4))
    assert numbers(first.validation) == numbers(again.validation)
    assert numbers(first.validation) != numbers(other.validation)
    assert labels_of(first.validation) == labels_of(other.validation)


def test_what_is_held_out_is_spread_over_the_class():
    """Not its first images: the mean place of 100 held out of 1000 is 500 +- 5 x 27."""
    places = stratified(np.zeros(1000, np.int32), 0.1, 0, "validation")
    assert len(set(places.tolist())) == 100
    # a mean of 100 draws without replacement from 0..999 has standard deviation 27
    assert abs(places.mean() - 499.5) < 135


def test_published_protocol_selects_on_test():
    parts = split(DATA, "published", seed=0)
    assert numbers(parts.train) == list(range(sum(SIZES)))
    assert numbers(parts.validation) == numbers(parts.test) == list(range(10_000, 10_100))


@pytest.mark.parametrize("protocol", ["holdout", "published"])
def test_limit(protocol):
    parts = split(DATA, protocol, seed=0, limit=14)
    # classes take turns: 3 each and then one more for two of them
    for part in (parts.train, parts.test):
        assert sorted(labels_of(part)) == [3, 3, 4, 4]
    if protocol == "published":
        assert numbers(parts.validation) == numbers(parts.test)
    else:
        # 14 of 10 + 4 + 1 + 6: the class with one image gives it, the one with 4 all
        assert labels_of(parts.validation) in ([4, 4, 1, 5], [5, 4, 1, 4])
    whole = split(DATA, protocol, seed=0)
    for name in ("train", "validation", "test"):
        assert set(numbers(getattr(parts, name))) <= set(numbers(getattr(whole, name)))


def test_limit_is_seeded():
    chosen = [numbers(split(DATA, "holdout", seed=s, limit=20).test) for s in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_limit_above_the_size_changes_nothing():
    for protocol in ("holdout", "published"):
        limited, whole = split(DATA, protocol, 0, 1000), split(DATA, protocol, 0)
        for name in ("train", "validation", "test"):
            assert numbers(getattr(limited, name)) == numbers(getattr(whole, name))


def test_a_limit_that_leaves_classes_out_is_refused():
    with pytest.raises(UserError, match=r"^3 training images leave 1 of 4 classes .* --limit$"):
        split(DATA, "holdout", seed=0, limit=3)
    split(DATA, "holdout", seed=0, limit=4)


# --- streams


def test_a_stream_depends_on_its_names_alone():
    def draw(*names):
        return streams.stream(*names).integers(0, 2**63, 4).tolist()

    assert draw(0, "root", "order", 1) == draw(0, "root", "order", 1)
    different = [
        draw(0),
        draw(1),
        draw(0, "root"),
        draw(0, "sg1"),
        draw(0, "root", "order"),
        draw(0, "root", 1),
        draw(0, "root", 2),
        draw(0, "root", 12),
        draw(0, "root", 1, 2),
    ]
    assert len({tuple(values) for values in different}) == len(different)


def test_a_stream_is_the_same_everywhere():
    """Philox keyed with the first 128 bits of SHA-256: a change would change every run."""
    digest = hashlib.sha256(b"7/root/order/3").digest()
    key = int.from_bytes(digest[:16], "little")
    expected = np.random.Generator(np.random.Philox(key=key)).permutation(1000)
    np.testing.assert_array_equal(streams.stream(7, "root", "order", 3).permutation(1000), expected)
    assert streams.integer(7, "root", "order", 3) == int.from_bytes(digest[16:20], "little")
    assert streams.stream(0, "golden").integers(0, 1000, 5).tolist() == [876, 32, 881, 21, 196]


def test_integers_are_32_bits_wide():
    values = [streams.integer(0, "weights", k) for k in range(200)]
    assert len(set(values)) == 200
    # the largest of 200 uniform numbers is below 2**31 once in 2**200
    assert 2**31 <= max(values) < 2**32
