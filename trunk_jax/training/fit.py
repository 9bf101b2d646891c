"""Training one node: compiled epochs over data that stays on the device."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from data.images.augmentation import Augmentation
from data.recipes.recipe import Phase, Recipe
from data.training import epochs
from data.training.batches import Plan, pad
from data.training.course import epochs_left, finish
from data.training.epochs import Pass, Position
from data.tree import metrics
from trunk_jax.inference.microbatched import in_microbatches, infer
from trunk_jax.layers.basic import Mode
from trunk_jax.machine import devices, hosts, memory
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, apply, dtype_of, features
from trunk_jax.training.objective import descend, learning_rates, loss, optimizer
from trunk_jax.training.source import Draws, Some, Source
from trunk_jax.training.windows import Window, on_device, windows


@dataclass(frozen=True)
class Program:
    """What a compiled pass depends on besides arrays. `mesh`: its devices; None: the only one."""

    phase: Phase
    loss: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    mesh: Mesh | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What training changes."""

    network: Network
    moments: optax.OptState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """The steps of a pass, its random choices made.

    Attributes:
      policy: the augmentation that `draws` are of.
      padded: whether `valid` is False anywhere.
      index: the images of each step.
      valid: which of them are images and not padding.
      draws: the augmentation's random numbers, for all images.
      key: what each step's dropout masks are drawn from.
      rates: the learning rate of each step; None where nothing is learned.

    """

    policy: Augmentation = field(metadata={"static": True})
    padded: bool = field(metadata={"static": True})
    index: Int[Some, "steps width"]
    valid: Bool[Some, "steps width"]
    draws: Draws
    key: Array
    rates: Float[Some, " steps"] | None = None


@dataclass(frozen=True)
class Result:
    """A trained node: the best epoch's network, its validation accuracy and number."""

    network: Network
    accuracy: float
    epoch: int


@dataclass(frozen=True)
class EpochTraining:
    """A training pass that a fit asks for. `rates`: the learning rate of each step."""

    program: Program
    padded: bool
    state: State
    source: Source
    run: Pass
    rates: np.ndarray
    report: Callable[..., None]


Trained = tuple[State, float, int]  # after a pass; sum of loss times images, right answers
Fitting = Generator[EpochTraining, Trained, Result]


def program_of(recipe: Recipe, phase: Phase, network: Network) -> Program:
    """The program of a phase, in the type of the network's parameters, on the devices in use."""
    kind = str(dtype_of(network))
    return Program(phase, recipe.loss, recipe.mean, recipe.std, kind, devices.mesh())


def inputs(
    program: Program, source: Source, policy: Augmentation, index: Int[Array, " b"], draws: Draws
) -> Array:
    """What the node is given for the images at `index`: augmented, normalised, through `above`."""
    index = devices.split(program.mesh, index)
    if source.cached is not None and source.cached_rows is not None:
        return source.cached[source.cached_rows[index]]
    mine = {name: values[index] for name, values in draws.items()}
    x = prepare(source.images[index], mine, policy, program.mean, program.std, program.dtype)

    def through(x: Array) -> Array:
        for network in source.above:
            x = features(network, x)
        return x

    return in_microbatches(through, x, program.mesh) if source.above else x


def rounded(values):
    """In bfloat16, whole numbers as they are; gradients come back in the values' own type."""
    return jax.tree.map(
        lambda v: v.astype(jnp.bfloat16) if jnp.issubdtype(v.dtype, jnp.floating) else v, values
    )


def train_step(
    program: Program,
    state: State,
    x: Array,
    targets: Int[Array, " b"],
    mode: Mode,
    learning_rate: Array,
) -> tuple[State, Array, Array]:
    """One step on one batch: (state, loss, number of right answers)."""
    lower = program.phase.precision == "bfloat16"

    def objective(params):
        network = replace(state.network, params=rounded(params) if lower else params)
        (_, scores), stats = apply(network, rounded(x) if lower else x, mode)
        scores = scores.astype(program.dtype)
        smoothing = program.phase.label_smoothing
        return loss(scores, targets, mode.valid, program.loss, smoothing), (scores, stats)

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, (scores, stats)), gradients = gradient(state.network.params)
    steps, moments = optimizer(program.phase).update(gradients, state.moments, state.network.params)
    params = descend(state.network.params, steps, learning_rate)
    right = scores.argmax(1) == targets
    if mode.valid is not None:
        right &= mode.valid
    state = State(replace(state.network, params=params, stats=stats), moments)
    return state, value, right.sum(dtype=jnp.int32)


@partial(jax.jit, static_argnames=("program",), donate_argnames=("state", "sums"))
def train_steps(
    program: Program,
    state: State,
    sums: tuple[Array, Array],
    source: Source,
    steps: Steps,
    start: Array,
    stop: Array,
) -> tuple[State, tuple[Array, Array]]:
    """Steps `start` to `stop` of an epoch. `sums`: loss times images, right answers.

    The bounds are arguments, not shapes: one program serves a whole epoch in one call (on
    accelerators) and slices of it (on CPUs, where an epoch can take minutes and a user
    wants to see progress and to interrupt).
    """
    assert steps.rates is not None
    rates = steps.rates

    def body(step, carry):
        state, (total, right) = carry
        rows, real = steps.index[step], steps.valid[step]
        mode = Mode(True, real if steps.padded else None, jax.random.fold_in(steps.key, step))
        x = inputs(program, source, steps.policy, rows, steps.draws)
        targets = jnp.maximum(source.targets[rows], 0)
        state, value, correct = train_step(program, state, x, targets, mode, rates[step])
        sums = (total + value * real.sum().astype(value.dtype), right + correct)
        return devices.whole(program.mesh, (state, sums))

    return jax.lax.fori_loop(start, stop, body, (state, sums))


@partial(jax.jit, static_argnames=("program", "train"))
def scores_of(
    program: Program, train: bool, network: Network, source: Source, steps: Steps, first: Array
) -> tuple[Array, Network]:
    """The node's scores, [steps, width, outputs], and the network after these steps of a pass.

    `first`: the number of the first of them. With `train` the release's fault: batch statistics,
    which the running ones absorb, and dropout; otherwise the network is returned as it came.
    """

    def body(network, step):
        rows, real = steps.index[step], steps.valid[step]
        x = inputs(program, source, steps.policy, rows, steps.draws)
        if not train:
            return network, infer(network, x, program.mesh)[1]
        mode = Mode(True, real, jax.random.fold_in(steps.key, first + step))
        (_, scores), stats = apply(network, x, mode)
        return replace(network, stats=stats), scores

    network, scores = jax.lax.scan(body, network, jnp.arange(steps.index.shape[0]))
    return devices.whole(program.mesh, (scores, network))


def steps_of(run: Pass, rates: Some | None = None, padded: bool = True) -> Steps:
    """A pass as the compiled programs take it, still in the host's memory."""
    key, batches = jax.random.key(run.seed), run.batches
    return Steps(run.policy, padded, batches.index, batches.valid, run.draws, key, rates)


def evaluate(
    program: Program, network: Network, source: Source, run: Pass
) -> tuple[np.ndarray, np.ndarray, Network]:
    """(scores [n, outputs], targets [n], network) over the images of a pass, in its order."""
    batches, found = run.batches, []
    network = devices.put(program.mesh, network)
    for window in windows(program.mesh, source, batches.index, run.draws):
        count = window.stop - window.start
        # in eval mode all windows have one shape; in train mode a step more would move statistics
        rows = count if run.train else window.length
        valid = np.resize(batches.valid[window.start : window.stop], (rows, len(batches.index[0])))
        steps = replace(steps_of(run), index=window.index[:rows], valid=valid, draws=window.draws)
        steps = devices.put(program.mesh, steps)
        scores, network = scores_of(program, run.train, network, window.source, steps, window.start)
        found.append(np.asarray(scores)[:count])
    targets = np.asarray(source.targets)[batches.index]
    return np.concatenate(found)[batches.valid], targets[batches.valid], network


def one_shape(plans: list[Plan]) -> list[Plan]:
    """The plans padded to the longest and widest, so that one program serves them all."""
    shapes = [batches.index.shape for batches in plans]
    steps, width = map(max, zip(*shapes, strict=True))
    return [pad(batches, steps, width) for batches in plans]


def fit(*arguments, **more) -> Result:
    """Train a network for a phase and return its best epoch; the arguments are `fitting`'s."""
    steps = fitting(*arguments, **more)
    try:
        asked = next(steps)
        while True:
            asked = steps.send(train_epoch(asked))
    except StopIteration as end:
        return end.value


def fitting(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    network: Network,
    train: Source,
    validation: Source,
    *,
    restore: Callable[[State, Network], tuple[State, Network, Position] | None],
    save: Callable[[State, Network, Position, bool], None],
    report: Callable[..., None],
    cache: Callable[[Source, Augmentation], Source] = lambda source, policy: source,
) -> Fitting:
    """The course of training `network` for a phase; it returns the best epoch.

    A generator: it asks for each epoch's training pass, so that several can be run together
    (`trunk_jax.training.siblings`).

    Args:
      stage: names the random streams, e.g. `sg1/class`.
      restore: given templates, the (state, best network, position) of an interrupted run.
      save: called after each epoch with the same; its last argument tells the final one.
      report: called with the epoch's numbers, and during it with how far it is.
      cache: makes a source ready that epochs are to come from; not called if there are none.

    An epoch: train, validate, keep if best, then the next learning rate. The network's type
    is the one that all is computed in.

    """
    program = program_of(recipe, phase, network)
    targets, check_targets = np.asarray(train.targets), np.asarray(validation.targets)
    size = train.size

    # The state is donated to each step; the caller's network stays the caller's.
    state = State(jax.tree.map(jnp.copy, network), optimizer(phase).init(network.params))
    best = network
    position = Position()
    restored = restore(state, best)
    if restored is not None:
        state, best, position = restored
    if position.epoch == phase.epochs:
        return Result(devices.here(best), position.best_accuracy, position.best_epoch)
    train, validation = cache(train, recipe.augment), cache(validation, recipe.eval_augment)
    plans = one_shape(epochs.training_batches(recipe, stage, phase.epochs, targets))
    padded = not all(batches.valid.all() for batches in plans)
    checks = epochs.validation_batches(recipe, stage, check_targets)
    state = devices.put(program.mesh, state)
    train, validation = on_device(program.mesh, train), on_device(program.mesh, validation)
    rates = learning_rates(phase, len(plans[0].index)).reshape(phase.epochs, -1)
    for epoch in epochs_left(position, phase.epochs, report):
        rate, batches = rates[epoch.number - 1], plans[epoch.number - 1]
        run = epochs.training(recipe, stage, epoch.number, batches, len(targets), size)
        asked = EpochTraining(program, padded, state, train, run, rate, epoch.report)
        state, total, right = yield asked
        run = epochs.validation(recipe, stage, epoch.number, checks, len(check_targets), size)
        scores, truth, checked = evaluate(program, state.network, validation, run)
        state = replace(state, network=checked)  # another one if the run was in train mode
        trained, validated = (total, right, batches.images), metrics.score_accuracy(scores, truth)
        position = finish(epoch, position, recipe.ties, float(rate[0]), trained, validated)
        if position.improved:
            best = jax.tree.map(jnp.copy, state.network)  # the state's own is donated
        save(state, best, position, epoch.last)
    return Result(devices.here(best), position.best_accuracy, position.best_epoch)


def train_epoch(epoch: EpochTraining) -> Trained:
    """A training pass."""
    program, batches, state = epoch.program, epoch.run.batches, epoch.state
    sums = (jnp.zeros((), program.dtype), jnp.zeros((), jnp.int32))
    steps = steps_of(epoch.run, jnp.asarray(epoch.rates, program.dtype), epoch.padded)
    sums, steps = devices.put(program.mesh, (sums, steps))
    count = int(batches.valid.any(1).sum())
    for window in windows(program.mesh, epoch.source, batches.index, epoch.run.draws):
        mine = replace(steps, index=window.index, draws=window.draws)
        arguments = (window.source, mine)
        compiled = memory.compile_within(
            train_steps, program, state, sums, *arguments, 0, 0, statics=1
        )
        for start, stop in within(window, count):
            state, sums = compiled(state, sums, *arguments, start, stop)
            jax.block_until_ready(sums)
            epoch.report(share=stop / count)
    return state, float(sums[0]), int(sums[1])


def within(window: Window, count: int) -> Iterator[tuple[int, int]]:
    """`slices` of a window's steps, of a pass that has `count`; its last rows may be padding."""
    for start, stop in slices(max(0, min(window.stop, count) - window.start)):
        yield window.start + start, window.start + stop


def slices(steps: int, target: float = 0.5) -> Iterator[tuple[int, int]]:
    """(start, stop) of the calls that make up an epoch: one on an accelerator.

    On a CPU they grow until a call takes about `target` seconds; with several processes, whose
    clocks differ, there is one as well.
    """
    if jax.default_backend() != "cpu" or hosts.several():
        yield 0, steps
        return
    start, size = 0, 1
    while start < steps:
        began = time.perf_counter()
        stop = min(start + size, steps)
        yield start, stop
        took = time.perf_counter() - began
        start, size = stop, max(1, min(4 * size, int(size * target / took)))
