"""The PyTorch reference: networks, optimisers, a whole run, resuming it, the named faults."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data.training.train as training
from data.base import streams
from data.base.errors import UserError
from data.images import datasets
from data.images.augmentation import Augmentation
from data.images.splits import split
from data.recipes import recipe
from data.recipes.recipe import Phase
from data.run import runfolder
from data.training.batches import plan
from data.training.epochs import Pass, Position
from data.tree import hierarchy
from trunk_torch_ref import evaluate, nodes, train
from trunk_torch_ref.inference import route
from trunk_torch_ref.inference.load import load
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.measure import costs
from trunk_torch_ref.network import network
from trunk_torch_ref.network.exchange import from_state_dict, to_state_dict
from trunk_torch_ref.training import fit, grow, objective
from trunk_torch_ref.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "published" / "cifar10-vgg"

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="needs the published weights in ../shared"
)


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory):
    """A cache of our own, and one thread: several only wait for each other on small images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # the same bits from the process that is killed
        yield
    torch.set_num_threads(threads)


# --- networks


@pytest.mark.parametrize(
    ("dataset", "backbone", "name", "shape", "outputs", "parameters", "millions", "features"),
    [
        ("svhn", "mobilenet", "root", (3, 32, 32), 6, 42_230, 39.8, (32, 40, 40)),
        ("svhn", "mobilenet", "sg1", (32, 40, 40), 4, 54_244, 118.3, (48, 52, 52)),
        ("cifar10", "vgg", "root", (3, 32, 32), 5, 161_413, 80.7, (64, 16, 16)),
        ("cifar10", "vgg", "sg5", (64, 16, 16), 3, 292_995, 40.1, (128, 8, 8)),
    ],
)
def test_published_nodes_have_the_published_costs(
    dataset, backbone, name, shape, outputs, parameters, millions, features
):
    node = nodes.build(dataset, backbone, name, shape, outputs, faults=("pointwise_padding",))
    cost = costs.cost(node, shape)
    assert cost["parameters"] == parameters
    assert round(cost["multiply_adds"] / 1e6, 1) == millions
    assert network.feature_shape(node, shape) == features


def test_emnist_root_has_the_published_feature_map():
    node = nodes.build("emnist", "mobilenet", "root", (1, 28, 28), 5, faults=("pointwise_padding",))
    assert network.feature_shape(node, (1, 28, 28)) == (32, 38, 38)


@needs_published
@pytest.mark.parametrize("name", ["root", "sg1", "sg3", "sg5", "sg7"])
def test_published_weights_load_as_they_are(name):
    models = json.loads((PUBLISHED / "model_weights" / "inputs_to_models.json").read_text())
    shape, outputs = models[name]
    node = nodes.build("cifar10", "vgg", name, tuple(shape), outputs)
    file = PUBLISHED / "model_weights" / f"{name}.pt"
    weights = torch.load(file, map_location="cpu", weights_only=True)["model_state_dict"]
    node.load_state_dict(weights, strict=True)
    assert list(node.state_dict()) == list(weights)
    child = next((m for m in models if m == {"root": "sg1", "sg5": "sg6"}.get(name)), None)
    if child:
        assert network.feature_shape(node, tuple(shape)) == tuple(models[child][0])


def test_mobilenet_parameters_have_the_published_names():
    root = nodes.build("svhn", "mobilenet", "root", (3, 32, 32), 6).state_dict()
    child = nodes.build("svhn", "mobilenet", "sg1", (32, 40, 40), 4).state_dict()
    block = "inverted_residual.{}.{}_block.{}"
    assert {key.split(".")[1] for key in root if key.startswith("features")} == set("01345678")
    assert root["features.0.bias"].shape == (24,)
    assert "features.3." + block.format(0, "conv_1x1", "0.weight") in root
    assert "features.8." + block.format(1, "depthwise_convolution", "1.running_var") in root
    assert child["features.0." + block.format(2, "conv_1x1", "0.weight")].shape == (48, 128, 1, 1)
    assert child["classifier.0.weight"].shape == (4, 48, 1, 1)
    assert "features.0." + block.format(0, "conv_1x1", "0.bias") not in child


def test_mobilenet_takes_its_shortcuts_only_without_pointwise_padding():
    for faults, size, taken in (((), 16, True), (("pointwise_padding",), 40, False)):
        node = nodes.build("svhn", "mobilenet", "root", (3, 32, 32), 6, faults=faults).eval()
        assert network.feature_shape(node, (3, 32, 32)) == (32, size, size)
        block, x = node.features[4], torch.rand(2, 24, 16, 16)
        shortcut = block(x) - block.inverted_residual(x)
        assert (shortcut.abs().max() > 0) == taken
        if taken:  # two roundings of values up to 7
            torch.testing.assert_close(shortcut, x, rtol=0, atol=1e-6)


def test_warm_batchnorm_is_one_update_and_log_probabilities_sum_to_one():
    shape = (1, 8, 8)
    warm = nodes.build("digits", "mobilenet", "root", shape, 10, faults=("warm_batchnorm",))
    cold = nodes.build("digits", "mobilenet", "root", shape, 10)
    assert int(warm.features[1].num_batches_tracked) == 1
    assert int(cold.features[1].num_batches_tracked) == 0
    # momentum 0.1: nine tenths of the initial 0, one tenth of the mean over an image of ones
    stem = warm.features[0](torch.ones(1, *shape)).mean((0, 2, 3))
    torch.testing.assert_close(warm.features[1].running_mean, stem * 0.1)
    _, scores = cold(torch.rand(4, *shape))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4))


def test_initial_weights_depend_on_the_seed_alone():
    def build():
        return nodes.build("digits", "vgg", "root", (1, 8, 8), 10)

    before = torch.get_rng_state()
    one, same, other = (network.initial(build, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    key = "features.0.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert one[key].abs().max() <= 1 / 3  # PyTorch's default: within 1 / sqrt(fan-in of 9)


def test_weights_that_do_not_fit_are_all_listed():
    node = nodes.build("digits", "vgg", "root", (1, 8, 8), 10)
    weights = to_state_dict(node)
    weights["features.0.weight"] = weights["features.0.weight"][:, :, :2]
    weights["extra"] = weights.pop("classifier.0.bias")
    with pytest.raises(UserError) as caught:
        from_state_dict(node, weights)
    for part in (
        "missing classifier.0.bias",
        "unexpected extra",
        "features.0.weight is 16x1x2x3, not 16x1x3x3",
    ):
        assert part in str(caught.value)


# --- objective


def test_schedules_are_the_formulae():
    epoch = np.arange(25)
    cosine = Phase(epochs=25, lr=3e-3, schedule="cosine", period=10)
    rates = objective.learning_rates(cosine)
    # PyTorch multiplies up from epoch to epoch: a rounding (1e-16) each, 25 of them
    np.testing.assert_allclose(rates, 3e-3 * (1 + np.cos(np.pi * epoch / 10)) / 2, atol=3e-17)
    assert rates[10] == 0  # epoch 11 of the published SVHN recipe
    assert rates[20] == pytest.approx(3e-3, rel=1e-14)  # it rises again
    whole = objective.learning_rates(dataclasses.replace(cosine, period=0))
    np.testing.assert_allclose(whole, 3e-3 * (1 + np.cos(np.pi * epoch / 25)) / 2, atol=3e-17)
    step = Phase(epochs=25, lr=3e-3, schedule="step", period=10, factor=0.1)
    np.testing.assert_allclose(
        objective.learning_rates(step), 3e-3 * 0.1 ** (epoch // 10), rtol=1e-14
    )
    assert (objective.learning_rates(Phase(epochs=7, lr=0.5)) == 0.5).all()


def test_weight_decay_is_part_of_the_gradient():
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    adam = objective.optimizer(Phase(1, lr=0.1, weight_decay=0.01), [weight])
    weight.grad = torch.zeros(2, dtype=torch.float64)
    adam.step()
    # Adam's first step is the learning rate times the sign; decoupled it would be lr * 0.01 * w.
    # eps = 1e-8 against gradients of 0.02 and 0.03 leaves 5e-7 of 0.1.
    torch.testing.assert_close(
        weight.detach(), torch.tensor([1.9, -2.9], dtype=torch.float64), rtol=0, atol=1e-7
    )
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    phase = Phase(1, optimizer="sgd", lr=0.1, weight_decay=0.5, momentum=0.9)
    sgd = objective.optimizer(phase, [weight])
    for gradient in (1.0, 3.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        sgd.step()
    # by hand: g = 1 + 0.5 * 2 = 2, w = 1.8; g = 3 + 0.5 * 1.8 = 3.9, v = 0.9 * 2 + 3.9, w = 1.23
    assert weight.item() == pytest.approx(1.23, abs=1e-15)


def test_losses_by_hand():
    scores, targets = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert float(objective.loss(scores, targets, "cross_entropy")) == pytest.approx(expected)
    logs = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert float(objective.loss(logs, targets, "nll")) == pytest.approx(expected)


# --- fitting one node, on images whose class is where they are bright

COUNT, CHECKED = 70, 50
RECIPE = dataclasses.replace(
    recipe.load("corrected", "digits", "vgg"), batch_size=20, eval_batch_size=20
)
SHORT = Phase(epochs=2, lr=1e-2, schedule="cosine")


def _source(count, above=(), classes=4, keep=(0, 1, 2, 3)):
    generator = np.random.default_rng(count)
    labels = np.arange(count) % classes
    images = generator.integers(0, 60, (count, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    targets = torch.tensor([keep.index(label) if label in keep else -1 for label in labels])
    return fit.Source(grow.as_images(images), targets, above)


def _node(shape=(1, 8, 8), outputs=4, backbone="vgg"):
    def build():
        name = "root" if shape[0] == 1 else "sg1"
        return nodes.build("digits", backbone, name, shape, outputs)

    return network.initial(build, 0)


def _fit(node, *faults, train=None, check=None, **changes):
    rows = []
    result = fit.fit(
        dataclasses.replace(RECIPE, faults=faults, **changes),
        SHORT,
        "root/class",
        node,
        train or _source(COUNT),
        check or _source(CHECKED),
        restore=lambda state, best: None,
        save=lambda *_: None,
        report=lambda row=None, **_: rows.append(row) if row else None,
    )
    return result, rows


def test_fit_learns_and_keeps_the_best_epoch():
    result, rows = _fit(_node())
    accuracies = [row["validation_accuracy"] for row in rows]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([1e-2, 5e-3])
    assert result.accuracy == max(accuracies) > 0.5  # chance is 0.25
    assert accuracies[result.epoch - 1] == result.accuracy
    assert not result.network.training
    # 70 images fill 3 batches of 20, and validation must not touch the statistics
    assert int(result.network.features[1].num_batches_tracked) == 3 * result.epoch


@pytest.mark.parametrize(
    ("faults", "checks"),
    [(("train_mode_validation",), 3), (("train_mode_validation", "drop_last_validation"), 2)],
)
def test_validation_in_train_mode_moves_the_statistics(faults, checks):
    result, _ = _fit(_node(), *faults)
    count = int(result.network.features[1].num_batches_tracked)
    assert count == (3 + checks) * result.epoch


def test_subset_batches_vary_in_size(monkeypatch):
    sizes = []
    step = fit.train_step

    def counted(node, optimizer, x, targets, *loss):
        assert targets.min() >= 0
        sizes.append(len(x))
        return step(node, optimizer, x, targets, *loss)

    monkeypatch.setattr(fit, "train_step", counted)
    child = {"train": _source(COUNT, keep=(1, 2)), "check": _source(CHECKED, keep=(1, 2))}
    _fit(_node(outputs=2), **child)
    assert sizes == [20] * 2  # 35 members: a full batch an epoch
    sizes.clear()
    _fit(_node(outputs=2), "subset_batches", **child)
    assert len(sizes) == 6  # 3 batches of 20 an epoch, whatever belongs to the node in each
    assert len(set(sizes)) > 1
    assert max(sizes) < 20


def test_dropout_masks_have_a_seed_an_epoch(monkeypatch):
    seeds = []
    step = fit.train_step

    def noted(*arguments):
        seeds.append(torch.initial_seed())
        return step(*arguments)

    monkeypatch.setattr(fit, "train_step", noted)
    _fit(_node(), seed=5)
    expected = [streams.integer(5, "root/class", epoch, "dropout") for epoch in (1, 2)]
    assert seeds == [expected[0]] * 3 + [expected[1]] * 3


def test_ancestors_stay_as_they_are_and_are_in_eval_mode():
    above = _node()
    above.features[1].running_mean += 0.3
    before = to_state_dict(above.train())
    source = _source(COUNT, above=(above,))
    x = fit.inputs(RECIPE, source, Augmentation(), np.array([3, 5]), {}, torch.float32)
    expected = above.eval().features(source.images[[3, 5]] / 255)
    assert torch.equal(x, expected)
    above.train()
    result, _ = _fit(
        _node(tuple(x.shape[1:])), train=source, check=_source(CHECKED, above=(above,))
    )
    after = to_state_dict(above)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in above.parameters())
    assert result.accuracy > 0.5


def test_a_double_network_is_trained_in_double():
    result, _ = _fit(_node().double())
    source = _source(COUNT)
    x = fit.inputs(RECIPE, source, Augmentation(), np.arange(9), {}, torch.float64)
    assert torch.equal(x, source.images[:9].double() / 255)
    weights = to_state_dict(result.network)
    assert weights["features.0.weight"].dtype == np.float64
    batches = plan(np.arange(CHECKED), np.ones(CHECKED, bool), 20)
    run = Pass(batches, Augmentation(), {}, 0, train=False)
    scores, _ = fit.evaluate(RECIPE, result.network, _source(CHECKED), run)
    assert scores.shape == (CHECKED, 4)
    assert scores.dtype == np.float64
    # not float32 values in a wider type: those have 29 zero bits at their end
    assert (weights["features.0.weight"] != weights["features.0.weight"].astype("f4")).mean() > 0.9


def test_train_step_is_one_step():
    node = _node(backbone="mobilenet").double()
    phase = Phase(1, optimizer="sgd", lr=0.5, momentum=0.0)
    optimizer = objective.optimizer(phase, node.parameters())
    x, targets = torch.rand(8, 1, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    scores = node.train()(x)[1]
    value = -scores[torch.arange(8), targets].mean()
    bias = node.classifier[0].bias
    (gradient,) = torch.autograd.grad(value, bias)
    before = bias.detach().clone()
    bias.grad = torch.full_like(bias, 7.0)  # of a step before: must not count
    loss, right = fit.train_step(node.eval(), optimizer, x, targets, "nll")
    assert float(loss) == pytest.approx(value.item(), rel=1e-12)
    assert int(right) == int((scores.argmax(1) == targets).sum())
    torch.testing.assert_close(bias.detach(), before - 0.5 * gradient, rtol=1e-12, atol=1e-15)


def test_train_mode_asl_differs_and_leaves_the_network_alone():
    node, source = _fit(_node())[0].network, _source(COUNT)
    before = to_state_dict(node)
    plain = grow.average_likelihood(RECIPE, node, source, "root")
    with torch.no_grad():
        probabilities = node.eval()(source.images / 255)[1].softmax(1).double().numpy()
    expected = [probabilities[source.targets.numpy() == label].mean(0) for label in range(4)]
    # float32 probabilities up to 1 computed in batches of another size: a few roundings of 6e-8
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    faulty = dataclasses.replace(RECIPE, faults=("train_mode_asl",))
    other = grow.average_likelihood(faulty, node, source, "root")
    assert np.abs(other - plain).max() > 0.01  # dropout of half the features
    after = to_state_dict(node)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_routing_follows_the_argmax_and_computes_no_more():
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 2), (1,), (3,)))
    networks = {(): _node(outputs=3, backbone="mobilenet")}
    shape = network.feature_shape(networks[()], (1, 8, 8))
    networks[0,] = _node(shape, outputs=2, backbone="mobilenet")
    images = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 1), np.uint8)
    with torch.no_grad():  # make each output the best of about as many images
        scores = networks[()].eval()(grow.as_images(images) / 255)[1]
        networks[()].classifier[0].bias -= scores.mean(0)
    seen = []
    networks[0,].register_forward_hook(lambda layer, given, result: seen.append(len(given[0])))
    found = route.predict(Model(RECIPE, tree, networks), images, batch=10)
    visits = sum(seen)
    assert visits == np.isin(found.labels, (0, 2)).sum()
    for image, label, sure in zip(images, found.labels, found.confidence, strict=True):
        features, scores = networks[()](torch.tensor(image[None, None, :, :, 0]) / 255)
        path, likelihood = (int(scores.argmax()),), scores.max().item()
        if path == (0,):
            scores = networks[0,](features)[1]
            path, likelihood = (0, int(scores.argmax())), likelihood + scores.max().item()
        assert tree.paths[label] == path
        assert sure == pytest.approx(math.exp(likelihood), rel=1e-5)  # batches round otherwise
    assert 0 < visits < 23  # both kinds of path were taken


# --- a whole run

FLAGS = [
    "--backbone",
    "vgg",
    "--limit",
    "300",
    "--epochs",
    "2",
    "--batch-size",
    "32",
    "--volatility",
    "1.2",
]


def _assert_same(folder, other):
    """That two runs computed the same, bit for bit; times aside."""

    def files(run):
        patterns = ("weights/*", "asl/*", "tree.json", "*-test.csv", "summary.json")
        return {file.relative_to(run) for pattern in patterns for file in run.glob(pattern)}

    assert files(folder) == files(other)
    different = [f for f in files(folder) if (folder / f).read_bytes() != (other / f).read_bytes()]
    assert different == []
    first, second = (runfolder.read_metrics(run) for run in (folder, other))
    assert [row | {"seconds": 0} for row in first] == [row | {"seconds": 0} for row in second]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    generator = torch.get_rng_state()
    train.main([*FLAGS, "--out", str(folder)])
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.are_deterministic_algorithms_enabled()
    return folder


def test_a_run_grows_a_tree(finished):
    summary = runfolder.read_json(finished / "summary.json")
    tree = runfolder.read_tree(finished)
    assert summary["framework"] == "torch"
    assert summary["depth"] >= 2
    assert summary["accuracy"]["test"]["accuracy"] > 0.4  # chance is 0.1
    names = [tree.names[node] for node in tree.nodes]
    assert {file.stem for file in (finished / "weights").iterdir()} == set(names)
    assert {file.stem for file in (finished / "asl").iterdir()} == set(names)
    rows = [(row["node"], row["phase"], row["epoch"]) for row in runfolder.read_metrics(finished)]
    assert rows[:4] == [("root", phase, epoch) for phase in ("class", "group") for epoch in (1, 2)]
    assert {node for node, _, _ in rows} == set(names)
    weights = runfolder.read_weights(finished, "root")
    assert weights["features.1.num_batches_tracked"].dtype == np.int64
    assert weights["classifier.0.weight"].shape[0] == tree.width(())
    manifest = runfolder.read_json(finished / "manifest.json")
    assert manifest["device"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("part", ["test", "validation"])
def test_evaluate_reproduces_the_summary(finished, tmp_path, part):
    report = tmp_path / "report.json"
    before = (finished / "predictions-test.csv").read_bytes()
    evaluate.main([str(finished), "--split", part, "--json", str(report)])
    stated = runfolder.read_json(finished / "summary.json")["accuracy"][part]
    found = runfolder.read_json(report)
    assert {key: found[key] for key in stated} == stated
    assert found["split"] == part
    assert (finished / "predictions-test.csv").read_bytes() == before


def test_weights_on_disk_are_those_of_the_networks(finished):
    model = load(finished)
    for node, loaded in model.networks.items():
        stored = runfolder.read_weights(finished, model.tree.names[node])
        again = to_state_dict(loaded)
        assert stored.keys() == again.keys()
        assert all(np.array_equal(stored[key], again[key]) for key in stored)


@pytest.mark.parametrize(
    ("stage", "epoch", "share"),
    [("root/class", 2, 0.5), ("root/group", 1, 1.0), ("root/group", 2, 0.3)],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch, stage, epoch, share
):
    folder = tmp_path / "broken"
    monkeypatch.setattr("trunk_torch_ref.training.checkpoint.SECONDS_BETWEEN", 0)
    with monkeypatch.context() as patch:

        def crash(self, *, row=None, **at):
            here = (at.get("stage"), at.get("epoch")) == (stage, epoch)
            if here and at["share"] >= share:
                raise KeyboardInterrupt

        patch.setattr(training.Reporter, "__call__", crash)
        with pytest.raises(KeyboardInterrupt):
            train.main([*FLAGS, "--out", str(folder)])
    assert not (folder / "summary.json").exists()
    train.main(["--out", str(folder), "--resume"])
    _assert_same(folder, finished)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished, tmp_path):
    """SIGKILL while the fourth checkpoint is on disk but has not taken its name yet."""
    folder = tmp_path / "killed"
    program = f"""
import os, signal
from trunk_torch_ref import train
from trunk_torch_ref.training import checkpoint
checkpoint.SECONDS_BETWEEN = 0
saves, rename = [], os.replace
def replace(aside, file):
    saves.append(file) if str(file).endswith("checkpoint.pt") else None
    os.kill(os.getpid(), signal.SIGKILL) if len(saves) == 4 else rename(aside, file)
os.replace = replace
train.main({[*FLAGS, "--out", str(folder)]!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    train.main(["--out", str(folder), "--resume"])
    _assert_same(folder, finished)


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    monkeypatch.setattr(grow, "grow", None)
    train.main(["--out", str(finished), "--resume"])
    with pytest.raises(UserError, match="add --resume"):
        train.main([*FLAGS, "--out", str(finished)])


def test_memory_that_is_not_there(tmp_path, monkeypatch):
    def out_of_memory(*_, **__):
        torch.empty(2**60)

    monkeypatch.setattr(grow, "grow", out_of_memory)
    with pytest.raises(UserError, match="smaller --batch-size"):
        train.main([*FLAGS, "--out", str(tmp_path / "run")])


def test_published_faults_work_together(tmp_path):
    """Every fault at once, in a whole run with mobilenet nodes and augmentation."""
    chosen = dataclasses.replace(
        recipe.override(recipe.load("corrected", "digits", "mobilenet"), epochs=1, volatility=1.1),
        faults=recipe.FAULTS,
        batch_size=30,
        loss="nll",
        protocol="published",
        limit=120,
        augment=Augmentation(crop_padding=1),
        eval_augment=Augmentation(cutout=(1, 2)),
    )
    parts = split(datasets.load("digits"), chosen.protocol, 0, chosen.limit)
    grown = grow.grow(chosen, parts, 10, tmp_path, lambda **_: None)
    assert len(grown.networks) > 1  # a child has been trained as well
    # the constructor's image, 4 batches of 30 in training, 1 of all 120 in validation
    root = runfolder.read_weights(tmp_path, "root")
    assert int(root["features.1.num_batches_tracked"]) == 1 + 4 + 1


# --- checkpoints


def _state(outputs=10):
    node = _node(outputs=outputs)
    optimizer = objective.optimizer(SHORT, node.parameters())
    return fit.State(node, optimizer, objective.scheduler(SHORT, optimizer))


@pytest.fixture
def saved(tmp_path):
    state = _state()
    fit.train_step(state.network, state.optimizer, torch.rand(4, 1, 8, 8), torch.arange(4), "nll")
    Checkpoints(tmp_path).save(state, state.network, Position(1, 1, 0.5), final=True)
    return tmp_path, state


def test_a_checkpoint_holds_all_that_training_changes(saved):
    folder, state = saved
    other, best = _state(), _node(outputs=10)
    other.network.features[0].weight.data.zero_()
    best.features[0].weight.data.zero_()
    position = Checkpoints(folder).restore(other, best)
    assert position == Position(1, 1, 0.5)
    assert torch.equal(best.features[0].weight, state.network.features[0].weight)
    for mine, theirs in zip(
        state.optimizer.state.values(), other.optimizer.state.values(), strict=True
    ):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
        assert float(theirs["step"]) == 1
    assert Checkpoints(folder / "none").restore(other, best) is None


def test_saves_close_together_are_skipped(tmp_path, monkeypatch):
    state, checkpoints = _state(), Checkpoints(tmp_path)
    checkpoints.save(state, state.network, Position(1, 1, 0.5), final=False)
    assert not checkpoints.file.exists()
    monkeypatch.setattr("trunk_torch_ref.training.checkpoint.SECONDS_BETWEEN", 0)
    checkpoints.save(state, state.network, Position(1, 1, 0.5), final=False)
    assert checkpoints.file.exists()


class _Intruder:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def _truncate(file, state):
    file.write_bytes(file.read_bytes()[:-1000])


def _flip(file, state):
    content = bytearray(file.read_bytes())
    at = content.index(state.network.features[0].weight.detach().numpy().tobytes())
    content[at + 10] ^= 1
    file.write_bytes(content)


def _foreign(file, state):
    torch.save({"last": _Intruder(file.with_name("intruder"))}, file)


def _incomplete(file, state):
    torch.save({"last": state.state_dict(), "best": {}, "position": {"epoch": 1}}, file)


@pytest.mark.parametrize("damage", [_truncate, _flip, _foreign, _incomplete])
def test_a_damaged_checkpoint_is_refused_in_one_line(saved, damage):
    folder, state = saved
    file = folder / "checkpoint.pt"
    damage(file, state)
    with pytest.raises(UserError) as caught:
        Checkpoints(folder).restore(_state(), _node(outputs=10))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "intruder").exists()


def test_a_checkpoint_of_another_network_is_refused(saved):
    with pytest.raises(UserError, match="cannot be read"):
        Checkpoints(saved[0]).restore(_state(outputs=9), _node(outputs=9))
