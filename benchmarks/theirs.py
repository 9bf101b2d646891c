"""The PyTorch side: for each case and form a function that returns seconds a unit."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import (
    EPOCH_BATCHES,
    PIECE,
    STEP_BATCH,
    TREE_BATCH,
    Case,
    classes,
    images,
    labels,
    recipe_of,
    split_of,
    tree_of,
)
from benchmarks.cases import shape as shape_of
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.recipes.recipe import Recipe
from data.tree import hierarchy
from data.tree.hierarchy import ROOT
from trunk_torch_ref import nodes
from trunk_torch_ref.inference import route
from trunk_torch_ref.inference.load import channel_first, load_networks
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.machine.devices import float32_products, where
from trunk_torch_ref.network.augment import prepare as prepare_images
from trunk_torch_ref.network.network import channels_last, seeded
from trunk_torch_ref.training import objective
from trunk_torch_ref.training.fit import Source, fit, train_step
from trunk_torch_ref.training.grow import as_images

STEPS, ACCELERATED_STEPS = 4, 32
Round = Callable[[], float]


def prepare(case: Case, form: str, folder: Path) -> Round:
    """The function that times one round of the case in a form; compiled forms compile here."""
    kinds = {
        "step": _step,
        "forward": _forward,
        "node": _node,
        "tree": _tree,
        "image": _image,
        "grow": _epoch,
    }
    with _arithmetic(case):
        run = kinds[case.kind](case, form, folder)

    def timed() -> float:
        with _arithmetic(case):
            return run()

    return timed


@contextmanager
def _arithmetic(case: Case) -> Iterator[None]:
    """The precision that a case asks for: of float32 products, or bfloat16 where that serves."""
    if case.precision is None:
        yield
        return
    places = float32_products()
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if case.precision == "tf32" else "ieee"
        with torch.autocast(where().type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old


def _steps() -> int:
    """How many are timed at once, as on the other side."""
    return STEPS if where().type == "cpu" else ACCELERATED_STEPS


def _timed(run: Callable[[], object], units: int) -> float:
    began = time.perf_counter()
    run()
    if where().type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / units


def _root(case: Case, form: str) -> nodes.NodeNetwork:
    shape, faults = channel_first(shape_of(case)), recipe_of(case).faults
    with seeded(0):
        network = nodes.build(
            case.dataset, case.backbone, "root", shape, classes(case), faults=faults
        )
    network = network.to(where())
    return network if form == "eager" else channels_last(network)


def _inputs(case: Case, form: str, count: int) -> torch.Tensor:
    x = torch.tensor(images(case, count), device=where()).permute(0, 3, 1, 2).float() / 255
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    return x.contiguous(memory_format=layout)


def _step(case: Case, form: str, folder: Path) -> Round:
    network, recipe = _root(case, form), recipe_of(case)
    optimizer = objective.optimizer(recipe.root.class_phase, network.parameters())
    x, count = _inputs(case, form, case.images), _steps()
    targets = torch.tensor(labels(case, case.images), device=where())
    called = torch.compile(network) if form == "compile" else network
    assert isinstance(called, torch.nn.Module)
    if form == "compile" and where().type == "cuda":
        for group in optimizer.param_groups:
            group["fused"] = True  # one kernel for all parameters: PyTorch at its best

    def run() -> None:
        for _ in range(count):
            train_step(called, optimizer, x, targets, recipe.loss)

    return partial(_timed, run, count * case.images)


def _forward(case: Case, form: str, folder: Path) -> Round:
    network, x = _root(case, form).eval(), _inputs(case, form, case.images)
    called = torch.compile(network) if form in ("compile", "pieces") else network
    parts = x.split(PIECE if form == "pieces" else case.images)

    @torch.inference_mode()
    def run() -> None:
        for part in parts:
            called(part)

    return partial(_timed, run, case.images)


def _node(case: Case, form: str, folder: Path) -> Round:
    """Seconds an image of an epoch as the port's `fit` runs it, channels last."""
    recipe = recipe_of(case)
    recipe = replace(recipe, batch_size=STEP_BATCH, eval_batch_size=TREE_BATCH, faults=())
    counts = (EPOCH_BATCHES * STEP_BATCH, TREE_BATCH)
    sources = [_source(images(case, count), labels(case, count)) for count in counts]
    return partial(_timed, partial(_one_epoch, case, recipe, *sources), counts[0])


def _epoch(case: Case, form: str, folder: Path) -> Round:
    """Seconds of one epoch of the root on the dataset itself."""
    recipe = recipe_of(case)
    splits = split_of(recipe)
    sources = [_source(part.images, part.labels) for part in (splits.train, splits.validation)]
    return partial(_timed, partial(_one_epoch, case, recipe, *sources), 1)


def _source(pixels: Images, right: np.ndarray) -> Source:
    targets = torch.tensor(right, dtype=torch.int64, device=where())
    return Source(as_images(pixels, where()), targets, ())


def _one_epoch(case: Case, recipe: Recipe, train: Source, check: Source) -> None:
    fit(
        recipe,
        replace(recipe.root.class_phase, epochs=1),
        "root/class",
        _root(case, "eager"),
        train,
        check,
        restore=lambda *_: None,
        save=lambda *_: None,
        report=lambda **_: None,
    )


def _tree(case: Case, form: str, folder: Path) -> Round:
    tree, recipe, pixels = tree_of(case), recipe_of(case), images(case, 1024)
    networks = load_networks(folder, recipe, tree, shape_of(case))
    run = partial(route.predict, Model(recipe, tree, networks), pixels, TREE_BATCH)
    return partial(_timed, run, len(pixels))


def _image(case: Case, form: str, folder: Path) -> Round:
    """One image at a time, the weights in memory, or as published built and read at each node."""
    tree, recipe, pixels = tree_of(case), recipe_of(case), images(case, 10)
    networks = load_networks(folder, recipe, tree, shape_of(case))
    leaves = set(tree.paths)
    shapes = {ROOT: channel_first(shape_of(case))}
    for node in tree.nodes:
        torch.save(networks[node].state_dict(), folder / f"{tree.names[node]}.pt")
        with torch.inference_mode():
            features, _ = networks[node].eval()(torch.zeros(1, *shapes[node], device=where()))
        shapes |= {child: tuple(features.shape[1:]) for child in tree.children(node)}

    def network(node: hierarchy.Node) -> torch.nn.Module:
        if form == "eager":
            return networks[node]
        name = tree.names[node]
        made = nodes.build(
            case.dataset,
            case.backbone,
            name,
            shapes[node],
            tree.width(node),
            faults=recipe.faults,
        )
        made.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        return made.to(where()).eval()

    @torch.inference_mode()
    def run() -> None:
        for image in pixels:
            x = torch.tensor(image, device=where()).permute(2, 0, 1)[None]
            x = prepare_images(x, {}, Augmentation(), recipe.mean, recipe.std, torch.float32)
            node = ROOT
            while node not in leaves:
                x, scores = network(node)(x)
                node = (*node, int(scores.argmax()))

    return partial(_timed, run, len(pixels))
