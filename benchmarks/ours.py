"""The JAX side: for each case a function that runs it once and returns seconds a unit."""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import (
    EPOCH_BATCHES,
    STEP_BATCH,
    TREE_BATCH,
    Case,
    classes,
    images,
    labels,
    node_of,
    recipe_of,
    split_of,
    tree_of,
)
from benchmarks.cases import shape as shape_of
from data.base import writing
from data.run import runfolder
from data.training.stages import Stage
from data.tree import hierarchy
from trunk_jax import nodes
from trunk_jax.inference import route
from trunk_jax.inference.microbatched import infer
from trunk_jax.inference.model import Model
from trunk_jax.inference.single import compile_single
from trunk_jax.layers.basic import Mode
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import Network, cost, input_shape, split
from trunk_jax.training import feature_cache, fit
from trunk_jax.training.grow import grow, initial_network
from trunk_jax.training.objective import optimizer

STEPS, ACCELERATED_STEPS = 4, 32
Round = Callable[[], float]


def prepare(case: Case, form: str, folder: Path) -> Round:
    """The function that times one round of the case; all that is compiled is compiled here."""
    kinds = {
        "step": _step,
        "forward": _forward,
        "node": _node,
        "epoch": _epoch,
        "deep": _epoch,
        "tree": _tree,
        "image": _image,
        "grow": _grow,
    }
    with _arithmetic(case):
        run = kinds[case.kind](case, form, folder)

    def timed() -> float:
        with _arithmetic(case):  # what is compiled in the first round is compiled for it
            return run()

    return timed


def _arithmetic(case: Case) -> AbstractContextManager[None]:
    """The precision of float32 products that a case asks for."""
    names = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
    return jax.default_matmul_precision(names[case.precision]) if case.precision else nullcontext()


def _steps() -> int:
    """How many a timed program has: on an accelerator so many that its start counts for little."""
    return STEPS if jax.default_backend() == "cpu" else ACCELERATED_STEPS


def _timed(run: Callable[[], object], units: int) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return (time.perf_counter() - began) / units


def root_of(case: Case) -> Network:
    faults, rng = recipe_of(case).faults, np.random.default_rng(0)
    where = (case.dataset, case.backbone, "root", shape_of(case))
    return split(nodes.build(*where, classes(case), faults=faults, rng=rng))


def inputs_of(case: Case, count: int) -> jax.Array:
    return jnp.asarray(images(case, count), jnp.float32) / 255


def _step(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image, in a compiled loop whose length is an argument, as an epoch is."""
    network, recipe = root_of(case), recipe_of(case)
    phase = recipe.root.class_phase
    if case.precision == "bfloat16":
        phase = replace(phase, precision="bfloat16")
    program = fit.program_of(recipe, phase, network)
    x, targets = inputs_of(case, case.images), jnp.asarray(labels(case, case.images), jnp.int32)
    count = _steps()

    @jax.jit
    def steps(state, x, targets, count):
        def body(step, carry):
            mode = Mode(True, key=jax.random.fold_in(jax.random.key(0), step))
            rate = jnp.asarray(phase.lr, x.dtype)
            return fit.train_step(program, carry[0], x, targets, mode, rate)[:2]

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros((), x.dtype)))

    state = fit.State(network, optimizer(phase).init(network.params))
    return partial(_timed, lambda: steps(state, x, targets, count), count * case.images)


def _forward(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image."""
    network, x = root_of(case), inputs_of(case, case.images)
    if case.precision == "bfloat16":
        network, x = fit.rounded((network, x))
    run = jax.jit(infer)
    return partial(_timed, lambda: run(network, x), case.images)


def _grown(case: Case) -> dict[hierarchy.Node, Network]:
    tree, recipe = tree_of(case), recipe_of(case)
    networks: dict[hierarchy.Node, Network] = {}
    for node in tree.nodes:
        networks[node] = initial_network(recipe, tree, node, "group", networks, shape_of(case))
    return networks


def write_tree(case: Case, folder: Path) -> None:
    """The case's untrained tree as files, for the other side to load."""
    tree = tree_of(case)
    writing.write_json(folder / "config.json", {"format": runfolder.FORMAT})
    for node, network in _grown(case).items():
        runfolder.write_weights(folder, tree.names[node], to_state_dict(network))


def _node(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image of an epoch as `fit` runs it: training, and validation on a batch."""
    network, recipe = root_of(case), recipe_of(case)
    recipe = replace(recipe, batch_size=STEP_BATCH, eval_batch_size=TREE_BATCH, faults=())
    phase = replace(recipe.root.class_phase, epochs=1)
    train, check = (
        fit.Source(
            jnp.asarray(images(case, count)), jnp.asarray(labels(case, count), jnp.int32), ()
        )
        for count in (EPOCH_BATCHES * STEP_BATCH, TREE_BATCH)
    )

    def run():
        return fit.fit(
            recipe,
            phase,
            "root/class",
            network,
            train,
            check,
            restore=lambda *_: None,
            save=lambda *_: None,
            report=lambda **_: None,
        ).network.params

    return partial(_timed, run, EPOCH_BATCHES * STEP_BATCH)


def _epoch(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image of a child's epoch, its inputs kept or not."""
    tree, recipe, networks = tree_of(case), recipe_of(case), _grown(case)
    node, count = node_of(case), EPOCH_BATCHES * STEP_BATCH
    mine = np.array(tree.members(node))
    targets = np.resize(tree.targets(node)[mine], count)
    stage = Stage(tree, node, "group")
    phase = replace(stage.settings(recipe), epochs=2)
    above = tuple(networks[ancestor] for ancestor in hierarchy.ancestors(node))
    source = fit.Source(jnp.asarray(images(case, count)), jnp.asarray(targets, jnp.int32), above)
    program = fit.program_of(recipe, phase, networks[node])
    if form != "ancestors":
        source = feature_cache.cached_source(program, source, recipe.augment, 2, lambda note: None)
        assert source.cached is not None
    index = jnp.arange(count).reshape(EPOCH_BATCHES, STEP_BATCH)
    steps = fit.Steps(
        policy=recipe.augment,
        padded=False,
        index=index,
        valid=jnp.ones(index.shape, bool),
        draws={},
        key=jax.random.key(0),
        rates=jnp.full(EPOCH_BATCHES, phase.lr, jnp.float32),
    )

    def run():
        network = jax.tree.map(jnp.copy, networks[node])  # the state is donated
        state = fit.State(network, optimizer(phase).init(network.params))
        sums = (jnp.zeros(()), jnp.zeros((), jnp.int32))
        return fit.train_steps(program, state, sums, source, steps, 0, EPOCH_BATCHES)

    return partial(_timed, run, count)


def least_ratio(case: Case) -> float:
    """By multiply-adds: a child's step (three times its forward pass) without and with ancestors.

    Less than this cannot be had, were every multiply-add equally dear.
    """
    networks, shape = _grown(case), shape_of(case)
    node = node_of(case)

    def multiply_adds(of: hierarchy.Node) -> int:
        return cost(networks[of], input_shape(networks, of, shape))["multiply_adds"]

    above = sum(map(multiply_adds, hierarchy.ancestors(node)))
    step = 3 * multiply_adds(node)
    return step / (step + above)


def _grow(case: Case, form: str, folder: Path) -> Round:
    """Seconds that a whole tree takes, compilation included, on the dataset itself."""
    recipe = recipe_of(case)
    splits = split_of(recipe)

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            began = time.perf_counter()
            grow(recipe, splits, classes(case), Path(own), lambda **_: None)
            return time.perf_counter() - began

    return run


def platform() -> str:
    """What JAX computes on: cpu, gpu or tpu."""
    return jax.default_backend()


def _tree(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image."""
    tree, recipe, networks, pixels = (
        tree_of(case),
        recipe_of(case),
        _grown(case),
        images(case, 1024),
    )
    run = partial(route.predict, Model(recipe, tree, networks), pixels, TREE_BATCH)
    return partial(_timed, lambda: run().labels, len(pixels))


def _image(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image, one at a time."""
    pixels = images(case, 50)
    run = compile_single(Model(recipe_of(case), tree_of(case), _grown(case)))
    return partial(_timed, lambda: [jax.block_until_ready(run(image)) for image in pixels], 50)


def multiply_adds(case: Case) -> int:
    """Of the root, for one image."""
    return cost(root_of(case), shape_of(case))["multiply_adds"]


def peak() -> float:
    """Multiply-adds a second of a large float32 matrix product."""
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    return size**3 / min(_timed(lambda: product(x, x), 1) for _ in range(5))
