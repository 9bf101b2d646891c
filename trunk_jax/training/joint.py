"""Training all nodes of a grown tree together, with gradients through their ancestors."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int

from data.images.on_disk import Images
from data.images.splits import Splits
from data.inference.model import Predictions
from data.recipes.recipe import DISTIL_TEMPERATURE, Phase, Recipe
from data.training import epochs
from data.training import joint as plans
from data.training.course import epochs_left, finish
from data.training.epochs import Pass, Position
from data.training.joint import Layout
from data.tree import metrics
from data.tree.hierarchy import Node, Tree
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.layers.basic import Mode
from trunk_jax.machine import devices, memory
from trunk_jax.network.network import Arrays, Network, apply
from trunk_jax.training.fit import Program, Steps, inputs, program_of, steps_of, within
from trunk_jax.training.objective import descend, learning_rates, loss, optimizer
from trunk_jax.training.source import Source
from trunk_jax.training.windows import as_array, on_device, windows

Draws = dict[str, Array]
Networks = dict[str, Network]  # by node name


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What training changes: every node's network, and the optimiser's moments."""

    networks: Networks
    moments: optax.OptState


def objective(
    program: Program,
    layout: Layout,
    networks: Networks,
    x: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    mode: Mode,
) -> tuple[Array, tuple[Array, dict[str, Arrays]]]:
    """(loss, (number of images that no node on their true path gets wrong, statistics)).

    The loss of an image is the sum of the losses of the nodes on its true path: with cross
    entropy, minus the log-probability of that path. In a tree with exits these are weighed, nodes
    learn from their children besides (`data.recipes.recipe.Exits`), and an image is right if the
    last node on its true path is. Rows follow `layout`.
    """
    total, right = jnp.zeros((), x.dtype), jnp.ones(len(labels), bool)
    stats: dict[str, Arrays] = {}
    seen: list[Array] = []
    answers: list[Array] = []
    for place, share in enumerate(layout.shares):
        if share.parent >= 0:
            above = layout.shares[share.parent]
            x = seen[share.parent][share.start - above.start : share.stop - above.start]
            x = devices.split(program.mesh, x)  # a part of the batch, evenly split again
        own = replace(mode, key=None if mode.key is None else jax.random.fold_in(mode.key, place))
        (features, scores), stats[share.name] = apply(networks[share.name], x, own)
        seen.append(features)
        answers.append(scores)
        targets = jnp.asarray(share.targets, jnp.int32)[labels[share.start : share.stop]]
        mean = loss(scores, targets, None, program.loss, program.phase.label_smoothing)
        total += mean * (share.weight * len(targets) / layout.width)
        hit = scores.argmax(1) == targets
        if share.above:
            given = answers[share.parent][share.start - above.start : share.stop - above.start]
            taught = distilled(given[:, np.array(share.above)], scores)
            total += taught * (layout.distil * len(targets) / layout.width)
        else:
            hit &= right[share.start : share.stop]
        right = right.at[share.start : share.stop].set(hit)
    return total, (right.sum(dtype=jnp.int32), stats)


def distilled(
    scores: Float[Array, "b classes"], better: Float[Array, "b classes"]
) -> Float[Array, ""]:
    """Mean cross entropy of a node's scores against a child's for the same classes.

    Both at `DISTIL_TEMPERATURE`, times its square, which keeps the gradient's scale. The child's
    are taken as they are: no gradient flows to it.
    """
    wanted = jax.nn.softmax(jax.lax.stop_gradient(better) / DISTIL_TEMPERATURE, axis=1)
    likelihoods = jax.nn.log_softmax(scores / DISTIL_TEMPERATURE, axis=1)
    return -(DISTIL_TEMPERATURE**2) * (wanted * likelihoods).sum(1).mean()


def train_step(
    program: Program,
    layout: Layout,
    state: State,
    x: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    mode: Mode,
    learning_rate: Array,
) -> tuple[State, Array, Array]:
    """One step on one batch: (state, loss, number of right answers)."""

    def value(params):
        networks = {
            name: replace(network, params=params[name]) for name, network in state.networks.items()
        }
        return objective(program, layout, networks, x, labels, mode)

    params = {name: network.params for name, network in state.networks.items()}
    lower = program.phase.precision == "bfloat16"
    with jax.default_matmul_precision("bfloat16") if lower else nullcontext():
        (total, (right, stats)), gradients = jax.value_and_grad(value, has_aux=True)(params)
    steps, moments = optimizer(program.phase).update(gradients, state.moments, params)
    params = descend(params, steps, learning_rate)
    networks = {
        name: replace(network, params=params[name], stats=stats[name])
        for name, network in state.networks.items()
    }
    return State(networks, moments), total, right


@partial(jax.jit, static_argnames=("program", "layout"), donate_argnames=("state", "sums"))
def train_steps(
    program: Program,
    layout: Layout,
    state: State,
    sums: tuple[Array, Array],
    source: Source,
    steps: Steps,
    start: Array,
    stop: Array,
) -> tuple[State, tuple[Array, Array]]:
    """Steps `start` to `stop` of an epoch. `sums`: loss times images, right answers."""
    assert steps.rates is not None
    rates = steps.rates

    def body(step, carry):
        state, (total, right) = carry
        rows = steps.index[step]
        x = inputs(program, source, steps.policy, rows, steps.draws)
        mode = Mode(True, None, jax.random.fold_in(steps.key, step))
        state, value, correct = train_step(
            program, layout, state, x, source.targets[rows], mode, rates[step]
        )
        return devices.whole(program.mesh, (state, (total + value * layout.width, right + correct)))

    return jax.lax.fori_loop(start, stop, body, (state, sums))


def fit_tree(
    recipe: Recipe,
    phase: Phase,
    stage: str,
    tree: Tree,
    networks: dict[Node, Network],
    splits: Splits,
    *,
    restore: Callable[[State, Networks], tuple[State, Networks, Position] | None],
    save: Callable[[State, Networks, Position, bool], None],
    report: Callable[..., None],
) -> dict[Node, Network]:
    """Train all networks of a tree together and return those of the best epoch.

    An epoch is chosen by the tree's accuracy on the validation images, each following its
    own decisions to a leaf. `restore`, `save`, `report`: as in `trunk_jax.training.fit.fit`; the
    validation loss is not taken (NaN), since it belongs to true paths, not to these.
    """
    names = {tree.names[node]: node for node in networks}
    template = {name: networks[node] for name, node in names.items()}
    program = program_of(recipe, phase, next(iter(template.values())))
    labels = splits.train.labels
    layout = plans.layout(tree, labels, recipe.batch_size, recipe.balanced, recipe.exits)
    source = Source(as_array(splits.train.images), jnp.asarray(labels, jnp.int32), ())
    size = source.size
    steps = max(1, len(labels) // layout.width)
    rates = learning_rates(phase, steps).reshape(phase.epochs, steps)

    params = {name: network.params for name, network in template.items()}
    state = State(jax.tree.map(jnp.copy, template), optimizer(phase).init(params))
    best, position = template, Position()
    restored = restore(state, best)
    if restored is not None:
        state, best, position = restored
    state, source = devices.put(program.mesh, state), on_device(program.mesh, source)
    for epoch in epochs_left(position, phase.epochs, report):
        rate = rates[epoch.number - 1]
        batches = plans.batches(recipe, stage, epoch.number, tree, layout, labels)
        run = epochs.training(recipe, stage, epoch.number, batches, len(labels), size)
        state, trained = _train_epoch(program, layout, state, source, run, rate, epoch.report)
        reached = {names[n]: v for n, v in devices.here(state.networks).items()}
        accuracy = _accuracy(Model(recipe, tree, reached), splits)
        validated = (accuracy, math.nan)
        position = finish(epoch, position, recipe.ties, float(rate[0]), trained, validated)
        if position.improved:
            best = jax.tree.map(jnp.copy, state.networks)  # the state's own are donated
        save(state, best, position, epoch.last)
    return {names[name]: network for name, network in devices.here(best).items()}


def _train_epoch(
    program: Program,
    layout: Layout,
    state: State,
    source: Source,
    run: Pass,
    rates: np.ndarray,
    report: Callable[..., None],
) -> tuple[State, tuple[float, int, int]]:
    """A training pass: (state, (sum of loss times images, right answers, images))."""
    sums = (jnp.zeros((), program.dtype), jnp.zeros((), jnp.int32))
    steps, index = steps_of(run, jnp.asarray(rates, program.dtype), padded=False), run.batches.index
    sums, steps = devices.put(program.mesh, (sums, steps))
    for window in windows(program.mesh, source, index, run.draws):
        arguments = (window.source, replace(steps, index=window.index, draws=window.draws))
        compiled = memory.compile_within(
            train_steps, program, layout, state, sums, *arguments, 0, 0, statics=2
        )
        for start, stop in within(window, len(index)):
            state, sums = compiled(state, sums, *arguments, start, stop)
            jax.block_until_ready(sums)
            report(share=stop / len(index))
    return state, (float(sums[0]), int(sums[1]), run.batches.images)


def _accuracy(model: Model, splits: Splits) -> float:
    """The share of validation images that reach their own leaf, as the recipe counts them."""

    def follow(networks: dict[Node, Network], images: Images) -> Predictions:
        return route.predict(replace(model, networks=networks), images)

    found = devices.predict(follow, model.networks, splits.validation.images, route.BATCH).labels
    return metrics.accuracy(splits.validation.labels, found, model.recipe.balanced)
