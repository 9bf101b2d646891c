"""Baselines through the trees' own loop: recipes, run folder, resuming, evaluation."""

import json
import tomllib

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.base.errors import UserError
from data.recipes import recipe
from data.recipes.baselines import architectures
from data.recipes.baselines import models as baselines
from data.recipes.baselines.architectures import Dinov2, MobileNetV2, QuantResNet, ResNet, Vgg
from data.recipes.recipe import Phase
from data.run import options, runfolder
from data.run.options import train_options
from data.training.epochs import Position
from trunk_jax import compress, evaluate, export, metrics, train
from trunk_jax.baselines.start import start
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.training import objective
from trunk_torch_ref import train as torch_train
from trunk_torch_ref.baselines.start import start as torch_start
from trunk_torch_ref.network.exchange import to_state_dict as torch_to_state_dict
from trunk_torch_ref.training import objective as torch_objective

TINY = {
    "mobilenet_v2": MobileNetV2(rows=((1, 8, 1, 1), (4, 8, 1, 1)), stem=8, last=16),
    "resnet50": ResNet(blocks=(1,), width=4),
    "vgg16": Vgg(stages=((6,), (8,)), pools=1, pool=2, hidden=(10,)),
    "vgg16_bn_small": Vgg(stages=((6,), (8,)), pools=1, pool=1, hidden=(), batch_norm=True),
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    for name, spec in TINY.items():
        monkeypatch.setitem(architectures.ARCHITECTURES, name, spec)
    monkeypatch.chdir(tmp_path)


FEW = [
    "--dataset",
    "digits",
    "--recipe",
    "scratch",
    "--epochs",
    "2",
    "--limit",
    "200",
    "--batch-size",
    "50",
]


def trained(command, model, *more):
    arguments = ["--model", model, "--out", "run", "--json", "out.json", *FEW, *more]
    command.main(arguments)
    with open("out.json") as file:
        return json.load(file)


@pytest.mark.slow
def test_a_run_is_a_trees_run(tmp_path, capsys):
    summary = trained(train, "mobilenet_v2", "--size", "16")
    assert summary["backbone"] == "mobilenet_v2"
    assert summary["selected_on"] == "validation"
    assert summary["depth"] == 1
    assert list(summary["nodes"]) == ["root"]
    assert summary["accuracy"]["test"]["total"] == 200
    rows = runfolder.read_metrics(tmp_path / "run")
    assert [(row["node"], row["phase"], row["epoch"]) for row in rows] == [
        ("root", "class", 1),
        ("root", "class", 2),
    ]
    assert not (tmp_path / "run" / "asl").exists(), "nothing is grouped"
    evaluate.main(["run", "--json", "again.json"])
    with open("again.json") as file:
        assert json.load(file)["correct"] == summary["accuracy"]["test"]["correct"]
    # going on with a finished run changes nothing
    train.main(["--model", "mobilenet_v2", "--out", "run", *FEW, "--size", "16", "--resume"])
    # what is of trees alone says so before it takes time
    for command, words in (
        (metrics, ["run"]),
        (export, ["run", "--format", "folder", "--out", "out"]),
        (export, ["run", "--format", "hub", "--out", "out"]),
        (compress, ["run", "--prune", "0.2"]),
    ):
        with pytest.raises(UserError, match=r"is a baseline \(mobilenet_v2\)"):
            command.main(words)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    trained(train, "vgg16_bn_pruned", "--out", "whole")
    from trunk_jax.training import checkpoint, fit

    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    original, calls = fit.train_epoch, []

    def stop_in_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(fit, "train_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        trained(train, "vgg16_bn_pruned", "--out", "cut")
    monkeypatch.setattr(fit, "train_epoch", original)
    trained(train, "vgg16_bn_pruned", "--out", "cut", "--resume")
    whole, cut = (runfolder.read_weights(tmp_path / name, "root") for name in ("whole", "cut"))
    assert all(np.array_equal(whole[key], cut[key]) for key in whole)
    # half the multiply-adds: fewer channels than the 6 and 8 that it starts from
    assert whole["features.0.weight"].shape[0] < 6


def test_the_reference_trains_them_too(tmp_path):
    summary = trained(torch_train, "mobilenet_v2", "--size", "16")
    assert summary["framework"] == "torch"
    assert list(summary["nodes"]) == ["root"]


def public(name, outputs=1000, channels=3):
    """A file of public weights of a tiny model, random."""
    from trunk_jax.baselines import build
    from trunk_jax.network.network import split

    module = build(TINY[name], channels, outputs, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    weights = {
        key: value if value.ndim != 1 else rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
        for key, value in to_state_dict(split(module)).items()
    }
    save_file({k: np.asarray(v, order="C") for k, v in weights.items()}, f"{name}.safetensors")
    return weights


@pytest.mark.parametrize("model", ["resnet50", "resnet50_qat", "resnet50_observed", "vgg16_pruned"])
def test_both_frameworks_start_from_the_same_numbers(model):
    name = baselines.STARTS[model]
    weights = public(name)
    chosen = baselines.load(model, "cifar10", "published", weights=f"{name}.safetensors")
    ours = to_state_dict(start(chosen, (32, 32, 3), 10))
    theirs = torch_to_state_dict(torch_start(chosen, (3, 32, 32), 10))
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    if model == "resnet50":
        np.testing.assert_array_equal(
            ours["layer1.0.conv2.weight"], weights["layer1.0.conv2.weight"]
        )
        assert ours["fc.weight"].shape[0] == 10
    if model == "resnet50_observed":
        assert "layer1.0.conv2.bias" in ours
        assert "layer1.0.conv3.bias" not in ours
    if model == "vgg16_pruned":
        assert ours["features.0.weight"].shape[0] < 6


@pytest.mark.slow
def test_a_quantised_run_ends_as_int8():
    public("resnet50", channels=1)
    summary = trained(train, "resnet50_qat", "--size", "16", "--weights", "resnet50.safetensors")
    assert summary["backbone"] == "resnet50_qat"
    int8 = summary["int8"]
    floats = summary["nodes"]["root"]["parameters"]
    assert int8["bytes"] < 2.5 * floats, "a tiny layer's scales weigh; float32 is 4 bytes each"
    assert int8["test"]["total"] == 200
    assert 0 <= int8["test"]["accuracy"] <= 1


# --- recipes and flags


@pytest.mark.parametrize("model", baselines.MODELS)
@pytest.mark.parametrize("dataset", ["cifar10", "emnist", "svhn"])
def test_published_recipes_are_the_published_table(model, dataset):
    save_file({"x": np.zeros(1, np.float32)}, "any.safetensors")
    chosen = baselines.load(
        model,
        dataset,
        "published",
        weights=None if model == "vgg16_bn_pruned" else "any.safetensors",
    )
    phase = chosen.root.class_phase
    assert (chosen.protocol, chosen.ties) == ("published", "final")
    assert chosen.augment == chosen.eval_augment == recipe.Augmentation()
    if model == "vgg16_bn_pruned":
        assert (phase.optimizer, phase.lr, phase.weight_decay) == ("sgd", 0.01, 5e-4)
        assert (phase.epochs, phase.milestones, chosen.batch_size) == (100, (60, 80), 128)
        assert chosen.baseline == recipe.Baseline(0 if dataset == "cifar10" else 224, "none", 2.0)
        return
    rows = tomllib.loads((recipe.FOLDER / "baselines" / "published.toml").read_text())
    expected = Phase(rows[model][dataset][2], "adam", *rows[model][dataset][:2], betas=(0.9, 0.99))
    assert phase == expected
    assert (chosen.batch_size, chosen.baseline.size) == (16, 224)
    assert bool(chosen.mean) == (dataset != "emnist")
    assert recipe.from_json(json.loads(json.dumps(recipe.to_json(chosen)))) == chosen


def test_some_published_numbers():
    rows = tomllib.loads((recipe.FOLDER / "baselines" / "published.toml").read_text())
    assert rows["convnext_base"]["svhn"] == [5e-6, 1e-4, 10]
    assert rows["vgg16"]["emnist"] == [1e-4, 0.0, 6]
    assert rows["resnet50_observed"]["emnist"] == [1e-3, 1e-4, 6]
    assert rows["dinov2_vitb14_reg"]["cifar10"] == [1e-4, 5e-4, 10]


def test_the_releases_quirks_are_on_in_its_recipe_alone():
    save_file({"x": np.zeros(1, np.float32)}, "any.safetensors")

    def spec(model, dataset, name):
        return baselines.base_of(baselines.load(model, dataset, name, weights="any.safetensors"))

    assert not spec("dinov2_vitb14_reg", "svhn", "published").head
    assert spec("dinov2_vitb14_reg", "svhn", "corrected") == Dinov2()
    assert not spec("convnext_base", "emnist", "published").stem_norm
    assert spec("convnext_base", "cifar10", "published").stem_norm
    assert spec("convnext_base", "emnist", "corrected").stem_norm
    chosen = baselines.load("resnet50_qat", "svhn", "corrected", weights="any.safetensors")
    assert isinstance(baselines.spec_of(chosen, 32), QuantResNet)


BAD = {
    "--model resnet51": "no model 'resnet51'",
    "--model vgg16 --backbone vgg": "--backbone is for trees",
    "--model vgg16 --volatility 1": "--volatility is for trees",
    "--size 32": "--size needs --model",
    "--weights x": "--weights needs --model",
    "--model vgg16 --recipe scratch --speed-up 2": "--speed-up is for vgg16_pruned",
    "--model vgg16_pruned --recipe scratch --speed-up 0.5": "--speed-up 0.5",
    "--model vgg16_pruned --recipe scratch --speed-up 0": "--speed-up 0",
    "--model vgg16 --recipe best": "no recipe 'best'",
    "--model vgg16 --recipe published": "has none for vgg16 on digits, but scratch has",
    "--model vgg16 --dataset cifar10 --weights nowhere": "parity.pretrained vgg16",
    "--model vit_b_16 --recipe scratch --size 32": "--size 32: vit_b_16 takes 224",
    "--model dinov2_vitb14_reg --recipe scratch --size 32": "takes a multiple of 14",
    "--model resnet50 --recipe scratch --size -1": "--size -1",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_flag_is_one_line(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "empty"))

    def parse():
        return baselines.spec_of(train_options("jax", flags.split()).recipe, 32)

    with pytest.raises(UserError) as error:
        parse()
    assert BAD[flags] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_flags_of_a_run_come_back():
    given = train_options("jax", ["--model", "resnet50", "--recipe", "scratch", "--size", "48"])
    assert given.flags["model"] == "resnet50"
    assert given.recipe.baseline.size == 48
    assert given.out.name == "digits-resnet50-scratch-seed0-jax"
    assert set(options.OF_MODELS) < given.flags.keys()


def test_the_last_epoch_counts_with_final():
    position = Position().after(0.9, "final").after(0.2, "final")
    assert (position.best_epoch, position.best_accuracy) == (2, 0.2)


def test_milestones_are_pytorchs():
    phase = Phase(7, "sgd", 0.5, schedule="step", milestones=(2, 5))
    ours, theirs = objective.learning_rates(phase), torch_objective.learning_rates(phase)
    np.testing.assert_allclose(ours, [0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005], rtol=1e-12)
    np.testing.assert_allclose(theirs, ours, rtol=1e-12)
