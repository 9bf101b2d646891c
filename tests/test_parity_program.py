"""The checks of the program around the networks: the plain side by hand, and faults caught."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.images.augmentation import Augmentation
from data.recipes.recipe import Phase
from data.tree import hierarchy
from parity.checks import faults, pixels, plain, program
from parity.checks.program import Item
from trunk_jax.training import fit, grow


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes of the check: threads cost more than such small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


IMAGE = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1) * 10


def test_pixels_are_scaled_then_normalised():
    x = pixels.prepare(IMAGE, {}, Augmentation(), (0.5,), (0.25,))
    assert x[0, 0, 1, 0] == pytest.approx((10 / 255 - 0.5) / 0.25, abs=1e-15)
    assert pixels.prepare(IMAGE, {}, Augmentation(), (), ())[0, 2, 2, 0] == 80 / 255


def test_crop_comes_before_the_flip_and_holes_after_normalising():
    policy = Augmentation(None, 1, True, (1, 2))
    draws = {"shift": np.array([[0, 2]]), "flip": np.array([True]), "holes": np.array([[[1, 1]]])}
    x = pixels.prepare(IMAGE, draws, policy, (0.5,), (0.5,))[0, ..., 0]
    # moved one down and one to the left, mirrored, then a hole over rows and columns 0 and 1
    empty = -1.0
    moved = np.array(
        [
            [empty] * 3,
            [empty, 20 / 127.5 - 1, 10 / 127.5 - 1],
            [empty, 50 / 127.5 - 1, 40 / 127.5 - 1],
        ]
    )
    moved[:2, :2] = 0
    np.testing.assert_allclose(x, moved, rtol=0, atol=1e-15)


def test_loss_by_hand():
    scores, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    log = math.log(1 + math.exp(-2))
    plainly = plain.loss(scores, targets, "cross_entropy", 0.0)
    assert plainly.tolist() == pytest.approx([log, math.log(2)], abs=1e-6)
    # a tenth of the target is spread over both: 0.95 of the right one, 0.05 of the other
    smooth = plain.loss(scores, targets, "cross_entropy", 0.1)
    assert smooth[0].item() == pytest.approx(0.95 * log + 0.05 * (2 + log), abs=1e-6)
    assert plain.loss(scores, targets, "nll", 0.0).tolist() == [-2.0, 0.0]


def test_rates_by_hand():
    cosine = plain.rates(Phase(3, lr=2.0, schedule="cosine", period=2), 1)
    assert cosine == pytest.approx([2.0, 1.0, 0.0])
    step = plain.rates(Phase(3, lr=2.0, schedule="step", period=1, factor=0.5), 2)
    assert step == [2, 2, 1, 1, 0.5, 0.5]
    cycle = plain.rates(Phase(2, lr=0.5, schedule="onecycle", warmup=0.3), 5)
    assert cycle[0] == pytest.approx(0.02)
    assert cycle[2] == pytest.approx(0.5)
    assert cycle[9] == pytest.approx(0.02 / 1e4)


def test_optimizer_by_hand():
    """Two steps with the gradients 1 and 2, decay 0.1, from 1."""
    expected = {
        # m: 1.1, then 0.9 * 1.1 + 2 + 0.1 * 0.89 = 3.079
        "plain": 1 - 0.1 * 1.1 - 0.1 * 3.079,
        # the first goes 1.1 + 0.9 * 1.1 = 2.09, to 0.791; m = 0.99 + 2.0791 = 3.0691
        "nesterov": 0.791 - 0.1 * (2.0791 + 0.9 * 3.0691),
    }
    for name, wanted in expected.items():
        weight = torch.ones(1, dtype=torch.float64)
        phase = Phase(1, "sgd", weight_decay=0.1, nesterov=name == "nesterov")
        step = plain.optimizer(phase, [weight])
        for gradient in (1.0, 2.0):
            weight.grad = torch.tensor([gradient], dtype=torch.float64)
            step(0.1)
        assert weight.item() == pytest.approx(wanted, abs=1e-12), name
    weight = torch.ones(1, dtype=torch.float64)
    weight.grad = torch.ones(1, dtype=torch.float64)
    plain.optimizer(Phase(1), [weight])(0.1)
    assert weight.item() == pytest.approx(0.9, abs=1e-8)  # Adam's first step is the rate itself


def test_batches_by_hand():
    order, targets = np.arange(10), np.array([0, -1, 1, 0, -1, -1, -1, 1, 0, 1])
    recipe = program.cases()["flat"].recipe

    def rows(size, **how):
        return [list(row) for row in plain.batches(recipe, order, targets, size, **how)]

    assert rows(4, subset=False, last=False) == [[0, 2, 3, 7]]
    assert rows(4, subset=False, last=True) == [[0, 2, 3, 7], [8, 9]]
    assert rows(4, subset=True, last=False) == [[0, 2, 3], [7]]
    assert rows(3, subset=True, last=True) == [[0, 2], [3], [7, 8], [9]]


def test_targets_by_hand():
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 2), (1,), (3,)))
    assert list(plain.targets_of(tree, (), "class")) == [0, 1, 2, 3]
    assert list(plain.targets_of(tree, (), "group")) == [0, 1, 0, 2]
    assert list(plain.targets_of(tree, (0,), "class")) == [0, -1, 1, -1]


def test_what_may_differ_is_a_hundred_flipped_bits():
    one = np.ones(3)

    def passes(off):
        item = Item("losses", "s", one + off, one, one + 1e-9)
        return program._check("n", "losses", [item]).passed

    assert passes(0.9e-7)
    assert not passes(1.1e-7)
    whole = Item("targets", "s", np.array([1, 2]), np.array([1, 3]), np.array([1, 3]))
    assert not program._check("n", "targets", [whole]).passed


def test_values_that_are_missing_fail():
    item = Item("reported lr", "s", np.array(np.nan), np.array(0.1), np.array(0.1))
    assert not program._check("n", "reported lr", [item]).passed
    item = Item("ASL", "root", np.array(()), np.ones((2, 2)), np.ones((2, 2)))
    assert not program._check("n", "ASL", [item]).passed


@pytest.mark.parametrize("case", ["grown", "faulty", "joint"])
def test_pytorchs_program_does_what_its_definition_says(case):
    checks = program.check_program("torch", case)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    assert {"learning rates of steps", "losses of steps", "weights at the end"} <= {
        check.what for check in checks
    }


@pytest.mark.parametrize(
    "case",
    ["flat", *[pytest.param(c, marks=pytest.mark.slow) for c in ("grown", "faulty", "joint")]],
)
def test_jaxs_program_does_what_its_definition_says(case):
    checks = program.check_program("jax", case)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    assert "dropout keys" in {check.what for check in checks}


# `test_every_planted_fault_is_caught` (slow) has them all
SOME = (
    "training images not normalised, PyTorch's joint training",
    "augmentation drawn by place in the batch, PyTorch's joint training",
    "class balance ignored when PyTorch chooses an epoch",
    "PyTorch's joint training in eval mode",
    "label smoothing left out of PyTorch's joint training",
)


@pytest.mark.parametrize("name", SOME)
def test_a_fault_planted_in_pytorchs_program_is_caught(name):
    caught = faults.caught_by(name)
    assert caught
    assert caught.startswith("PyTorch's program")


def test_every_fault_still_fits_the_code():
    """The self-test runs all of them, and takes minutes; this only plants them."""
    for fault in faults.faults():
        with fault.plant():
            pass


def test_a_fault_is_planted_wherever_the_function_is_used():
    """`grow` imports `fitting` by its name: there too it must be the changed one."""
    planted = faults._words(fit, "fitting", "recipe.eval_augment)", "recipe.augment)")
    before = fit.fitting
    with planted():
        assert fit.fitting is grow.fitting is not before
    assert fit.fitting is grow.fitting is before


def test_a_fault_that_no_longer_fits_the_code_says_so():
    with (
        pytest.raises(ValueError, match="plant it anew"),
        faults._words(plain, "loss", "no such words", "")(),
    ):
        pass


def test_the_flipped_bit_reaches_the_network():
    setting = plain.Setting(
        program.cases()["flat"].recipe, program.images(), {}, {}, plain.TorchMasks()
    )
    tree = hierarchy.bare(10)
    start = plain.torch_grow.initial_network(setting.recipe, tree, (), "class", {}, (3, 8, 8))
    setting = replace(setting, start={("root", "class"): plain.state_dict(start.double())})
    one, other = (
        next(replace(setting, nudge=nudge).network(tree, (), "class", {}).parameters())
        for nudge in (False, True)
    )
    assert (one != other).sum() == 1
