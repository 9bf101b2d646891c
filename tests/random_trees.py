"""Untrained trees on digits, of two levels, as run folders: weights at random, nothing trained.

Batch norm has statistics and variances near its epsilon, so that a wrong fold, or a wrong epsilon,
shows; classifiers are centred, so that the images go every way.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from conftest import fixed_groups
from flax import nnx

from data.base import writing
from data.images.augmentation import Augmentation
from data.images.datasets import load
from data.images.splits import split
from data.inference import curve, stopping
from data.inference.stopping import Stopping
from data.recipes import recipe as recipes
from data.recipes.recipe import Exits
from data.run import results, runfolder
from data.tree import hierarchy, metrics
from data.tree.hierarchy import ROOT
from trunk_jax import framework, nodes
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.layers.basic import BatchNorm
from trunk_jax.network.augment import prepare
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import Network, apply, merge
from trunk_jax.network.network import split as as_value

TREE = hierarchy.regroup(hierarchy.bare(10), ROOT, fixed_groups(range(10)))
WITH_EXITS = replace(TREE, exits=True)


def recipe_of(backbone):
    """The recipe `efficient`, or `corrected` where that has no such backbone; it normalises."""
    name = "efficient" if backbone in ("resnet", "monolith") else "corrected"
    return replace(recipes.load(name, "digits", backbone), mean=(0.3,), std=(0.4,))


def networks(recipe, tree, images, seed=0):
    """Random networks, and their decisions on the images, which are spread over all outputs."""
    rng, found = np.random.default_rng(seed), {}
    labels, places = np.full(len(images), -1), {ROOT: np.arange(len(images))}
    inputs = {ROOT: prepare(jnp.asarray(images), {}, Augmentation(), recipe.mean, recipe.std)}
    for node in tree.nodes:
        x = inputs[node]
        module = nodes.build(
            recipe.dataset,
            recipe.backbone,
            tree.names[node],
            x.shape[1:],
            tree.width(node),
            rng=rng,
        )
        for _, layer in nnx.iter_modules(module):
            if isinstance(layer, BatchNorm):
                size = layer.scale.shape
                layer.scale.set_value(
                    _draw(rng.uniform(0.5, 1.5, size) * rng.choice((-1, 1), size))
                )
                layer.bias.set_value(_draw(rng.normal(0, 0.3, size)))
                layer.mean.set_value(_draw(rng.normal(0, 0.3, size)))
                layer.var.set_value(_draw(rng.uniform(5e-5, 0.3, size)))
        network = as_value(module)
        (features, scores), _ = jax.jit(apply)(network, x)
        found[node] = _centred(network, np.asarray(scores))
        centred = metrics.softmax(np.asarray(scores - scores.mean(0)))
        chosen = curve.branch_shares(tree, node, centred).argmax(1)
        for output in range(len(tree.branches(node))):
            child, mine = (*node, output), np.flatnonzero(chosen == output)
            inputs[child], places[child] = features[mine], places[node][mine]
            if child in tree.paths:
                labels[places[child]] = tree.paths.index(child)
    return found, labels


def _draw(values):
    return jnp.asarray(values, jnp.float32)


def _centred(network: Network, scores) -> Network:
    """The network with the mean of its scores taken from its classifier's bias."""
    module = merge(network)
    layer = next(layer for layer in module.classifier if hasattr(layer, "bias"))
    layer.bias.set_value(layer.bias[...] - _draw(scores.mean(0)))
    return as_value(module)


def test_images():
    """The 359 test images of digits and their labels."""
    recipe = recipe_of("vgg")
    return split(load("digits"), recipe.protocol, recipe.seed, recipe.limit).test


def stopping_half(model, images):
    """A rule by which about half of the images stop at the root of a tree with exits.

    Scores are divided by so much that probabilities are neither all alike nor 0 or 1.
    """
    scores = route.scores(model, images)[ROOT]
    heat = float(scores.std(1).mean()) / 2
    sure = metrics.softmax(scores / heat).max(1)
    return Stopping(
        dict.fromkeys((model.tree.names[n] for n in model.tree.nodes), heat),
        {"root": float(np.sort(sure)[len(sure) // 2 :][:2].mean())},  # no image's own
    )


def write_run(folder, backbone, flat=False, exits=False):
    """A finished run in `folder`, as `train` leaves it but for what only a training has.

    With `exits` its nodes score classes, and half of the images stop at the root.
    """
    recipe, tree = recipe_of(backbone), hierarchy.bare(10) if flat else TREE
    if exits:
        recipe, tree = replace(recipe, exits=Exits()), WITH_EXITS
    dataset = load("digits")
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    found, labels = networks(recipe, tree, parts.test.images)
    if exits:
        model = Model(recipe, tree, found)
        labels = route.predict(model, parts.test.images).labels
        stopping.write(folder, stopping_half(model, parts.test.images), {"for": "tests"})
    config = {"format": runfolder.FORMAT, "framework": "jax", "recipe": recipes.to_json(recipe)}
    writing.write_json(folder / "config.json", config)
    runfolder.write_tree(folder, tree)
    writing.write_bytes(folder / "metrics.jsonl", b"")
    (folder / "asl").mkdir()
    for node, network in found.items():
        runfolder.write_weights(folder, tree.names[node], to_state_dict(network))
    costs = framework.costs(Model(recipe, tree, found))
    summary = results.summary("jax", recipe, dataset, tree, costs, {"test": (parts.test, labels)})
    writing.write_json(folder / "summary.json", summary)
    writing.write_json(folder / "manifest.json", _manifest(dataset, parts))
    return folder


def _manifest(dataset, parts):
    return {
        "started": "2026-01-01T00:00:00Z",
        "command": ["train"],
        "flags": {"seed": 0},
        "python": "3.11",
        "packages": {},
        "device": {"kind": "cpu"},
        "machine": {"system": "Linux", "processor": "any", "cores": 2},
        "git": {"commit": "0" * 40, "modified": False},
        "dataset": {
            "name": "digits",
            "version": dataset.version,
            "title": dataset.title,
            "data_dir": None,
            "sha256": dataset.fingerprint,
            "images": {p: len(getattr(parts, p).labels) for p in ("train", "validation", "test")},
        },
    }


# --- faults planted in what is exported

FAULTS = ("children", "normalisation", "epsilon", "fold", "order")


def plant(monkeypatch, fault):
    """Make the ONNX that is written wrong, in one of the ways of `FAULTS`."""
    from trunk_jax.interchange import layers
    from trunk_jax.interchange import tree as whole
    from trunk_jax.interchange.builder import Builder

    if fault == "children":  # the answers of the two children are exchanged
        real = whole._decisions
        other = {(0,): (5,), (5,): (0,)}  # of two outputs each
        monkeypatch.setattr(
            whole, "_decisions", lambda tree, node: real(tree, other.get(node, node))
        )
    elif fault == "normalisation":
        real = whole._normalised
        monkeypatch.setattr(whole, "_normalised", lambda graph, *_: real(graph, (), (), 3))
    elif fault == "epsilon":
        real = layers.gain_and_shift
        monkeypatch.setattr(layers, "gain_and_shift", lambda norm: real(_WithEpsilon(norm, 1e-3)))
    elif fault == "fold":  # the mean is left out
        real = layers.gain_and_shift
        monkeypatch.setattr(
            layers, "gain_and_shift", lambda norm: (real(norm)[0], np.asarray(norm.bias[...]))
        )
    else:  # features of another image: rows are put back in the wrong order
        real = Builder.add

        def add(self, op, *inputs, **attributes):
            if op == "ScatterND":
                backwards = self.constant([-1], "step", np.int64)
                ends = [self.constant([v], "end", np.int64) for v in (-1, -(2**62), 0)]
                inputs = (
                    *inputs[:2],
                    real(self, "Slice", inputs[2], ends[0], ends[1], ends[2], backwards),
                )
            return real(self, op, *inputs, **attributes)

        monkeypatch.setattr(Builder, "add", add)


class _WithEpsilon:
    """A batch norm with another epsilon."""

    def __init__(self, norm, eps):
        self.scale, self.bias, self.mean, self.var = norm.scale, norm.bias, norm.mean, norm.var
        self.eps = eps
