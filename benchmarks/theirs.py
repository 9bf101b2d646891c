"""The PyTorch side: for each case and form a function that returns seconds a unit."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.cases import (
    STEP_BATCH,
    TREE_BATCH,
    Case,
    classes,
    images,
    labels,
    recipe_of,
    tree_of,
)
from benchmarks.cases import shape as shape_of
from data import hierarchy
from data.augmentation import Augmentation
from data.hierarchy import ROOT
from trunk_torch_ref import nodes, objective, route
from trunk_torch_ref.augment import prepare as prepare_images
from trunk_torch_ref.fit import train_step
from trunk_torch_ref.network import seeded
from trunk_torch_ref.run import channel_first, load_networks

STEPS = 4
Round = Callable[[], float]


def prepare(case: Case, form: str, folder: Path) -> Round:
    """The function that times one round of the case in a form; compiled forms compile here."""
    return {"step": _step, "forward": _forward, "tree": _tree, "image": _image}[case.kind](
        case, form, folder
    )


def _timed(run: Callable[[], object], units: int) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / units


def _root(case: Case, form: str) -> torch.nn.Module:
    shape, faults = channel_first(shape_of(case)), recipe_of(case).faults
    with seeded(0):
        network = nodes.build(
            case.dataset, case.backbone, "root", shape, classes(case), faults=faults
        )
    return network if form == "eager" else network.to(memory_format=torch.channels_last)


def _inputs(case: Case, form: str, count: int) -> torch.Tensor:
    x = torch.tensor(images(case, count)).permute(0, 3, 1, 2).float() / 255
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    return x.contiguous(memory_format=layout)


def _step(case: Case, form: str, folder: Path) -> Round:
    network, recipe = _root(case, form), recipe_of(case)
    optimizer = objective.optimizer(recipe.root.class_phase, network.parameters())
    x, targets = _inputs(case, form, STEP_BATCH), torch.tensor(labels(case, STEP_BATCH))
    called = torch.compile(network) if form == "compile" else network

    def run() -> None:
        for _ in range(STEPS):
            train_step(called, optimizer, x, targets, recipe.loss)

    run()
    return partial(_timed, run, STEPS * STEP_BATCH)


def _forward(case: Case, form: str, folder: Path) -> Round:
    network, x = _root(case, form).eval(), _inputs(case, form, TREE_BATCH)
    called = torch.compile(network) if form == "compile" else network

    @torch.inference_mode()
    def run() -> None:
        called(x)

    run()
    return partial(_timed, run, TREE_BATCH)


def _tree(case: Case, form: str, folder: Path) -> Round:
    tree, recipe, pixels = tree_of(case), recipe_of(case), images(case, 1024)
    networks = load_networks(folder, recipe, tree, shape_of(case))
    run = partial(route.predict, recipe, tree, networks, pixels, TREE_BATCH)
    run()
    return partial(_timed, run, len(pixels))


def _image(case: Case, form: str, folder: Path) -> Round:
    """One image at a time, the weights in memory, or as published built and read at each node."""
    tree, recipe, pixels = tree_of(case), recipe_of(case), images(case, 10)
    networks = load_networks(folder, recipe, tree, shape_of(case))
    leaves = set(tree.paths)
    shapes = {ROOT: channel_first(shape_of(case))}
    for node in hierarchy.nodes(tree):
        torch.save(networks[node].state_dict(), folder / f"{tree.names[node]}.pt")
        with torch.inference_mode():
            features, _ = networks[node].eval()(torch.zeros(1, *shapes[node]))
        shapes |= {child: tuple(features.shape[1:]) for child in hierarchy.children(tree, node)}

    def network(node: hierarchy.Path) -> torch.nn.Module:
        if form == "eager":
            return networks[node]
        name = tree.names[node]
        made = nodes.build(
            case.dataset, case.backbone, name, shapes[node], hierarchy.width(tree, node),
            faults=recipe.faults,
        )  # fmt: skip
        made.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        return made.eval()

    @torch.inference_mode()
    def run() -> None:
        for image in pixels:
            x = torch.tensor(image).permute(2, 0, 1)[None]
            x = prepare_images(x, {}, Augmentation(), recipe.mean, recipe.std, torch.float32)
            node = ROOT
            while node not in leaves:
                x, scores = network(node)(x)
                node = (*node, int(scores.argmax()))

    run()
    return partial(_timed, run, len(pixels))
