"""Joint training of a whole tree: its batches, its loss, and that a run with it resumes."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import fixed_groups

from data.base.errors import UserError
from data.recipes import recipe as recipes
from data.training import joint
from data.tree import grouping, hierarchy, metrics
from data.tree.hierarchy import Tree

# root: leaf 1 and two children, {0, 2} and {3, 4, 5}; the latter with a child {4, 5} of its own
TREE = Tree(
    ((0, 0), (1,), (0, 1), (2, 0), (2, 1, 0), (2, 1, 1)),
    {(): "root", (0,): "a", (2,): "b", (2, 1): "c"},
)
LABELS = np.repeat(np.arange(6), [40, 80, 40, 80, 20, 60])


def test_layout_gives_every_node_one_slice_of_its_own_images():
    layout = joint.layout(TREE, LABELS, 32)
    # own groups in depth-first order: root {1} 80, a {0,2} 80, b {3} 80, c {4,5} 80 of 320
    assert layout.counts == (8, 8, 8, 8)
    rows = {share.name: (share.start, share.stop) for share in layout.shares}
    assert rows == {"root": (0, 32), "a": (8, 16), "b": (16, 32), "c": (24, 32)}
    assert [share.parent for share in layout.shares] == [-1, 0, 0, 2]
    assert layout.shares[2].targets == (-1, -1, -1, 0, 1, 1)


@pytest.mark.parametrize("size", [9, 17, 32, 100])
def test_every_row_of_a_batch_belongs_to_the_node_whose_slice_it_is_in(size):
    recipe = recipes.load("efficient", "digits", "resnet")
    layout = joint.layout(TREE, LABELS, size)
    assert layout.width == size
    batches = joint.batches(recipe, "tree/joint", 1, TREE, layout, LABELS)
    assert batches.index.shape == (len(LABELS) // size, size)
    for share in layout.shares:
        targets = np.array(share.targets)[LABELS[batches.index[:, share.start : share.stop]]]
        assert targets.min() >= 0
    for place, share in enumerate(layout.shares):  # no image of a group twice before all once
        below = [s for s in layout.shares if s.parent == place]
        own = set(range(share.start, share.stop)) - {
            row for s in below for row in range(s.start, s.stop)
        }
        drawn = batches.index[:, sorted(own)].ravel()
        total = np.isin(LABELS, joint.own_labels(TREE, share.path)).sum()
        assert len(set(drawn)) == min(total, len(drawn))
    again = joint.batches(recipe, "tree/joint", 2, TREE, layout, LABELS)
    assert not np.array_equal(batches.index, again.index)


def test_small_groups_get_two_images_and_too_small_batches_are_refused():
    labels = np.repeat(np.arange(6), [100, 1000, 100, 1000, 1, 1])
    layout = joint.layout(TREE, labels, 32)
    assert layout.counts[3] == 2
    assert layout.width == 32
    with pytest.raises(UserError, match="at least 8"):
        joint.layout(TREE, labels, 7)


def test_balanced_batches_hold_the_classes_equally_often():
    labels = np.repeat(np.arange(6), [40, 800, 40, 400, 5, 60])
    recipe = replace(recipes.load("efficient", "digits", "resnet"), balanced=True)
    layout = joint.layout(TREE, labels, 30, balanced=True)
    # own groups in depth-first order: {1}, {0, 2}, {3}, {4, 5}: five images of each class
    assert layout.counts == (5, 10, 5, 10)
    index = joint.batches(recipe, "tree/joint", 1, TREE, layout, labels).index
    assert index.shape == (len(labels) // 30, 30)
    drawn = np.bincount(labels[index].ravel(), minlength=6)
    assert np.ptp(drawn) <= 1
    for label in (0, 4):  # rare: every image comes, none more than once oftener than another
        times = np.bincount(index[labels[index] == label], minlength=len(labels))
        assert np.ptp(times[labels == label]) <= 1
    for label in (1, 3):  # frequent: none comes twice
        rows = index[labels[index] == label]
        assert len(set(rows)) == len(rows)


def test_balanced_accuracy_is_the_mean_over_classes():
    labels, predicted = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 2, 0])
    assert metrics.accuracy(labels, predicted) == 4 / 6
    assert metrics.accuracy(labels, predicted, balanced=True) == (3 / 4 + 1 / 2) / 2


def test_flat_tree_is_one_group():
    layout = joint.layout(hierarchy.bare(10), np.arange(100) % 10, 20)
    assert layout.counts == (20,)
    assert layout.shares[0].stop == 20


def _networks(build, shape, transform):
    shapes = {(): shape}
    result = {}
    for node in TREE.nodes:
        if node:
            shapes[node] = transform(result[node[:-1]], shapes[node[:-1]])
        result[node] = build(TREE.names[node], shapes[node], TREE.width(node))
    return result


def test_loss_is_minus_the_log_probability_of_the_true_path():
    """Against routing: with no smoothing, the mean over images of -log of their own path."""
    import jax
    import jax.numpy as jnp

    from trunk_jax import nodes
    from trunk_jax.layers.basic import EVAL
    from trunk_jax.network.network import apply, feature_shape, split
    from trunk_jax.training import fit
    from trunk_jax.training import joint as jax_joint

    rng = np.random.default_rng(0)

    def build(name, shape, outputs):
        return split(nodes.build("digits", "resnet", name, shape, outputs, rng=rng))

    networks = _networks(build, (8, 8, 1), feature_shape)
    layout = joint.layout(TREE, LABELS, 16)
    recipe = recipes.load("efficient", "digits", "resnet")
    index = joint.batches(recipe, "s", 1, TREE, layout, LABELS).index[0]
    x = jnp.asarray(rng.normal(size=(16, 8, 8, 1)), jnp.float32)
    program = fit.Program(recipe.joint, "cross_entropy", (), (), "float32")
    by_name = {TREE.names[node]: network for node, network in networks.items()}
    labels = jnp.asarray(LABELS[index])
    total, (right, _) = jax_joint.objective(program, layout, by_name, x, labels, EVAL)

    answer = jax.jit(apply)
    likelihood, hits = np.zeros(16), np.ones(16, bool)
    for row, label in enumerate(LABELS[index]):
        y = x[row : row + 1]
        for depth, output in enumerate(TREE.paths[label]):
            (y, scores), _ = answer(networks[TREE.paths[label][:depth]], y)
            scores = np.asarray(scores, np.float64)[0]
            likelihood[row] += scores[output] - np.log(np.exp(scores).sum())
            hits[row] &= scores.argmax() == output
    # float32 against float64: a dozen layers of rounding
    assert float(total) == pytest.approx(-likelihood.mean(), rel=1e-5)
    assert int(right) == hits.sum()


def test_ancestors_are_trained_through_their_children():
    """The gradient of the root's stem holds what the children's losses say."""
    import torch

    from trunk_torch_ref import nodes
    from trunk_torch_ref.network.network import feature_shape
    from trunk_torch_ref.training import joint as torch_joint

    torch.manual_seed(0)
    networks = _networks(
        lambda name, shape, outputs: nodes.build("digits", "resnet", name, shape, outputs),
        (1, 8, 8),
        feature_shape,
    )
    modules = torch.nn.ModuleDict({TREE.names[node]: net for node, net in networks.items()})
    layout = joint.layout(TREE, LABELS, 16)
    recipe = recipes.load("efficient", "digits", "resnet")
    labels = torch.tensor(LABELS[joint.batches(recipe, "s", 1, TREE, layout, LABELS).index[0]])
    x = torch.randn(16, 1, 8, 8)
    value, _ = torch_joint.objective(recipe, recipe.joint, layout, modules, x, labels)
    value.backward()
    whole = modules["root"].features[0].weight.grad.clone()
    modules.zero_grad()
    _, scores = modules["root"](x)
    targets = torch.tensor(layout.shares[0].targets)[labels]
    torch.nn.functional.cross_entropy(scores, targets).backward()
    alone = modules["root"].features[0].weight.grad
    assert (whole - alone).abs().max() > 0.01 * alone.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_interrupted_joint_training_ends_with_the_same_weights(framework, tmp_path, monkeypatch):
    import importlib

    from data.images import datasets
    from data.images.splits import split
    from data.run import runfolder

    package = {"jax": "trunk_jax", "torch": "trunk_torch_ref"}[framework]
    grow = importlib.import_module(f"{package}.training.grow")
    checkpoint = importlib.import_module(f"{package}.training.checkpoint")
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(grouping, "group", fixed_groups)
    recipe = recipes.load("efficient", "digits", "resnet")
    recipe = recipes.override(recipe, epochs=1, limit=300, batch_size=32, volatility=1.0)
    recipe = replace(recipe, joint=replace(recipe.joint, epochs=3))
    splits = split(datasets.load("digits"), recipe.protocol, recipe.seed, recipe.limit)

    class Stop(Exception):
        pass

    def interrupt(stage=None, row=None, epoch=None, **_):
        if row is not None and stage == "tree/joint" and epoch == 3:
            raise Stop

    def silent(**_):
        pass

    whole = grow.grow(recipe, splits, 10, tmp_path / "whole", silent)
    with pytest.raises(Stop):
        grow.grow(recipe, splits, 10, tmp_path / "cut", interrupt)
    grow.grow(recipe, splits, 10, tmp_path / "cut", silent)
    assert len(whole.networks) == 4
    for node in whole.tree.nodes:
        name = whole.tree.names[node]
        one, other = (runfolder.read_weights(tmp_path / run, name) for run in ("whole", "cut"))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    rows = runfolder.read_metrics(tmp_path / "cut")
    assert [r["epoch"] for r in rows if r["phase"] == "joint"] == [1, 2, 3]
    assert {r["node"] for r in rows if r["phase"] == "joint"} == {"tree"}


def test_config_holds_every_setting():
    """Also those at their defaults: a later default changes no run that was started before."""
    for found in (recipes.load("published", "svhn"), recipes.load("efficient", "digits", "resnet")):
        stored = recipes.to_json(found)
        assert set(stored) == {field.name for field in dataclasses.fields(recipes.Recipe)}
        phase = {field.name for field in dataclasses.fields(recipes.Phase)}
        assert set(stored["root"]["class_phase"]) == phase
        assert recipes.from_json(json.loads(json.dumps(stored))) == found


def test_senseless_settings_are_refused():
    recipe = recipes.load("efficient", "digits", "resnet")
    for change, match in (
        ({"optimizer": "adam"}, "nesterov"),
        ({"warmup": 1.0}, "warmup"),
        ({"label_smoothing": 1.0}, "label smoothing"),
    ):
        with pytest.raises(UserError, match=match):
            recipes.check(replace(recipe, joint=replace(recipe.joint, **change)))
    with pytest.raises(UserError, match="subset_batches"):
        recipes.check(replace(recipe, faults=("subset_batches",)))


def test_one_cycle_rises_and_falls():
    from data.recipes.recipe import Phase
    from trunk_jax.training.objective import learning_rates

    rates = learning_rates(Phase(4, lr=0.5, schedule="onecycle", warmup=0.25), 10)
    assert rates[0] == pytest.approx(0.02)
    assert rates[9] == pytest.approx(0.5)
    assert rates.argmax() == 9
    assert rates[-1] == pytest.approx(0.5 / 250_000)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[9:]) < 0).all()
    # half way down
    assert rates[9 + 15] == pytest.approx(0.25, rel=1e-4)
