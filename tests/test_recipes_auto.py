"""The recipe that is designed for its data: `data.recipes.auto`."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.base.errors import UserError
from data.images import datasets, specs
from data.recipes import auto, recipe
from data.recipes.networks import Block, ResNet
from data.run import options
from trunk_torch_ref.measure.costs import cost as torch_cost
from trunk_torch_ref.nodes import make

PHOTOS = specs.Spec("x", "x", None, (32, 32, 3), ("cat", "dog"), None, "", kind="arrays")


def facts(shape=(32, 32, 3), classes=10, images=45_000, flip=True):
    names = tuple(f"class {place}" for place in range(classes))
    spec = dataclasses.replace(PHOTOS, image_shape=shape, class_names=names)
    return auto.Facts(spec, images, (0.5,) * shape[2], (0.25,) * shape[2], flip, "")


@pytest.mark.parametrize(
    ("shape", "classes"), [((32, 32, 3), 100), ((28, 28, 1), 47), ((17, 40, 3), 3), ((8, 8, 1), 2)]
)
def test_costs_are_those_of_the_networks(shape, classes):
    """The design counts what the frameworks count of the networks that they build."""
    designed = auto.networks(shape, classes, 20e6)
    height, width, channels = shape
    root = make(designed.root, (channels, height, width), classes)
    found, inner = auto.cost(designed.root, shape, classes)
    assert torch_cost(root, (channels, height, width))["multiply_adds"] == found
    below = (inner[2], inner[0], inner[1])
    child = make(designed.others, below, classes)
    total = found + torch_cost(child, below)["multiply_adds"]
    assert auto.path_cost(designed, shape, classes) == total


@given(
    st.sampled_from([8, 16, 28, 32, 48, 64, 96, 224]),
    st.sampled_from([1, 3]),
    st.integers(2, 100),
    st.integers(5, 1000),
    st.none() | st.sampled_from([60e6, 2e9]),
)
def test_any_size_and_number_of_classes_has_a_recipe(side, channels, classes, each, budget):
    known = facts((side, side, channels), classes, each * classes)
    if budget is not None and side == 224 and budget < 50e6:
        return
    for backbone in auto.BACKBONES:
        found = auto.design(known, backbone, budget)
        assert recipe.from_json(recipe.to_json(found)) == found
        assert 1 <= found.batch_size <= min(128, known.images)
        steps = found.joint.epochs * max(1, known.images // found.batch_size)
        assert steps >= auto.STEPS
        assert found.joint.epochs >= 20
    most = budget or auto.default_budget(known.spec.image_shape)
    designed = auto.networks(known.spec.image_shape, classes, most)
    assert auto.path_cost(designed, known.spec.image_shape, classes) <= most
    wider = auto._of_width(known.spec.image_shape, classes, designed.root.stem + 2)
    assert auto.path_cost(wider, known.spec.image_shape, classes) > most or (
        designed.root.stem >= 511
    )


def test_the_rule_continues_the_recipes_made_by_hand():
    """CIFAR-10's root and settings, nearly; digits' networks at digits' cost."""
    found = auto.design(facts())
    by_hand = recipe.load("efficient", "cifar10")
    assert [block.stride for block in found.networks.root.blocks] == [1, 2, 1, 2]
    assert (found.batch_size, found.joint.lr) == (by_hand.batch_size, by_hand.joint.lr)
    assert found.augment == by_hand.augment
    assert abs(found.joint.epochs - by_hand.joint.epochs) <= 4
    small = auto.networks((8, 8, 1), 10, 0.84e6)
    assert small.root == ResNet(16, (Block(16), Block(32, 2)))
    assert small.others == ResNet(0, (Block(32),))
    assert auto.design(facts(images=1_294, shape=(8, 8, 1))).batch_size == 64


def test_a_monolith_is_the_root_and_a_child_in_one():
    tree, single = (auto.design(facts(classes=100), backbone) for backbone in auto.BACKBONES)
    whole = single.networks.root
    assert whole.blocks == tree.networks.root.blocks + tree.networks.others.blocks
    assert single.joint == tree.joint
    assert isinstance(single.root.volatility, float)
    assert tree.root.volatility == "auto"


@pytest.mark.parametrize(
    ("epochs", "growth"), [(1, (1, 1)), (2, (2, 1)), (20, (2, 1)), (60, (4, 2)), (300, (20, 10))]
)
def test_epochs_are_of_joint_training_and_growth_follows(epochs, growth):
    found = auto.design(facts(), epochs=epochs)
    assert found.joint.epochs == epochs
    assert (found.root.class_phase.epochs, found.root.group_phase.epochs) == growth
    assert found.others == found.root


def test_the_flag_epochs_reaches_the_design_and_no_phase_besides():
    given = ["--dataset", "digits", "--recipe", "auto", "--epochs", "30", "--out", "x"]
    found = options.train_options("jax", given).recipe
    assert found.joint.epochs == 30
    assert (found.root.class_phase.epochs, found.root.group_phase.epochs) == (2, 1)


def test_a_budget_is_kept_or_refused():
    assert auto.design(facts(), None, 10e6).budget == 10e6
    with pytest.raises(UserError, match=r"--budget 0.1M is too little for 32x32"):
        auto.design(facts(), None, 1e5)


def test_moments_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 3), np.uint8)
    mean, std = auto.moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=5.1e-5)  # 4 decimals
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=5.1e-5)
    assert auto.moments(np.zeros((3, 4, 4, 1), np.uint8)) == ((0.0,), (round(1 / 255, 4),))


def test_digits_have_a_left_and_a_right_and_noise_has_none():
    digits = datasets.load("digits")
    assert auto.asymmetry(digits.train.images, digits.train.labels) > 0.25
    noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
    assert abs(auto.asymmetry(noise, np.arange(400) % 4)) < 0.005  # of 100 images a class
    noise[:, :, :2] = 255
    assert auto.asymmetry(noise, np.arange(400) % 4) > 0.2


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        (("cat", "dog"), True),
        (("7", "8"), False),
        (("a", "b"), False),
        (("turn left", "stop"), False),
        (("Links abbiegen", "halt"), False),
        (("class 1", "class 2"), True),
        (("夜", "海"), False),
    ],
)
def test_signs_and_sides_are_not_mirrored(names, flip):
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
    assert auto.mirrored(names, noise, np.arange(100) % 2)[0] is flip
    lopsided = noise.copy()
    lopsided[:, :, :3] //= 8
    assert not auto.mirrored(names, lopsided, np.arange(100) % 2)[0]


def test_what_is_printed_is_what_is_done():
    known = facts(classes=100)
    text = "\n".join(auto.lines(auto.design(known), known))
    for part in (
        "45,000 training images, 32x32x3, 100 classes",
        "stem 22, blocks 22 44/2 44 66/2; children blocks 66 66; 39.8 M",
        "60 epochs of 351 batches of 128",
        "mirrored",
    ):
        assert part in text
