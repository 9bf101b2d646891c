"""Growing a tree with this framework's networks, into a run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import jax.numpy as jnp
import numpy as np

from data import grouping, growth, hierarchy, metrics, runfolder, streams
from data.augmentation import Augmentation, draw
from data.batches import plan
from data.hierarchy import Path, Tree
from data.recipe import Recipe
from data.splits import Splits
from trunk_jax import nodes
from trunk_jax.checkpoint import Checkpoints
from trunk_jax.exchange import to_state_dict
from trunk_jax.fit import Program, Source, evaluate, fit
from trunk_jax.network import Network, feature_shape, split, warmed


@dataclass(frozen=True)
class Grown:
    """A tree and the network of each of its nodes."""

    tree: Tree
    networks: dict[Path, Network]


def grow(
    recipe: Recipe, splits: Splits, classes: int, folder: FilePath, report: Callable[..., None]
) -> Grown:
    """Grow and train a tree; what the folder already holds is taken from there."""
    networks: dict[Path, Network] = {}
    train = jnp.asarray(splits.train.images)
    validation = jnp.asarray(splits.validation.images)

    def source(tree: Tree, node: Path, phase: str, part: str) -> Source:
        table = (hierarchy.class_targets if phase == "class" else hierarchy.targets)(tree, node)
        examples = getattr(splits, part)
        images = train if part == "train" else validation
        above = tuple(networks[ancestor] for ancestor in hierarchy.ancestors(node))
        return Source(images, jnp.asarray(table[examples.labels]), above)

    def fit_node(tree: Tree, node: Path, phase: str) -> None:
        name = tree.names[node]
        stage = f"{name}/{phase}"
        row = recipe.node(node == hierarchy.ROOT)
        checkpoints = Checkpoints(folder / "checkpoints" / name / phase)

        def restore(last, best):
            found = checkpoints.restore(last, best)
            runfolder.forget_metrics(folder, name, phase, found[2]["epoch"] if found else 0)
            return found

        def report_stage(row=None, **progress):
            if row is not None:
                row = {"node": name, "phase": phase, **row}
                runfolder.append_metrics(folder, row)
            report(stage=stage, row=row, **progress)

        result = fit(
            recipe,
            row.class_phase if phase == "class" else row.group_phase,
            stage,
            initial_network(recipe, tree, node, phase, networks, splits.train.images.shape[1:]),
            source(tree, node, phase, "train"),
            source(tree, node, phase, "validation"),
            restore=restore,
            save=checkpoints.save,
            report=report_stage,
        )
        checkpoints.close()
        networks[node] = result.network

    def likelihood(tree: Tree, node: Path) -> np.ndarray:
        phase = recipe.node(node == hierarchy.ROOT).class_phase
        program = Program(phase, recipe.loss, recipe.mean, recipe.std)
        return average_likelihood(
            recipe, program, networks[node], source(tree, node, "class", "train"), tree.names[node]
        )

    def decide(tree: Tree, node: Path, take: Callable[[], np.ndarray]) -> hierarchy.Groups:
        name = tree.names[node]
        recorded = runfolder.read_asl(folder, name, len(hierarchy.members(tree, node)))
        if recorded is not None:
            return recorded[1]
        asl, volatility = take(), recipe.node(node == hierarchy.ROOT).volatility
        draws = streams.stream(recipe.seed, name, "grouping")
        groups = grouping.group(asl, volatility, draws if recipe.grouping == "sampled" else None)
        runfolder.write_asl(folder, name, asl, volatility, groups)
        return groups

    def finish(tree: Tree, node: Path) -> None:
        runfolder.write_tree(folder, tree)
        runfolder.write_weights(folder, tree.names[node], to_state_dict(networks[node]))

    tree = growth.grow(classes, fit=fit_node, likelihood=likelihood, decide=decide, finish=finish)
    return Grown(tree, networks)


def initial_network(
    recipe: Recipe,
    tree: Tree,
    node: Path,
    phase: str,
    networks: dict[Path, Network],
    image_shape: nodes.Shape,
) -> Network:
    """A node's network before it is trained for `phase`."""
    name = tree.names[node]
    shape = image_shape
    for ancestor in hierarchy.ancestors(node):
        shape = feature_shape(networks[ancestor], shape)
    outputs = (
        len(hierarchy.members(tree, node)) if phase == "class" else hierarchy.width(tree, node)
    )
    module = nodes.build(
        recipe.dataset,
        recipe.backbone,
        name,
        shape,
        outputs,
        faults=recipe.faults,
        rng=streams.stream(recipe.seed, name, phase, "weights"),
    )
    if "warm_batchnorm" in recipe.faults:
        return warmed(split(module), jnp.ones(shape))
    return split(module)


def average_likelihood(
    recipe: Recipe, program: Program, network: Network, source: Source, name: str
) -> np.ndarray:
    """ASL of a node over its training images, float64 [classes, classes].

    In eval mode, without augmentation, over all images; with the release's fault
    `train_mode_asl` in train mode over shuffled, augmented batches, the last partial one
    dropped.
    """
    faulty = "train_mode_asl" in recipe.faults
    targets = np.asarray(source.targets)
    order, policy = np.arange(len(targets)), Augmentation()
    if faulty:
        order = streams.stream(recipe.seed, name, "asl order").permutation(len(targets))
        policy = recipe.augment
    batches = plan(
        order,
        targets >= 0,
        recipe.batch_size if faulty else recipe.eval_batch_size,
        subset=faulty and "subset_batches" in recipe.faults,
        drop_last=faulty,
    )
    generator = streams.stream(recipe.seed, name, "asl augmentation")
    draws = draw(policy, generator, len(targets), *source.images.shape[1:3])
    seed = streams.integer(recipe.seed, name, "asl dropout")
    scores, truth, _ = evaluate(program, policy, faulty, network, source, batches, draws, seed)
    return grouping.average_softmax(metrics.softmax(scores), truth)
