"""Training one node: compiled epochs over data that stays on the device."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Int, UInt8

from data import metrics, streams
from data.augmentation import Augmentation, draw
from data.batches import Plan, pad, plan
from data.errors import UserError
from data.recipe import Phase, Recipe
from trunk_jax import memory
from trunk_jax.augment import prepare
from trunk_jax.layers import Mode
from trunk_jax.network import Network, apply, features
from trunk_jax.objective import descend, learning_rates, loss, optimizer

Draws = dict[str, Array]


@dataclass(frozen=True)
class Program:
    """What a compiled pass depends on besides arrays."""

    phase: Phase
    loss: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Images on the device and how a node sees them.

    `targets`: the node's output for each image, -1 for images that are not its own.
    `above`: the networks of its ancestors, root first; frozen, in eval mode.
    """

    images: UInt8[Array, "n h w c"]
    targets: Int[Array, " n"]
    above: tuple[Network, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What training changes."""

    network: Network
    moments: optax.OptState


@dataclass(frozen=True)
class Result:
    """A trained node: the best epoch's network, its validation accuracy and number."""

    network: Network
    accuracy: float
    epoch: int


def inputs(
    program: Program, source: Source, policy: Augmentation, index: Int[Array, " b"], draws: Draws
) -> Array:
    """What the node is given for the images at `index`: augmented, normalised, through `above`."""
    mine = {name: values[index] for name, values in draws.items()}
    x = prepare(source.images[index], mine, policy, program.mean, program.std)
    for network in source.above:
        x = features(network, x)
    return x


def train_step(
    program: Program,
    state: State,
    x: Array,
    targets: Int[Array, " b"],
    mode: Mode,
    learning_rate: Array,
) -> tuple[State, Array, Array]:
    """One step on one batch: (state, loss, number of right answers)."""

    def objective(params):
        (_, scores), stats = apply(replace(state.network, params=params), x, mode)
        return loss(scores, targets, mode.valid, program.loss), (scores, stats)

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, (scores, stats)), gradients = gradient(state.network.params)
    steps, moments = optimizer(program.phase).update(gradients, state.moments, state.network.params)
    params = descend(state.network.params, steps, learning_rate)
    right = scores.argmax(1) == targets
    if mode.valid is not None:
        right &= mode.valid
    return State(replace(state.network, params=params, stats=stats), moments), value, right.sum()


@partial(
    jax.jit, static_argnames=("program", "policy", "padded"), donate_argnames=("state", "sums")
)
def train_steps(
    program: Program,
    policy: Augmentation,
    padded: bool,
    state: State,
    sums: tuple[Array, Array],
    source: Source,
    index: Int[Array, "steps width"],
    valid: Bool[Array, "steps width"],
    draws: Draws,
    key: Array,
    learning_rate: Array,
    start: Array,
    stop: Array,
) -> tuple[State, tuple[Array, Array]]:
    """Steps `start` to `stop` of an epoch. `sums`: loss times images, right answers.

    The bounds are arguments, not shapes: one program serves a whole epoch in one call (on
    accelerators) and slices of it (on CPUs, where an epoch can take minutes and a user
    wants to see progress and to interrupt).
    """

    def body(step, carry):
        state, (total, right) = carry
        rows, real = index[step], valid[step]
        mode = Mode(True, real if padded else None, jax.random.fold_in(key, step))
        x = inputs(program, source, policy, rows, draws)
        targets = jnp.maximum(source.targets[rows], 0)
        state, value, correct = train_step(program, state, x, targets, mode, learning_rate)
        return state, (total + value * real.sum(), right + correct)

    return jax.lax.fori_loop(start, stop, body, (state, sums))


@partial(jax.jit, static_argnames=("program", "policy", "train"))
def scores_of(
    program: Program,
    policy: Augmentation,
    train: bool,
    network: Network,
    source: Source,
    index: Int[Array, "steps width"],
    valid: Bool[Array, "steps width"],
    draws: Draws,
    key: Array,
) -> tuple[Array, Network]:
    """The node's scores, [steps, width, outputs], and the network after the pass.

    With `train` the release's fault: batch statistics, which the running ones absorb, and
    dropout; otherwise the network is returned as it came.
    """

    def body(network, step):
        rows, real = index[step], valid[step]
        mode = Mode(True, real, jax.random.fold_in(key, step)) if train else Mode()
        x = inputs(program, source, policy, rows, draws)
        (_, scores), stats = apply(network, x, mode)
        return replace(network, stats=stats), scores

    network, scores = jax.lax.scan(body, network, jnp.arange(index.shape[0]))
    return scores, network


def evaluate(
    program: Program,
    policy: Augmentation,
    train: bool,
    network: Network,
    source: Source,
    batches: Plan,
    draws: dict[str, np.ndarray],
    seed: int,
) -> tuple[np.ndarray, np.ndarray, Network]:
    """(scores [n, outputs], targets [n], network) over the images of a plan, in its order."""
    scores, network = scores_of(
        program, policy, train, network, source, batches.index, batches.valid,
        draws, jax.random.key(seed),
    )  # fmt: skip
    targets = np.asarray(source.targets)[batches.index]
    return np.asarray(scores)[batches.valid], targets[batches.valid], network


def epoch_plans(recipe: Recipe, phase: Phase, targets: np.ndarray, stage: str) -> list[Plan]:
    """The batches of every epoch of a stage, padded to one shape."""
    member = targets >= 0
    subset = "subset_batches" in recipe.faults
    plans = [
        plan(
            streams.stream(recipe.seed, stage, epoch, "order").permutation(len(targets)),
            member,
            recipe.batch_size,
            subset=subset,
            drop_last=True,
        )
        for epoch in range(1, phase.epochs + 1)
    ]
    steps = max(len(batches.index) for batches in plans)
    width = max(batches.index.shape[1] for batches in plans)
    return [pad(batches, steps, width) for batches in plans]


def fit(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    network: Network,
    train: Source,
    validation: Source,
    *,
    restore: Callable[[State, Network], tuple[State, Network, dict[str, Any]] | None],
    save: Callable[[State, Network, dict[str, Any], bool], None],
    report: Callable[..., None],
) -> Result:
    """Train `network` for a phase and return its best epoch.

    Args:
      stage: names the random streams, e.g. `sg1/class`.
      restore: given templates, the (state, best network, position) of an interrupted run.
      save: called after each epoch with the same; its last argument tells the final one.
      report: called with the epoch's numbers, and during it with how far it is.

    An epoch: train, validate, keep if strictly better, then the next learning rate.

    """
    program = Program(phase, recipe.loss, recipe.mean, recipe.std)
    faulty = "train_mode_validation" in recipe.faults
    targets, validation_targets = np.asarray(train.targets), np.asarray(validation.targets)
    plans = epoch_plans(recipe, phase, targets, stage)
    if not plans[0].images:
        raise UserError(f"{stage}: no batch can be filled; lower --batch-size or raise --limit")
    padded = not all(batches.valid.all() for batches in plans)
    checks = plan(
        np.arange(len(validation_targets)),
        validation_targets >= 0,
        recipe.eval_batch_size,
        subset="subset_batches" in recipe.faults,
        drop_last="drop_last_validation" in recipe.faults,
    )
    if not checks.images:
        raise UserError(f"{stage}: no validation images; raise --limit")

    state = State(network, optimizer(phase).init(network.params))
    best, position = network, {"epoch": 0, "best_epoch": 0, "best_accuracy": 0.0}
    restored = restore(state, best)
    if restored is not None:
        state, best, position = restored
    rates = learning_rates(phase)
    size = train.images.shape[1:3]
    compiled = None
    for epoch in range(position["epoch"] + 1, phase.epochs + 1):
        began = time.perf_counter()
        batches = plans[epoch - 1]
        draws = _draws(recipe, recipe.augment, stage, epoch, "train", len(targets), size)
        key = jax.random.key(streams.integer(recipe.seed, stage, epoch, "dropout"))
        sums = (jnp.zeros(()), jnp.zeros((), jnp.int32))
        arguments = (train, batches.index, batches.valid, draws, key, jnp.float32(rates[epoch - 1]))
        if compiled is None:
            compiled = memory.compile_within(
                train_steps, program, recipe.augment, padded, state, sums, *arguments, 0, 0
            )
        steps = int(batches.valid.any(1).sum())
        for start, stop in slices(steps):
            state, sums = compiled(state, sums, *arguments, start, stop)
            jax.block_until_ready(sums)
            report(epoch=epoch, epochs=phase.epochs, share=stop / steps)
        draws = _draws(
            recipe, recipe.eval_augment, stage, epoch, "check", len(validation_targets), size
        )
        scores, truth, checked = evaluate(
            program, recipe.eval_augment, faulty, state.network, validation, checks, draws,
            streams.integer(recipe.seed, stage, epoch, "check dropout"),
        )  # fmt: skip
        if faulty:
            state = replace(state, network=checked)
        accuracy, check_loss = metrics.score_accuracy(scores, truth)
        position = position | {"epoch": epoch}
        if accuracy > position["best_accuracy"] or position["best_epoch"] == 0:
            best = jax.tree.map(jnp.copy, state.network)
            position |= {"best_epoch": epoch, "best_accuracy": accuracy}
        images = batches.images
        row = {
            "epoch": epoch,
            "lr": float(rates[epoch - 1]),
            "train_loss": float(sums[0]) / images,
            "train_accuracy": int(sums[1]) / images,
            "validation_loss": check_loss,
            "validation_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 3),
        }
        report(epochs=phase.epochs, row=row, **{"epoch": epoch, "share": 1.0})
        save(state, best, position, epoch == phase.epochs)
    return Result(best, position["best_accuracy"], position["best_epoch"])


def _draws(
    recipe: Recipe,
    policy: Augmentation,
    stage: str,
    epoch: int,
    name: str,
    count: int,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    generator = streams.stream(recipe.seed, stage, epoch, name, "augmentation")
    return draw(policy, generator, count, *size)


def slices(steps: int, target: float = 0.5) -> Iterator[tuple[int, int]]:
    """(start, stop) of the calls that make up an epoch: one on an accelerator.

    On a CPU they grow until a call takes about `target` seconds.
    """
    if jax.default_backend() != "cpu":
        yield 0, steps
        return
    start, size = 0, 1
    while start < steps:
        began = time.perf_counter()
        stop = min(start + size, steps)
        yield start, stop
        took = time.perf_counter() - began
        start, size = stop, max(1, min(4 * size, int(size * target / took)))
