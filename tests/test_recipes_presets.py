"""The numbers of the recipes, spelled out again: a typo in one of them fails here.

The published trees' stand in `test_recipe`. Here are those of the published baselines
(docs/trunk.md), each dataset's normalisation, and how the efficient trees are trained
(docs/efficient.md).
"""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_recipes_recipe import ALL

from data.images.augmentation import Augmentation
from data.recipes import recipe
from data.recipes.baselines import models as baselines
from data.recipes.recipe import Phase

CIFAR10 = (0.4914, 0.4822, 0.4465)
SPREAD = (0.2470, 0.2435, 0.2616)
NARROW = (0.2023, 0.1994, 0.2010)  # the published spread of mobilenet and of the baselines
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("case", ALL, ids="-".join)
def test_every_tree_normalises_by_its_datasets_numbers(case):
    name, dataset, backbone = case
    found = recipe.load(*case)
    published = (name, backbone) == ("published", "mobilenet")
    expected = {
        "cifar10": (CIFAR10, NARROW if published else SPREAD),
        "svhn": (HALF, HALF),
        "emnist": ((), ()),
        "digits": ((), ()),
    }
    assert (found.mean, found.std) == expected[dataset]


# dataset: augmentation; joint epochs, highest rate, label smoothing, precision; balanced
EFFICIENT = {
    "digits": (Augmentation(), (30, 0.1, 0.0, "float32"), False),
    "svhn": (Augmentation(rand_augment=(1, 8), crop_padding=2), (36, 0.2, 0.1, "float32"), False),
    "emnist": (Augmentation(crop_padding=2), (10, 0.2, 0.0, "float32"), True),
    "cifar10": (Augmentation(crop_padding=4, flip=True), (64, 0.2, 0.0, "bfloat16"), False),
}


@pytest.mark.parametrize("backbone", ["resnet", "monolith"])
@pytest.mark.parametrize("dataset", EFFICIENT)
def test_efficient_recipe(dataset, backbone):
    found = recipe.load("efficient", dataset, backbone)
    augment, (epochs, lr, smoothing, precision), balanced = EFFICIENT[dataset]
    rate = {
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
        "schedule": "onecycle",
        "warmup": 0.3,
    }
    assert found.joint == Phase(
        epochs=epochs, lr=lr, label_smoothing=smoothing, precision=precision, **rate
    )
    for row in (found.root, found.others):
        for phase in (row.class_phase, row.group_phase):
            assert phase == Phase(epochs=phase.epochs, lr=0.1, **rate)
    assert (found.augment, found.eval_augment) == (augment, Augmentation())
    assert (found.balanced, found.loss, found.faults) == (balanced, "cross_entropy", ())


def test_the_efficient_recipes_are_these():
    cases = {(d, b) for name, d, b in ALL if name == "efficient"}
    ours = {(d, b) for d in EFFICIENT for b in ("resnet", "monolith")}
    assert cases == ours | {("digits", "mobilenet")}


def test_the_efficient_recipe_of_mobilenet_nodes_trains_them_together_as_they_grew():
    found = recipe.load("efficient", "digits", "mobilenet")
    grown = Phase(8, "adam", 5e-3, 1e-4, schedule="cosine")
    assert found.joint == dataclasses.replace(grown, epochs=80)
    for row in (found.root, found.others):
        assert (row.class_phase, row.group_phase) == (grown, grown)


# --- published baselines: learning rate, weight decay, epochs on CIFAR-10, EMNIST, SVHN

DATASETS = ("cifar10", "emnist", "svhn")
_VGG16 = ((1e-4, 2e-4, 6), (1e-4, 0.0, 6), (1e-4, 1e-4, 5))
_QUANTISED = ((1e-4, 5e-4, 6), (1e-3, 1e-4, 6), (1e-3, 1e-4, 4))
BASELINES = {
    "resnet50": ((1e-4, 5e-4, 6), (1e-3, 1e-4, 4), (1e-3, 1e-4, 4)),
    "resnet50_observed": _QUANTISED,
    "resnet50_qat": _QUANTISED,
    "vgg16": _VGG16,
    "vgg16_pruned": _VGG16,
    "convnext_base": ((1e-4, 5e-4, 10), (1e-4, 5e-4, 10), (5e-6, 1e-4, 10)),
    "mobilenet_v2": ((1e-3, 1e-4, 4),) * 3,
    "vit_b_16": ((1e-4, 2e-4, 6), (1e-3, 1e-4, 10), (1e-4, 1e-4, 5)),
    "dinov2_vitb14_reg": ((1e-4, 5e-4, 10), (1e-4, 2e-4, 4), (1e-4, 5e-4, 4)),
    "deit_tiny": ((1e-4, 5e-4, 10), (1e-4, 2e-4, 4), (1e-4, 5e-4, 4)),
}


@pytest.mark.parametrize("model", BASELINES)
def test_published_baseline(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"x": np.zeros(1, np.float32)}, "any.safetensors")
    for dataset, (lr, decay, epochs) in zip(DATASETS, BASELINES[model], strict=True):
        found = baselines.load(model, dataset, "published", weights="any.safetensors")
        expected = Phase(epochs, "adam", lr, decay, betas=(0.9, 0.99), schedule="constant")
        assert found.root.class_phase == found.others.class_phase == expected
        assert (found.mean, found.std) == (((), ()) if dataset == "emnist" else (CIFAR10, NARROW))
        assert (found.batch_size, found.baseline.size) == (16, 224)


def test_every_baseline_is_covered():
    assert {*BASELINES, "vgg16_bn_pruned"} == set(baselines.MODELS)
