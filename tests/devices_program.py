"""Trainings on one device and on many, for `test_training_devices.py`: run with the file to write.

It needs a process of its own: how many devices there are is fixed when JAX starts.
"""

import dataclasses
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from data.images.datasets import Examples
from data.images.splits import Splits
from data.recipes import recipe
from data.recipes.recipe import Phase
from data.tree.hierarchy import Tree
from trunk_jax import nodes
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.machine import devices, hosts, memory
from trunk_jax.network.network import feature_shape, split
from trunk_jax.training import fit, grow, joint
from trunk_jax.training.feature_cache import cached_source

PHASE = Phase(epochs=2, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3)
TREE = Tree(((0, 0), (1,), (0, 1), (2, 0), (2, 1)), {(): "root", (0,): "a", (2,): "b"})
RECIPE = dataclasses.replace(recipe.load("corrected", "digits", "vgg"), eval_batch_size=25)


def examples(count, classes):
    """Images whose class is where they are bright."""
    rng = np.random.default_rng(count)
    labels = (np.arange(count) % classes).astype(np.int32)
    images = rng.integers(0, 120, (count, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label : label + 3] += 90
    return Examples(images, labels)


def network(name, shape, outputs, dtype):
    rng = np.random.default_rng(len(name))
    made = split(nodes.build("digits", "vgg", name, shape, outputs, rng=rng))
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, made
    )


def child(dtype):
    """A node below the root, with dropout: batches of up to 20 images, padded, kept inputs, ASL.

    No number of devices divides 20 but 2, 4, 5 and 10.
    """
    settings = dataclasses.replace(RECIPE, batch_size=20, faults=("subset_batches",))
    own, root = network("sg1", (4, 4, 32), 4, dtype), network("root", (8, 8, 1), 4, dtype)
    program, rows = fit.program_of(settings, PHASE, own), []

    def source(count):
        found = examples(count, 5)  # the images of the fifth class are not the node's
        targets = np.where(found.labels < 4, found.labels, -1)
        return fit.Source(jnp.asarray(found.images), jnp.asarray(targets), (root,))

    kept = [
        cached_source(program, source(count), settings.augment, 2, lambda **_: None)
        for count in (70, 40)
    ]
    assert kept[0].cached is not None
    result = fit.fit(
        settings,
        PHASE,
        "sg1/class",
        own,
        *kept,
        restore=lambda *_: None,
        save=lambda *_: None,
        report=lambda row=None, **_: rows.append(row) if row else None,
    )
    asl = grow.average_likelihood(settings, program, result.network, source(70), "sg1")
    return {"network": result.network, "rows": rows, "asl": asl}


def tree(dtype):
    """Three nodes together, on augmented images; and routing."""
    augment = recipe.load("published", "cifar10", "vgg").augment
    settings = dataclasses.replace(RECIPE, batch_size=22, augment=augment)
    networks, shapes = {}, {(): (8, 8, 1)}
    for node in TREE.nodes:
        if node:
            shapes[node] = feature_shape(networks[node[:-1]], shapes[node[:-1]])
        width = TREE.width(node)
        networks[node] = network(TREE.names[node], shapes[node], width, dtype)
    rows, splits = [], Splits(examples(66, 5), examples(45, 5), examples(45, 5))
    trained = joint.fit_tree(
        settings,
        PHASE,
        "tree/joint",
        TREE,
        networks,
        splits,
        restore=lambda *_: None,
        save=lambda *_: None,
        report=lambda row=None, **_: rows.append(row) if row else None,
    )

    def follow(networks, part):
        return route.predict(Model(settings, TREE, networks), part, 8)

    found = devices.predict(follow, networks, examples(101, 5).images, 8)
    named = {TREE.names[node]: trained[node] for node in trained}
    routed = {"labels": found.labels, "confidence": found.confidence}
    return {"network": named, "rows": rows, "routed": routed}


CASES = {
    "child64": partial(child, jnp.float64),
    "child32": partial(child, jnp.float32),
    "tree64": partial(tree, jnp.float64),
}


def measure(case, some):
    """Every number that a case gives on these devices, and what each does in a training step."""
    programs = []
    original = memory.compile_within

    def remember(*arguments, **more):
        programs.append(original(*arguments, **more))
        return programs[-1]

    memory.compile_within = remember
    with devices.using(some):
        values = CASES[case]()
    memory.compile_within = original
    for row in values["rows"]:
        row["seconds"] = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(values)
    found = {f"{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
    found["flops"] = np.array(programs[0].cost_analysis()["flops"])
    return {f"{case} {len(some)} {name}": value for name, value in found.items()}


def main(file, *cases):
    """On one device and on all; of several processes, on all of theirs."""
    jax.config.update("jax_enable_x64", True)
    everything = devices.choose("all", distributed="SLURM_JOB_ID" in os.environ)
    counts = (everything,) if hosts.several() else (everything[:1], everything)
    found = {}
    for case in cases:
        for some in counts:
            found |= measure(case, some)
    if hosts.first():
        np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
