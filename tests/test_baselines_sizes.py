"""The smallest size that each model takes: one line before any work, in both frameworks."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch

import trunk_jax.baselines
import trunk_torch_ref.baselines
from data.base.errors import UserError
from data.recipes.baselines import models
from data.recipes.baselines.architectures import ARCHITECTURES, smallest
from data.run.options import train_options
from trunk_jax.network.network import apply as applied
from trunk_jax.network.network import split

SIZES = (1, 7, 8, 14, 16, 28, 31, 32, 224)


@functools.cache
def abstract(name):
    """A model in both frameworks, without numbers."""
    spec = ARCHITECTURES[name]
    ours = jax.eval_shape(lambda: split(trunk_jax.baselines.build(spec, 1, 10)))
    with torch.device("meta"):
        theirs = trunk_torch_ref.baselines.build(spec, 1, 10).eval()
    return ours, theirs


def runs_in_jax(name, size):
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    try:
        (_, scores), _ = jax.eval_shape(applied, abstract(name)[0], image)
    except (TypeError, ValueError, ZeroDivisionError):
        return False
    return scores.shape == (1, 10)


def runs_in_torch(name, size):
    try:
        scores = abstract(name)[1](torch.zeros(1, 1, size, size, device="meta"))[1]
    except (RuntimeError, AssertionError, ZeroDivisionError):
        return False
    return scores.shape == (1, 10)


LONG = ("convnext_base", "mobilenet_v2")  # of the others the rules are the same


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=pytest.mark.slow if model in LONG else ())
        for model in models.MODELS
        if "qat" not in model
    ],
)
def test_exactly_the_sizes_that_both_frameworks_take_are_accepted(model):
    name = models.STARTS[model]
    for size in SIZES:
        said = ""
        try:
            models.load(model, "digits", "scratch", size=size, weights="none")
        except models.WrongSize as error:
            said = str(error)
        accepted = said == ""
        assert accepted or said.startswith(f"--size {size}: {model} takes ")
        if name.startswith("dinov2"):  # others lose the pixels that fill no patch
            assert not accepted or size % 14 == 0
            if size % 14:
                continue
        assert accepted == runs_in_torch(name, size) == runs_in_jax(name, size), (model, size)


def test_the_smallest_is_the_smallest():
    assert smallest(ARCHITECTURES["vgg16"]) == 32
    assert smallest(ARCHITECTURES["convnext_base"]) == 32
    assert smallest(ARCHITECTURES["vgg16_bn_small"]) == 8
    assert smallest(ARCHITECTURES["resnet50"]) == 1


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model vgg16 --size 16", "--size 16: vgg16 takes 32 or more"),
        ("--model convnext_base --size 8", "--size 8: convnext_base takes 32 or more"),
        (
            "--model vgg16 --dataset emnist --size 0",
            "--size 0: vgg16 takes 32 or more pixels, and emnist has 28; choose --size 32",
        ),
        ("--model vgg16 --recipe scratch", "vgg16 takes 32 or more pixels, and digits has 8"),
        ("--model resnet50 --size -1", "--size -1 must be above 0"),
    ],
)
def test_a_size_that_cannot_be_is_said_before_any_work(
    framework, flags, said, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    recipe = "" if "--dataset" in flags or "--recipe" in flags else " --recipe scratch"
    with pytest.raises(UserError) as caught:
        train_options(framework, f"{flags}{recipe} --weights none".split())
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []
