"""Losses, optimisers and schedules against PyTorch's formulae written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.recipes import recipe
from data.recipes.recipe import Phase
from trunk_jax.training.objective import adam, descend, learning_rates, loss, optimizer


def walk(phase, start, gradients, rates):
    """Parameters after each step of our optimiser."""
    params = {"a": jnp.asarray(start)}
    transform = optimizer(phase)
    state, path = transform.init(params), []
    for gradient, rate in zip(gradients, rates, strict=True):
        steps, state = transform.update({"a": jnp.asarray(gradient)}, state, params)
        params = descend(params, steps, jnp.asarray(rate))
        path.append(np.asarray(params["a"]))
    return np.array(path)


def torch_adam(phase, start, gradients, rates):
    """torch.optim.Adam, single tensor, coupled weight decay, eps 1e-8."""
    (b1, b2), p = phase.betas, start.copy()
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g + phase.weight_decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        denominator = np.sqrt(v) / math.sqrt(1 - b2**t) + 1e-8
        p = p - rate / (1 - b1**t) * m / denominator
        path.append(p)
    return np.array(path)


def torch_sgd(phase, start, gradients, rates):
    """torch.optim.SGD: the first step's buffer is the gradient itself, no dampening."""
    p, buffer, path = start.copy(), None, []
    for g, rate in zip(gradients, rates, strict=True):
        g = g + phase.weight_decay * p
        buffer = g if buffer is None else phase.momentum * buffer + g
        p = p - rate * buffer
        path.append(p)
    return np.array(path)


@pytest.mark.parametrize(
    ("phase", "reference"),
    [
        (Phase(1, "adam", weight_decay=0.01), torch_adam),
        (Phase(1, "adam", betas=(0.8, 0.99)), torch_adam),
        (Phase(1, "sgd", weight_decay=0.05, momentum=0.9), torch_sgd),
        (Phase(1, "sgd", momentum=0.0), torch_sgd),
    ],
    ids=["adam", "adam, other betas", "sgd", "sgd, plain"],
)
def test_optimisers_are_pytorchs(phase, reference):
    generator = np.random.default_rng(0)
    start, gradients = generator.normal(size=7), generator.normal(size=(60, 7))
    rates = 0.05 * (1 + np.cos(np.arange(60) / 10))
    expected = reference(phase, start, gradients, rates)
    with jax.enable_x64(True):
        found = walk(phase, start, gradients, rates)
    # 60 steps of a few roundings each: 1e-16 times some hundreds
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert np.abs(expected[-1] - start).max() > 0.1
    found = walk(phase, *(a.astype(np.float32) for a in (start, gradients, rates)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=60 * 6e-8 * np.abs(expected).max())


def test_the_first_steps_of_adam_are_right_in_float32():
    """With a constant gradient the corrected moments are that gradient: a step is 1 each time."""

    def steps(transform):
        state, found = transform.init(jnp.zeros(1)), []
        for _ in range(5):
            step, state = transform.update(jnp.ones(1), state)
            found.append(float(step[0]))
        return np.array(found)

    # the moments themselves carry a few roundings of 6e-8
    np.testing.assert_allclose(steps(adam(0.9, 0.999)), 1, rtol=3e-7)
    # optax takes 1 - 0.999 in float32, so its first step is off by more
    assert np.abs(steps(optax.scale_by_adam(0.9, 0.999)) - 1).max() > 2e-6


def test_losses_by_hand():
    scores, targets = jnp.array([[0.0, math.log(3)], [0.0, 0.0]]), jnp.array([1, 0])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert float(loss(scores, targets, None, "cross_entropy")) == pytest.approx(expected, rel=1e-6)
    logs = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    assert float(loss(logs, targets, None, "nll")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["nll", "cross_entropy"])
def test_padding_rows_have_no_part_in_the_loss(kind):
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(5, 3)), np.array([2, 0, 1, 0, 0])
    valid = np.array([True, True, True, False, False])
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(loss)(
            jnp.asarray(scores), jnp.asarray(targets), jnp.asarray(valid), kind
        )
        alone, expected = jax.value_and_grad(loss)(
            jnp.asarray(scores[:3]), jnp.asarray(targets[:3]), None, kind
        )
    assert float(value) == pytest.approx(float(alone), rel=1e-14)
    np.testing.assert_allclose(gradient[:3], expected, rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(gradient[3:], 0)


def torch_cosine(lr, period, epochs):
    """CosineAnnealingLR as PyTorch steps it, each rate from the one before."""
    rates = [lr]
    for epoch in range(1, epochs):
        if (epoch - 1 - period) % (2 * period) == 0:
            rates.append(rates[-1] + lr * (1 - math.cos(math.pi / period)) / 2)
        else:
            ratio = 1 + math.cos(math.pi * epoch / period)
            rates.append(rates[-1] * ratio / (1 + math.cos(math.pi * (epoch - 1) / period)))
    return rates


def test_cosine_rises_again_after_its_period():
    phase = Phase(epochs=25, lr=3e-3, schedule="cosine", period=10)
    rates = learning_rates(phase)
    assert rates.dtype == np.float64
    # PyTorch's recursion rounds 25 times
    np.testing.assert_allclose(rates, torch_cosine(3e-3, 10, 25), rtol=1e-13, atol=1e-17)
    assert rates[0] == rates[20] == 3e-3
    assert rates[5] == pytest.approx(1.5e-3)
    assert rates[10] == 0
    assert (np.diff(rates[:11]) < 0).all()
    assert (np.diff(rates[10:21]) > 0).all()
    stops = optax.cosine_decay_schedule(3e-3, 10)(15)
    assert float(stops) == 0
    assert rates[15] == pytest.approx(1.5e-3)
    whole = learning_rates(Phase(epochs=25, lr=3e-3, schedule="cosine"))
    np.testing.assert_allclose(whole, torch_cosine(3e-3, 25, 25), rtol=1e-13)


def test_the_published_svhn_recipe_has_an_epoch_without_learning():
    published = recipe.load("published", "svhn", "mobilenet")
    for phase in (published.root.class_phase, published.others.group_phase):
        rates = learning_rates(phase)
        assert len(rates) == 20
        assert rates[10] == 0  # epoch 11
        assert (rates[:10] > 0).all()
        assert (rates[11:] > 0).all()


def test_step_and_constant_schedules():
    step = learning_rates(Phase(epochs=70, lr=1e-2, schedule="step", period=30, factor=0.1))
    np.testing.assert_allclose(step, [1e-2] * 30 + [1e-3] * 30 + [1e-4] * 10, rtol=1e-15)
    np.testing.assert_array_equal(learning_rates(Phase(epochs=3, lr=0.5)), [0.5] * 3)
