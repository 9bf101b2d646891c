"""Growing a tree with this framework's networks, into a run folder."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.base import streams
from data.base.errors import UserError
from data.images.on_disk import Images, OnDisk
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training import epochs, growth, stages
from data.training.stages import Stage
from data.tree import grouping, hierarchy, metrics
from data.tree.hierarchy import Node, Tree
from data.tree.selection import HeldOut
from trunk_torch_ref import nodes
from trunk_torch_ref.baselines import start as baselines
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.measure.costs import cost
from trunk_torch_ref.network.exchange import to_state_dict
from trunk_torch_ref.network.network import initial, input_shape
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training import joint
from trunk_torch_ref.training.checkpoint import Checkpoints
from trunk_torch_ref.training.fit import Source, evaluate, fit
from trunk_torch_ref.training.pixels import FromDisk, Pixels, as_images, size_of


def initial_network(
    recipe: Recipe,
    tree: Tree,
    node: Node,
    phase: str,
    networks: dict[Node, NodeNetwork],
    image_shape: nodes.Shape,
) -> NodeNetwork:
    """A node's network before it is trained for `phase`."""
    stage = Stage(tree, node, phase)
    if recipe.baseline is not None:
        return baselines.start(recipe, image_shape, stage.outputs)
    shape = input_shape(networks, node, image_shape)

    def build() -> NodeNetwork:
        return nodes.make(recipe.network(stage.name), shape, stage.outputs, faults=recipe.faults)

    return initial(build, streams.integer(recipe.seed, stage.name, phase, "weights"))


def grow(
    recipe: Recipe,
    splits: Splits,
    classes: int,
    folder: Path,
    report: Callable[..., None],
    *,
    device: torch.device | str = "cpu",
    start: Callable[..., NodeNetwork] = initial_network,
    init: Model | None = None,
) -> Model:
    """Grow and train a tree; what the folder already holds is taken from there.

    UserError for a recipe whose nodes train in bfloat16: this port does so in joint training only.

    `start`: makes a node's untrained network, with the arguments of `initial_network`; its
    type is the one that the tree is computed in. `init`: a tree to start from, which is kept; its
    networks take the place of `start`'s.
    """
    phases = (
        getattr(node, kind)
        for node in (recipe.root, recipe.others)
        for kind in ("class_phase", "group_phase")
    )
    if any(phase.precision != "float32" for phase in phases):
        raise UserError("PyTorch's nodes train in float32 here; bfloat16 is for joint training")
    if init is not None:
        start = partial(_its_own, init)
    networks: dict[Node, NodeNetwork] = {}
    train = _pixels(splits.train.images, device)
    validation = _pixels(splits.validation.images, device)
    _, channels, height, width = train.shape
    image_shape = channels, height, width

    def source(images: Pixels, labels: np.ndarray, stage: Stage) -> Source:
        targets = torch.tensor(stage.targets(labels), dtype=torch.int64, device=device)
        above = tuple(networks[ancestor] for ancestor in hierarchy.ancestors(stage.node))
        return Source(images, targets, above)

    def fit_node(stage: Stage) -> None:
        network = start(recipe, stage.tree, stage.node, stage.phase, networks, image_shape)
        with Checkpoints(stages.checkpoint_folder(folder, stage)) as checkpoints:
            result = fit(
                recipe,
                stage.settings(recipe),
                str(stage),
                network.to(device),
                source(train, splits.train.labels, stage),
                source(validation, splits.validation.labels, stage),
                restore=checkpoints.restore,
                save=checkpoints.save,
                report=stages.reporter(folder, stage, report),
            )
        networks[stage.node] = result.network

    def source_of(part: str, stage: Stage) -> Source:
        images = train if part == "train" else validation
        return source(images, getattr(splits, part).labels, stage)

    def likelihood(stage: Stage) -> np.ndarray:
        mine = source_of(epochs.likelihood_part(recipe), stage)
        return average_likelihood(recipe, networks[stage.node], mine, stage.name)

    def seen(stage: Stage) -> HeldOut:
        mine = source_of("validation", stage)
        return held_out(recipe, networks[stage.node], mine, stage.name)

    def fit_tree(stage: Stage) -> None:
        with Checkpoints(stages.checkpoint_folder(folder, stage)) as checkpoints:
            trained = joint.fit_tree(
                recipe,
                stage.settings(recipe),
                str(stage),
                stage.tree,
                networks,
                train,
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
        program="trunk_torch_ref",
        given=None if init is None else init.tree,
    )
    return Model(recipe, tree, networks)


def _its_own(init: Model, recipe: Recipe, tree: Tree, node: Node, *_: Any) -> NodeNetwork:
    """A copy of a node's network, which training may change."""
    return copy.deepcopy(init.networks[node])


def average_likelihood(
    recipe: Recipe, network: NodeNetwork, source: Source, name: str
) -> np.ndarray:
    """ASL of a node over its images of `epochs.likelihood_part`, float64 [classes, classes].

    The network itself stays as it is.
    """
    targets = source.targets.cpu().numpy()
    asl = epochs.likelihood(recipe, name, targets, size_of(source.images))
    if asl.train:
        network = copy.deepcopy(network)  # its running statistics will move
    scores, truth = evaluate(recipe, network, source, asl)
    return grouping.average_softmax(metrics.softmax(scores), truth)


def held_out(recipe: Recipe, network: NodeNetwork, source: Source, name: str) -> HeldOut:
    """What a node, one output a class, says of the images of `source` that are its own."""
    targets = source.targets.cpu().numpy()
    run = epochs.held_out(recipe, name, targets, size_of(source.images))
    scores, truth = evaluate(recipe, network, source, run)
    return HeldOut(metrics.softmax(scores), truth)


def multiply_adds(
    recipe: Recipe,
    tree: Tree,
    node: Node,
    networks: dict[Node, NodeNetwork],
    image_shape: nodes.Shape,
) -> int:
    """Multiply-adds of one image in a node's network; its ancestors are in `networks`."""
    shape = input_shape(networks, node, image_shape)
    layers, outputs = recipe.network(tree.names[node]), tree.width(node)
    network = initial(lambda: nodes.make(layers, shape, outputs, faults=recipe.faults), seed=0)
    return cost(network, shape)["multiply_adds"]


def _pixels(images: Images, device: torch.device | str) -> Pixels:
    """Images uint8 [N, H, W, C] as [N, C, H, W] on the device; those on disk stay there."""
    if isinstance(images, OnDisk):
        return FromDisk(images, torch.device(device))
    return as_images(images, device)
