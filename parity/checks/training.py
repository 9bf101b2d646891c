"""Checks of training: steps, and a whole tree, from the same weights on the same batches."""

import copy
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data.images import datasets
from data.images.splits import Splits, split
from data.recipes import recipe as recipes
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.tree import hierarchy
from data.tree.grouping import group
from parity.checks import tolerance
from parity.checks.nodes import inputs
from parity.checks.routing import check_routing
from parity.checks.tolerance import Check
from parity.pairs.conversion import to_torch
from parity.pairs.families import Family, build
from parity.pairs.passes import DTYPES, Pair, by_stream, cast, recorded_masks
from trunk_jax.inference.model import Model
from trunk_jax.layers.basic import Mode
from trunk_jax.network import exchange
from trunk_jax.network.network import Network
from trunk_jax.training import fit, grow, objective
from trunk_torch_ref.inference.load import channel_first
from trunk_torch_ref.inference.model import Model as TorchModel
from trunk_torch_ref.network import exchange as torch_exchange
from trunk_torch_ref.training import fit as torch_fit
from trunk_torch_ref.training import grow as torch_grow
from trunk_torch_ref.training import objective as torch_objective

STEPS = 5
CONTROL = 100.0  # times the effect of one flipped bit, the most that a training run may differ


def check_steps(family: Family, recipe: Recipe, seed: int) -> list[Check]:
    """Five training steps on one node with shared dropout masks: losses, weights, statistics.

    A bias before batch norm has the gradient 0: what Adam then divides by its own size is
    rounding alone. So a tensor may differ by 1e-10 of its scale, or by 100 times what the last
    bit of one weight changes in it, as a control run in PyTorch shows.
    """
    both = build(family, seed)
    phase = recipe.others.group_phase
    batches = [inputs(family, seed + 10 * step) for step in range(STEPS)]
    theirs, losses, masks = _torch_steps(both, "float64", phase, recipe.loss, batches, seed)
    ours, our_losses = _jax_steps(both, "float64", phase, recipe.loss, batches, masks)
    nudged = Pair(both.jax, copy.deepcopy(both.torch).double())
    with torch.no_grad():
        weight = next(nudged.torch.parameters()).view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf, dtype=weight.dtype))
    control, _, _ = _torch_steps(nudged, "float64", phase, recipe.loss, batches, seed)
    name = f"{family.name}, {STEPS} steps of {phase.optimizer}"
    checks = [tolerance.close(name, "loss at each step", our_losses, losses, 1e-10)]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for what, keys in (
        ("batch-norm statistics", [k for k in theirs if k.endswith(statistics)]),
        ("weights", [k for k in theirs if not k.endswith(statistics)]),
    ):
        rows = []
        for key in keys:
            scale = float(np.abs(theirs[key]).max()) or 1.0
            effect = float(np.abs(theirs[key] - control[key]).max()) / scale
            bound = max(tolerance.GRADIENT_64, CONTROL * effect)
            rows.append(tolerance.close(name, key, ours[key], theirs[key], bound))
        worst = max(rows, key=lambda row: row.max_rel)
        passed = all(row.passed for row in rows)
        checks.append(replace(worst, what=what, passed=passed, detail=f"worst: {worst.what}"))
    return checks


def _torch_steps(both: Pair, dtype: str, phase, kind: str, batches, seed: int):
    module = copy.deepcopy(both.torch).to(DTYPES[dtype][1])
    optimizer = torch_objective.optimizer(phase, module.parameters())
    losses, masks = [], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for x, targets in batches:
            image = torch.tensor(x, dtype=DTYPES[dtype][1])
            with recorded_masks(module) as kept:
                value, _ = torch_fit.train_step(
                    module, optimizer, image, torch.tensor(targets), kind
                )
            losses.append(value.item())
            masks.append(dict(kept))
    return torch_exchange.to_state_dict(module), np.array(losses), masks


def _jax_steps(both: Pair, dtype: str, phase, kind: str, batches, masks):
    with jax.enable_x64(dtype == "float64"):
        network = cast(both.jax, dtype)
        program = fit.Program(phase, kind, (), (), dtype)
        state = fit.State(network, objective.optimizer(phase).init(network.params))
        step = jax.jit(
            lambda state, x, targets, keep: fit.train_step(
                program, state, x, targets, Mode(True, masks=keep), jnp.asarray(phase.lr, dtype)
            )
        )
        losses = []
        for (x, targets), kept in zip(batches, masks, strict=True):
            image = jnp.asarray(x.transpose(0, 2, 3, 1), dtype)
            labels = jnp.asarray(targets, jnp.int32)
            state, value, _ = step(state, image, labels, by_stream(network, kept))
            losses.append(float(value))
        return exchange.to_state_dict(state.network), np.array(losses)


def small_recipe(*, faults: bool) -> Recipe:
    """A short recipe for digits: mobilenet nodes, which draw no dropout masks.

    With the release's faults half of the images: padding at their 1x1 convolutions makes the maps
    larger, and a step cost eight times as much.
    """
    recipe = recipes.load("corrected", "digits", "mobilenet")
    limit = 200 if faults else 400
    recipe = recipes.override(
        recipe, epochs=3, volatility=1.1, limit=limit, batch_size=32, eval_batch_size=64
    )
    return replace(recipe, faults=recipes.FAULTS, ties="first") if faults else recipe


def joint_recipe() -> Recipe:
    """A short recipe for digits that chooses its groups (volatility auto) and trains the grown
    tree as a whole, by steps of a one-cycle.
    """
    recipe = recipes.load("efficient", "digits", "resnet")
    assert recipe.joint is not None
    recipe = replace(recipe, joint=replace(recipe.joint, label_smoothing=0.1))
    return recipes.override(recipe, epochs=2, limit=400, batch_size=32, eval_batch_size=64)


def grow_both(recipe: Recipe, parts: Splits, folder: Path, dtype: str = "float64"):
    """(JAX's tree, PyTorch's), both grown from JAX's initial weights, into two run folders."""
    starts: dict[tuple[str, str], Network] = {}

    def jax_start(recipe, tree, node, phase, *rest):
        network = cast(grow.initial_network(recipe, tree, node, phase, *rest), dtype)
        starts[tree.names[node], phase] = network
        return network

    def torch_start(recipe, tree, node, phase, *rest):
        module = torch_grow.initial_network(recipe, tree, node, phase, *rest)
        return to_torch(starts[tree.names[node], phase], module.to(DTYPES[dtype][1]))

    ours = _grow_jax(recipe, parts, folder / "jax", jax_start, dtype)
    theirs = torch_grow.grow(
        recipe, parts, _classes(parts), folder / "torch", _silent, start=torch_start
    )
    return ours, theirs


def _grow_jax(recipe: Recipe, parts: Splits, folder: Path, start, dtype: str) -> Model:
    with jax.enable_x64(dtype == "float64"):
        return grow.grow(recipe, parts, _classes(parts), folder, _silent, start=start)


def _flipped(recipe, tree, node, phase, *rest, dtype: str) -> Network:
    """The initial network with the last bit of one weight of the root changed."""
    network = cast(grow.initial_network(recipe, tree, node, phase, *rest), dtype)
    if node != hierarchy.ROOT:
        return network
    leaves, structure = jax.tree.flatten(network.params)
    first = np.asarray(leaves[-1]).copy()
    first.flat[0] = np.nextafter(first.flat[0], np.inf)
    leaves[-1] = jnp.asarray(first)
    return replace(network, params=jax.tree.unflatten(structure, leaves))


def check_tree(recipe: Recipe, name: str) -> list[Check]:
    """A whole tree grown in both frameworks, compared epoch by epoch, in float64.

    Rounding errors grow as training goes on, at a rate that no fixed tolerance knows. So a
    control is run as well: JAX once more, with the last bit of one weight flipped. The two
    frameworks may differ by at most 100 times what that bit does.
    """
    dataset = datasets.load(recipe.dataset)
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours, theirs = grow_both(recipe, parts, folder)
        control = _grow_jax(
            recipe, parts, folder / "control", partial(_flipped, dtype="float64"), "float64"
        )
        curves = {which: _curve(folder / which) for which in ("jax", "torch", "control")}
    checks = [
        tolerance.equal(
            name,
            "trees",
            list(ours.tree.paths) == list(theirs.tree.paths),
            True,
            note=f"{len(ours.networks)} nodes, depth {ours.tree.depth}",
        ),
        tolerance.equal(name, "control's tree", ours.tree.paths == control.tree.paths, True),
    ]
    if not all(check.passed for check in checks):
        return checks
    for column in ("train_loss", "validation_loss"):
        # joint training takes no validation loss
        a, b, c = (
            np.array([row[column] for row in curves[which] if row[column] is not None])
            for which in curves
        )
        checks.append(_within_control(name, f"{column} of {len(a)} epochs", a, b, c))
    for column in ("train_accuracy", "validation_accuracy", "lr"):
        a, b = (np.array([row[column] for row in curves[which]]) for which in ("jax", "torch"))
        checks.append(
            tolerance.close(name, f"{column} of {len(a)} epochs", a, b, tolerance.VALUE_64)
        )
    plain = _in_float32(recipe, ours)
    checks += check_routing(name, *plain, parts.test.images, parts.test.labels)
    for node in ours.tree.nodes:
        a, c = (_vector(exchange.to_state_dict(g.networks[node])) for g in (ours, control))
        b = _vector(torch_exchange.to_state_dict(theirs.networks[node]))
        checks.append(_within_control(name, f"final weights of {ours.tree.names[node]}", a, b, c))
    return checks


def _in_float32(recipe: Recipe, grown: Model) -> tuple[Model, TorchModel]:
    """A grown tree in both frameworks, its weights rounded to float32."""
    ours = {node: cast(network, "float32") for node, network in grown.networks.items()}
    theirs: dict = {}
    for node in grown.tree.nodes:
        shape = channel_first(recipe.spec.image_shape)
        template = torch_grow.initial_network(recipe, grown.tree, node, "group", theirs, shape)
        theirs[node] = to_torch(ours[node], template)
    tree = grown.tree
    return Model(recipe, tree, ours), TorchModel(recipe, tree, theirs)


def _within_control(name: str, what: str, ours, theirs, control) -> Check:
    effect = float(np.abs(ours - control).max()) / (float(np.abs(ours).max()) or 1.0)
    bound = max(CONTROL * effect, tolerance.VALUE_64)
    check = tolerance.close(name, what, ours, theirs, bound)
    return replace(check, detail=f"one flipped bit changes it by {effect:.1e}")


def _vector(weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([weights[key].astype(np.float64).ravel() for key in sorted(weights)])


def _curve(folder: Path) -> list[dict]:
    return runfolder.read_metrics(folder)


def check_likelihood(seed: int) -> list[Check]:
    """ASL of one network over digits, as our recipes and as the release takes it; and groups."""
    checks = []
    dataset = datasets.load("digits")
    labels = dataset.test.labels
    for faults in (False, True):
        recipe = small_recipe(faults=faults)
        both = build(Family("digits", "mobilenet", "root", (8, 8, 1), 10, recipe.faults[:1]), seed)
        with jax.enable_x64(True):
            network = cast(both.jax, "float64")
            program = fit.program_of(recipe, recipe.root.class_phase, network)
            source = fit.Source(jnp.asarray(dataset.test.images), jnp.asarray(labels), ())
            ours = grow.average_likelihood(recipe, program, network, source, "root")
        module = copy.deepcopy(both.torch).double()
        images = torch_grow.as_images(dataset.test.images)
        theirs = torch_grow.average_likelihood(
            recipe, module, torch_fit.Source(images, torch.tensor(labels).long(), ()), "root"
        )
        how = "train mode, as published" if faults else "eval mode"
        checks.append(tolerance.close("ASL of digits", how, ours, theirs, tolerance.VALUE_64))
        volatilities = np.linspace(0.2, 2.0, 37)
        same = [group(ours, v) == group(theirs, v) for v in volatilities]
        note = f"at {len(same)} volatilities"
        checks.append(
            tolerance.equal("ASL of digits", f"groups, {how}", same, [True] * len(same), note=note)
        )
    return checks


def _classes(parts: Splits) -> int:
    return int(parts.train.labels.max()) + 1


def _silent(**progress) -> None:
    pass
