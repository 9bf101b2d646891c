"""Training one node: batches, the release's faults, the best epoch, repeatability, ASL."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.base import streams
from data.base.errors import UserError
from data.images.augmentation import Augmentation
from data.recipes import recipe
from data.recipes.recipe import Phase
from data.training import epochs
from data.training.epochs import Position
from data.tree import metrics
from trunk_jax import nodes
from trunk_jax.layers.basic import Mode
from trunk_jax.machine import memory
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import apply, features, split
from trunk_jax.training import fit, grow

COUNT, CHECKED = 70, 50
RECIPE = dataclasses.replace(
    recipe.load("corrected", "digits", "vgg"), batch_size=20, eval_batch_size=20
)
SHORT = Phase(epochs=2, lr=1e-2, schedule="cosine")


def source(count, above=(), keep=(0, 1, 2, 3)):
    """Images whose class is where they are bright."""
    generator = np.random.default_rng(count)
    labels = np.arange(count) % 4
    images = generator.integers(0, 60, (count, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    targets = [keep.index(label) if label in keep else -1 for label in labels]
    return fit.Source(jnp.asarray(images), jnp.asarray(targets, jnp.int32), above)


def node(shape=(8, 8, 1), outputs=4, backbone="vgg"):
    name = "root" if shape[2] == 1 else "sg1"
    rng = np.random.default_rng(0)
    return split(nodes.build("digits", backbone, name, shape, outputs, rng=rng))


def run(network=None, *faults, train=None, check=None, phase=SHORT, restored=None, **changes):
    """(result, rows, saved) of a stage; saved: (network, best, position) after each epoch."""
    rows, saved = [], []
    result = fit.fit(
        dataclasses.replace(RECIPE, faults=faults, **changes),
        phase,
        "root/class",
        network or node(),
        train or source(COUNT),
        check or source(CHECKED),
        restore=lambda state, best: restored,
        save=lambda state, best, position, final: saved.append(
            (jax.tree.map(jnp.copy, state), best, position, final)
        ),
        report=lambda row=None, **_: rows.append(row) if row else None,
    )
    return result, rows, saved


def same(one, other):
    one, other = to_state_dict(one), to_state_dict(other)
    return all(one[key].tobytes() == other[key].tobytes() for key in one)


@partial(jax.jit, static_argnums=0)
def one_step(program, state, x, targets, valid, key, rate):
    return fit.train_step(program, state, x, targets, Mode(True, valid, key), jnp.asarray(rate))


def updates(network):
    return int(to_state_dict(network)["features.1.num_batches_tracked"])


def test_fit_learns_keeps_the_best_epoch_and_repeats_bit_for_bit():
    result, rows, saved = run()
    accuracies = [row["validation_accuracy"] for row in rows]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([1e-2, 5e-3])
    assert result.accuracy == max(accuracies) > 0.5  # chance is 0.25
    assert accuracies[result.epoch - 1] == result.accuracy
    assert same(result.network, saved[result.epoch - 1][0].network)
    assert [final for *_, final in saved] == [False, True]
    # 70 images fill 3 batches of 20, and validation must not touch the statistics
    assert [updates(state.network) for state, *_ in saved] == [3, 6]
    again, *_ = run()
    assert same(again.network, result.network)
    other, *_ = run(seed=1)
    assert not same(other.network, result.network)
    # going on after the first epoch is as if it had not been interrupted
    state, best, position, _ = saved[0]
    resumed, more, _ = run(restored=(state, best, position))
    assert same(resumed.network, result.network)
    assert [row | {"seconds": 0} for row in more] == [rows[1] | {"seconds": 0}]


def test_the_reported_numbers_are_those_of_the_steps():
    """Each batch once, in the epoch's order: loss and accuracy summed step by step."""
    phase = dataclasses.replace(SHORT, epochs=1)
    _, rows, saved = run(phase=phase)
    train, program = source(COUNT), fit.program_of(RECIPE, phase, node())
    state = fit.State(node(), fit.optimizer(phase).init(node().params))
    order = streams.stream(RECIPE.seed, "root/class", 1, "order").permutation(COUNT)
    key = jax.random.key(streams.integer(RECIPE.seed, "root/class", 1, "dropout"))
    losses, right = [], 0
    for step in range(3):
        index = order[20 * step : 20 * step + 20]
        x = fit.inputs(program, train, Augmentation(), index, {})
        state, loss, correct = one_step(
            program, state, x, train.targets[index], None, jax.random.fold_in(key, step), phase.lr
        )
        losses.append(float(loss))
        right += int(correct)
    # other programs, other roundings: 3 steps of 1e-2 at most on weights of size 1
    assert rows[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert rows[0]["train_accuracy"] == right / 60
    found, expected = to_state_dict(saved[0][0].network), to_state_dict(state.network)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=2e-3, err_msg=key)


@pytest.mark.parametrize(("ties", "kept"), [("first", [1, 1, 3, 3, 3]), ("last", [1, 2, 3, 4, 4])])
def test_the_best_epoch_and_which_of_equals(ties, kept, monkeypatch):
    scores = iter([0.5, 0.5, 0.7, 0.7, 0.2])
    monkeypatch.setattr(metrics, "score_accuracy", lambda *_: (next(scores), 1.0))
    phase = dataclasses.replace(SHORT, epochs=5)
    result, _, saved = run(phase=phase, train=source(20), check=source(8), ties=ties)
    assert (result.epoch, result.accuracy) == (kept[-1], 0.7)
    assert [position.best_epoch for *_, position, _ in saved] == kept
    for epoch, (state, *_) in enumerate(saved, 1):
        assert same(result.network, state.network) == (epoch == kept[-1])


def test_the_first_epoch_is_kept_even_with_nothing_right():
    position = Position().after(0.0, "first")
    assert position == Position(1, 1, 0.0)
    assert position.improved
    assert position.after(0.0, "first") == Position(2, 1, 0.0)
    assert not position.after(0.0, "first").improved


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"epoch": 1},
        {"epoch": 1, "best_epoch": 2, "best_accuracy": 0.5},
        {"epoch": 1, "best_epoch": 0, "best_accuracy": 0.5},
        {"epoch": "1", "best_epoch": 1, "best_accuracy": 0.5},
        {"epoch": 1, "best_epoch": 1, "best_accuracy": float("nan")},
        {"epoch": 1, "best_epoch": 1, "best_accuracy": 2.0},
        {"epoch": 1, "best_epoch": 1, "best_accuracy": 0.5, "more": 1},
    ],
    ids=str,
)
def test_a_foreign_position_is_refused(value):
    with pytest.raises(ValueError, match="its position"):
        epochs.position_from_json(value)


@pytest.mark.parametrize(
    ("faults", "checks"),
    [(("train_mode_validation",), 3), (("train_mode_validation", "drop_last_validation"), 2)],
)
def test_validation_in_train_mode_moves_the_statistics(faults, checks):
    _, rows, saved = run(None, *faults)
    assert [updates(state.network) for state, *_ in saved] == [3 + checks, 2 * (3 + checks)]
    _, plain, _ = run()
    assert rows[0]["train_loss"] == plain[0]["train_loss"]
    assert rows[0]["validation_loss"] != plain[0]["validation_loss"]
    assert rows[1]["train_loss"] == plain[1]["train_loss"]  # training never looks at them


def test_subset_batches_vary_in_size_and_are_padded_to_one_shape():
    targets = np.asarray(source(COUNT, keep=(1, 2)).targets)
    faulty = dataclasses.replace(RECIPE, faults=("subset_batches",))
    full = epochs.training_batches(RECIPE, "sg1/class", 3, targets)
    plans = fit.one_shape(epochs.training_batches(faulty, "sg1/class", 3, targets))
    assert [batches.index.shape for batches in full] == [(1, 20)] * 3  # 35 members
    assert len({batches.index.shape for batches in plans}) == 1
    sizes = np.array([batches.valid.sum(1) for batches in plans])
    assert sizes.shape == (3, 3)  # 3 batches of 20 of all images, whatever is the node's in each
    assert len(np.unique(sizes)) > 1
    assert sizes.max() < 20
    for batches in plans:
        chosen = batches.index[batches.valid]
        assert (targets[chosen] >= 0).all()
        assert len(set(chosen.tolist())) == len(chosen)
    child = {"train": source(COUNT, keep=(1, 2)), "check": source(CHECKED, keep=(1, 2))}
    result, rows, saved = run(node(outputs=2), "subset_batches", **child)
    assert updates(saved[0][0].network) == 3
    assert rows[0]["train_accuracy"] * sizes[0].sum() > 0
    assert result.accuracy > 0.6  # of two classes


def test_a_padded_step_is_the_step_of_its_images():
    """In float64, so that only a fault can show: the two batches have other shapes."""
    generator = np.random.default_rng(0)
    x, targets = generator.normal(size=(8, 8, 8, 1)), np.arange(8) % 4
    valid = np.array([True] * 5 + [False] * 3)
    x[~valid], phase = 1e3, Phase(1, "sgd", lr=0.1, momentum=0.5, weight_decay=0.01)
    with jax.enable_x64(True):
        module = nodes.build(
            "svhn", "vgg", "root", (8, 8, 1), 4, rng=np.random.default_rng(0)
        )  # it has no dropout
        network = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64) if a.dtype == jnp.float32 else a, split(module)
        )
        program = fit.program_of(RECIPE, phase, network)
        state = fit.State(network, fit.optimizer(phase).init(network.params))
        padded, loss, right = one_step(program, state, x, targets, valid, None, 0.1)
        alone, expected_loss, expected_right = one_step(
            program, state, x[valid], targets[valid], None, None, 0.1
        )
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-13)
        assert int(right) == int(expected_right)
        for found, wanted in zip(jax.tree.leaves(padded), jax.tree.leaves(alone), strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
        assert not np.array_equal(jax.tree.leaves(padded)[0], jax.tree.leaves(state)[0])


def test_ancestors_are_frozen_and_in_eval_mode():
    above = node()
    before = to_state_dict(above)
    train = source(COUNT, above=(above,))
    program = fit.program_of(RECIPE, SHORT, node())
    x = fit.inputs(program, train, Augmentation(), np.array([3, 5]), {})
    images = jnp.asarray(train.images[np.array([3, 5])], jnp.float32) / 255
    np.testing.assert_allclose(x, features(above, images), rtol=1e-6, atol=1e-7)  # one rounding
    result, _, _ = run(node(x.shape[1:]), train=train, check=source(CHECKED, above=(above,)))
    after = to_state_dict(above)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert result.accuracy > 0.5


def test_dropout_masks_follow_the_seed_of_the_epoch(monkeypatch):
    seeds = []
    integer = streams.integer
    monkeypatch.setattr(epochs, "integer", lambda *names: seeds.append(names) or integer(*names))
    run(seed=5)
    assert seeds[::2] == [(5, "root/class", epoch, "dropout") for epoch in (1, 2)]


@pytest.mark.parametrize("pace", [0.001, 0.3, 100.0], ids=["fast", "middling", "slow"])
def test_slices_cover_each_step_once(pace, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(fit.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for steps in (1, 2, 7, 1000):
        covered = []
        for start, stop in fit.slices(steps):
            assert start < stop
            covered += range(start, stop)
            clock[0] += pace * (stop - start)
        assert covered == list(range(steps))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert list(fit.slices(1000)) == [(0, 1000)]


def test_slices_grow_until_a_call_takes_half_a_second(monkeypatch):
    clock, sizes = [0.0], []
    monkeypatch.setattr(fit.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for start, stop in fit.slices(2000):
        sizes.append(stop - start)
        clock[0] += 0.01 * (stop - start)
    assert sizes[:3] == [1, 4, 16]
    assert set(sizes[3:-1]) <= {49, 50}  # 50 steps of 10 ms, give or take a rounding


def test_an_epoch_without_a_batch_is_refused_before_any_is_trained():
    targets = np.full(40, -1)
    targets[:2] = [0, 1]  # with 8 of 40 images left out of full batches, both are, sooner or later
    faulty = dataclasses.replace(RECIPE, faults=("subset_batches",), batch_size=32)
    with pytest.raises(UserError, match=r"^sg1/class: no batch can be filled in epoch \d+; lower"):
        epochs.training_batches(faulty, "sg1/class", 200, targets)
    batches = epochs.training_batches(faulty, "sg1/class", 1, targets)
    assert batches[0].images
    few = fit.Source(source(40).images, jnp.asarray(targets), ())
    with pytest.raises(UserError, match="no batch can be filled in epoch"):
        run(node(outputs=2), "subset_batches", train=few, phase=Phase(epochs=200), batch_size=32)
    none = fit.Source(few.images, jnp.full(40, -1), ())
    with pytest.raises(UserError, match="epoch 1;"):
        run(node(outputs=2), train=none)
    with pytest.raises(UserError, match="no validation images; raise --limit"):
        run(node(outputs=2), check=none)


def test_a_step_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    monkeypatch.setattr(memory, "_compiled", {})
    with pytest.raises(UserError, match=r"needs 0\.\d GB .* use a smaller --batch-size"):
        run()


def test_asl_is_the_mean_softmax_of_each_class():
    result, train = run()[0], source(COUNT, keep=(0, 1, 3))
    network, program = result.network, fit.program_of(RECIPE, SHORT, node())
    few = dataclasses.replace(train, targets=jnp.where(train.targets == 2, -1, train.targets))
    asl = grow.average_likelihood(RECIPE, program, network, few, "root")
    (_, scores), _ = apply(network, jnp.asarray(few.images, jnp.float32) / 255)
    probabilities = np.asarray(jax.nn.softmax(scores), np.float64)
    targets = np.asarray(few.targets)
    expected = [
        probabilities[targets == k].mean(0) if (targets == k).any() else np.zeros(4)
        for k in range(4)
    ]
    # float32 probabilities up to 1 computed in batches of another size: a few roundings of 6e-8
    np.testing.assert_allclose(asl, expected, atol=1e-6)
    assert asl.dtype == np.float64
    before = to_state_dict(network)
    faulty = dataclasses.replace(RECIPE, faults=("train_mode_asl",))
    other = grow.average_likelihood(faulty, program, network, few, "root")
    assert np.abs(other - asl).max() > 0.01  # dropout of half the features
    after = to_state_dict(network)
    assert all(np.array_equal(before[key], after[key]) for key in before)
