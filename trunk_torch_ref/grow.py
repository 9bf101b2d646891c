"""Growing a tree with this framework's networks, into a run folder."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from data import grouping, growth, hierarchy, metrics, runfolder, streams
from data.augmentation import Augmentation, draw
from data.batches import plan
from data.hierarchy import Path, Tree
from data.recipe import Recipe
from data.splits import Splits
from trunk_torch_ref import nodes
from trunk_torch_ref.checkpoint import Checkpoints
from trunk_torch_ref.exchange import to_state_dict
from trunk_torch_ref.fit import Source, evaluate, fit
from trunk_torch_ref.network import feature_shape, initial
from trunk_torch_ref.nodes import Node


@dataclass(frozen=True)
class Grown:
    """A tree and the network of each of its nodes."""

    tree: Tree
    networks: dict[Path, Node]


def initial_network(
    recipe: Recipe,
    tree: Tree,
    node: Path,
    phase: str,
    networks: dict[Path, Node],
    image_shape: nodes.Shape,
) -> Node:
    """A node's network before it is trained for `phase`."""
    name = tree.names[node]
    shape = image_shape
    for ancestor in hierarchy.ancestors(node):
        shape = feature_shape(networks[ancestor], shape)
    outputs = (
        len(hierarchy.members(tree, node)) if phase == "class" else hierarchy.width(tree, node)
    )

    def build() -> Node:
        dataset, backbone, faults = recipe.dataset, recipe.backbone, recipe.faults
        return nodes.build(dataset, backbone, name, shape, outputs, faults=faults)

    return initial(build, streams.integer(recipe.seed, name, phase, "weights"))


def grow(
    recipe: Recipe,
    splits: Splits,
    classes: int,
    folder: FilePath,
    report: Callable[..., None],
    *,
    device: torch.device | str = "cpu",
    start: Callable[..., Node] = initial_network,
) -> Grown:
    """Grow and train a tree; what the folder already holds is taken from there.

    `start`: makes a node's untrained network, with the arguments of `initial_network`; its
    type is the one that the tree is computed in.
    """
    networks: dict[Path, Node] = {}
    train = as_images(splits.train.images, device)
    validation = as_images(splits.validation.images, device)

    def source(tree: Tree, node: Path, phase: str, part: str) -> Source:
        table = (hierarchy.class_targets if phase == "class" else hierarchy.targets)(tree, node)
        examples = getattr(splits, part)
        images = train if part == "train" else validation
        targets = torch.tensor(table[examples.labels], dtype=torch.int64, device=device)
        above = tuple(networks[ancestor] for ancestor in hierarchy.ancestors(node))
        return Source(images, targets, above)

    def fit_node(tree: Tree, node: Path, phase: str) -> None:
        name = tree.names[node]
        stage = f"{name}/{phase}"
        row = recipe.node(node == hierarchy.ROOT)
        checkpoints = Checkpoints(folder / "checkpoints" / name / phase)

        def restore(last, best):
            found = checkpoints.restore(last, best)
            runfolder.forget_metrics(folder, name, phase, found["epoch"] if found else 0)
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
            start(recipe, tree, node, phase, networks, tuple(train.shape[1:])).to(device),
            source(tree, node, phase, "train"),
            source(tree, node, phase, "validation"),
            restore=restore,
            save=checkpoints.save,
            report=report_stage,
        )
        networks[node] = result.network

    def likelihood(tree: Tree, node: Path) -> np.ndarray:
        mine = source(tree, node, "class", "train")
        return average_likelihood(recipe, networks[node], mine, tree.names[node])

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


def average_likelihood(recipe: Recipe, network: Node, source: Source, name: str) -> np.ndarray:
    """ASL of a node over its training images, float64 [classes, classes].

    In eval mode, without augmentation, over all images; with the release's fault
    `train_mode_asl` in train mode over shuffled, augmented batches, the last partial one
    dropped. The network itself stays as it is.
    """
    faulty = "train_mode_asl" in recipe.faults
    targets = source.targets.cpu().numpy()
    order, policy = np.arange(len(targets)), Augmentation()
    if faulty:
        order = streams.stream(recipe.seed, name, "asl order").permutation(len(targets))
        policy = recipe.augment
        network = copy.deepcopy(network)  # its running statistics will move
    batches = plan(
        order,
        targets >= 0,
        recipe.batch_size if faulty else recipe.eval_batch_size,
        subset=faulty and "subset_batches" in recipe.faults,
        drop_last=faulty,
    )
    generator = streams.stream(recipe.seed, name, "asl augmentation")
    draws = draw(policy, generator, len(targets), *source.images.shape[2:])
    seed = streams.integer(recipe.seed, name, "asl dropout")
    scores, truth = evaluate(recipe, policy, faulty, network, source, batches, draws, seed)
    return grouping.average_softmax(metrics.softmax(scores), truth)


def as_images(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [N, H, W, C] to a tensor [N, C, H, W] of its own memory, in that order."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), device=device)
