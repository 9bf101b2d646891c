"""Growing a tree with this framework's networks, into a run folder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from data.base import streams
from data.images.augmentation import Augmentation
from data.images.on_disk import OnDisk
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training import epochs, growth, stages
from data.training.stages import Stage
from data.tree import grouping, hierarchy, metrics
from data.tree.hierarchy import Node, Tree
from data.tree.selection import HeldOut
from trunk_jax import nodes
from trunk_jax.baselines import start as baselines
from trunk_jax.inference.model import Model
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import Network, cost, input_shape, split, warmed
from trunk_jax.training import joint
from trunk_jax.training.checkpoint import Checkpoints
from trunk_jax.training.feature_cache import cached_source
from trunk_jax.training.fit import Fitting, Program, evaluate, fitting, program_of
from trunk_jax.training.siblings import fit_all, wanted
from trunk_jax.training.source import Source
from trunk_jax.training.windows import as_array


def grow(
    recipe: Recipe,
    splits: Splits,
    classes: int,
    folder: Path,
    report: Callable[..., None],
    *,
    start: Callable[..., Network] | None = None,
    siblings: str = "auto",
    init: Model | None = None,
) -> Model:
    """Grow and train a tree; what the folder already holds is taken from there.

    `start`: makes a node's untrained network, with the arguments of `initial_network` (which
    it is by default); its type is the one that the tree is computed in. `siblings`: whether the
    children of a node are trained `together` or `alone` (`auto`: together on accelerators).
    `init`: a tree to start from, which is kept; its networks take the place of `start`'s.
    """
    start = start or initial_network
    if init is not None:
        start = partial(_its_own, init)
    if recipe.others.class_phase.precision == "bfloat16" and jax.default_backend() == "cpu":
        report(stage="training", note="bfloat16 is for GPUs; on a CPU it is slower than float32")
    networks: dict[Node, Network] = {}
    train, validation = as_array(splits.train.images), as_array(splits.validation.images)
    image_shape = splits.train.image_shape

    def source(images: Array | OnDisk, labels: np.ndarray, stage: Stage) -> Source:
        above = tuple(networks[ancestor] for ancestor in hierarchy.ancestors(stage.node))
        return Source(images, jnp.asarray(stage.targets(labels)), above)

    def fitting_of(stage: Stage, checkpoints: Checkpoints) -> Fitting:
        phase, tell = stage.settings(recipe), stages.reporter(folder, stage, report)
        network = start(recipe, stage.tree, stage.node, stage.phase, networks, image_shape)
        program = program_of(recipe, phase, network)

        def cached(images: Source, policy: Augmentation) -> Source:
            return cached_source(program, images, policy, phase.epochs, tell)

        return fitting(
            recipe,
            phase,
            str(stage),
            network,
            source(train, splits.train.labels, stage),
            source(validation, splits.validation.labels, stage),
            cache=cached,
            restore=checkpoints.restore,
            save=checkpoints.save,
            report=tell,
        )

    done: set[str] = set()

    def fit_node(stage: Stage) -> None:
        if str(stage) not in done:
            fit_nodes([stage])

    def fit_nodes(mine: Sequence[Stage]) -> None:
        tell = stages.reporter(folder, mine[0], report)
        with ExitStack() as opened:
            fittings = []
            for stage in mine:
                checkpoints = Checkpoints(stages.checkpoint_folder(folder, stage))
                fittings.append(fitting_of(stage, opened.enter_context(checkpoints)))
            results = fit_all(fittings, tell)
        for stage, result in zip(mine, results, strict=True):
            networks[stage.node] = result.network
            done.add(str(stage))

    def source_of(part: str, stage: Stage) -> Source:
        images = train if part == "train" else validation
        return source(images, getattr(splits, part).labels, stage)

    def likelihood(stage: Stage) -> np.ndarray:
        network = networks[stage.node]
        program = program_of(recipe, stage.settings(recipe), network)
        mine = source_of(epochs.likelihood_part(recipe), stage)
        return average_likelihood(recipe, program, network, mine, stage.name)

    def seen(stage: Stage) -> HeldOut:
        network = networks[stage.node]
        program = program_of(recipe, stage.settings(recipe), network)
        return held_out(recipe, program, network, source_of("validation", stage), stage.name)

    def fit_tree(stage: Stage) -> None:
        with Checkpoints(stages.checkpoint_folder(folder, stage)) as checkpoints:
            trained = joint.fit_tree(
                recipe,
                stage.settings(recipe),
                str(stage),
                stage.tree,
                networks,
                splits,
                restore=checkpoints.restore,
                save=checkpoints.save,
                report=stages.reporter(folder, stage, report),
            )
        networks.update(trained)

    tree = growth.grow_into(
        folder,
        recipe,
        classes,
        fit=fit_node,
        likelihood=likelihood,
        held_out=seen,
        cost=lambda tree, node: multiply_adds(recipe, tree, node, networks, image_shape),
        weights=lambda node: to_state_dict(networks[node]),
        joint=fit_tree,
        report=report,
        program="trunk_jax",
        fit_siblings=fit_nodes if wanted(siblings, isinstance(train, OnDisk)) else None,
        given=None if init is None else init.tree,
    )
    return Model(recipe, tree, networks)


def _its_own(init: Model, recipe: Recipe, tree: Tree, node: Node, *_: Any) -> Network:
    """A copy of a node's network, whose arrays training may take over."""
    return jax.tree.map(jnp.copy, init.networks[node])


def initial_network(
    recipe: Recipe,
    tree: Tree,
    node: Node,
    phase: str,
    networks: dict[Node, Network],
    image_shape: nodes.Shape,
) -> Network:
    """A node's network before it is trained for `phase`."""
    stage = Stage(tree, node, phase)
    if recipe.baseline is not None:
        return baselines.start(recipe, image_shape, stage.outputs)
    shape = input_shape(networks, node, image_shape)
    module = nodes.make(
        recipe.network(stage.name),
        shape,
        stage.outputs,
        faults=recipe.faults,
        rng=streams.stream(recipe.seed, stage.name, phase, "weights"),
    )
    if "warm_batchnorm" in recipe.faults:
        return warmed(split(module), jnp.ones(shape, jnp.float32))
    return split(module)


def average_likelihood(
    recipe: Recipe, program: Program, network: Network, source: Source, name: str
) -> np.ndarray:
    """ASL of a node over its images of `epochs.likelihood_part`, float64 [classes, classes]."""
    targets = np.asarray(source.targets)
    asl = epochs.likelihood(recipe, name, targets, source.size)
    scores, truth, _ = evaluate(program, network, source, asl)
    return grouping.average_softmax(metrics.softmax(scores), truth)


def held_out(
    recipe: Recipe, program: Program, network: Network, source: Source, name: str
) -> HeldOut:
    """What a node, one output a class, says of the images of `source` that are its own."""
    targets = np.asarray(source.targets)
    run = epochs.held_out(recipe, name, targets, source.size)
    scores, truth, _ = evaluate(program, network, source, run)
    return HeldOut(metrics.softmax(scores), truth)


def multiply_adds(
    recipe: Recipe,
    tree: Tree,
    node: Node,
    networks: dict[Node, Network],
    image_shape: nodes.Shape,
) -> int:
    """Multiply-adds of one image in a node's network; its ancestors are in `networks`."""
    shape = input_shape(networks, node, image_shape)
    layers, outputs = recipe.network(tree.names[node]), tree.width(node)
    with jax.enable_x64(False):  # a network as it is built has float32 parameters
        rng = np.random.default_rng(0)
        module = nodes.make(layers, shape, outputs, faults=recipe.faults, rng=rng)
        return cost(split(module), shape)["multiply_adds"]
