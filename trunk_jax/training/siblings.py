"""Training several nodes together: one program for all that have one shape.

Siblings depend on nothing of each other. A step of one small node leaves an accelerator idle
most of the time, so the steps of alike nodes are batched (`jax.vmap`). Each sees the images,
random choices and learning rates that it would see alone; what differs is the order in which
products are summed, so weights agree to rounding, not bit for bit.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from data.base.errors import UserError
from data.training.batches import pad
from trunk_jax.layers.basic import Mode
from trunk_jax.machine import devices, memory
from trunk_jax.training import fit
from trunk_jax.training.fit import (
    EpochTraining,
    Fitting,
    Program,
    Result,
    Source,
    State,
    Steps,
    Trained,
)
from trunk_jax.training.source import Draws


def wanted(choice: str, on_disk: bool = False) -> bool:
    """Whether siblings are to be trained `together`; `auto` means on a single accelerator.

    Not where images stay `on_disk`: each would read them for itself. UserError if they are to be
    all the same, or if batches are split over several devices.
    """
    if on_disk:
        if choice == "together":
            raise UserError(
                "--siblings together needs the images in memory: add --images-in memory, or leave "
                "it out"
            )
        return False
    if devices.mesh() is not None:
        if choice == "together":
            raise UserError("--siblings together is for one device: add --devices 1")
        return False
    return choice == "together" or (choice == "auto" and jax.default_backend() != "cpu")


def fit_all(fittings: Sequence[Fitting], report: Callable[..., None]) -> list[Result]:
    """The results of fits that go on side by side, an epoch of each at a time."""
    results: dict[int, Result] = {}
    answers: dict[int, Trained | None] = dict.fromkeys(range(len(fittings)))
    while answers:
        asked: dict[int, EpochTraining] = {}
        for place, answer in answers.items():
            try:
                steps = fittings[place]
                asked[place] = next(steps) if answer is None else steps.send(answer)
            except StopIteration as end:
                results[place] = end.value
        answers = dict(zip(asked, train_epochs(list(asked.values()), report), strict=True))
    return [results[place] for place in range(len(fittings))]


def train_epochs(epochs: Sequence[EpochTraining], report: Callable[..., None]) -> list[Trained]:
    """An epoch of each; those of one shape together, the others alone.

    `report` is told in a `note` when memory is too short for that.
    """
    groups: dict[object, list[int]] = {}
    for place, epoch in enumerate(epochs):
        groups.setdefault(_kind(epoch), []).append(place)
    trained: dict[int, Trained] = {}
    for places in groups.values():
        mine = [epochs[place] for place in places]
        trained |= zip(places, _together(mine, report), strict=True)
    return [trained[place] for place in range(len(epochs))]


def _kind(epoch: EpochTraining) -> object:
    """What epochs must have in common to run as one."""
    leaves, structure = jax.tree.flatten(epoch.state)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    policy, width = epoch.run.policy, epoch.run.batches.index.shape[1]
    return epoch.program, epoch.padded, policy, width, structure, shapes


def _together(epochs: Sequence[EpochTraining], report: Callable[..., None]) -> list[Trained]:
    if len(epochs) == 1:
        return [fit.train_epoch(epochs[0])]
    first, many = epochs[0], len(epochs)
    longest = max(len(epoch.run.batches.index) for epoch in epochs)
    plans = [pad(e.run.batches, longest, e.run.batches.index.shape[1]) for e in epochs]
    counts = [int(plan.valid.any(1).sum()) for plan in plans]
    dtype = first.program.dtype
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(epoch.state for epoch in epochs))
    sums = (jnp.zeros(many, dtype), jnp.zeros(many, jnp.int32))
    steps = Steps(
        policy=first.run.policy,
        padded=first.padded,
        index=jnp.stack([plan.index for plan in plans]),
        valid=jnp.stack([plan.valid for plan in plans]),
        draws={},  # of each node's own images, and therefore apart
        key=jnp.stack([jax.random.key(epoch.run.seed) for epoch in epochs]),
        rates=jnp.stack([jnp.resize(jnp.asarray(e.rates, dtype), (longest,)) for e in epochs]),
    )
    images = tuple((epoch.source, epoch.run.draws) for epoch in epochs)
    arguments = (images, steps, jnp.asarray(counts))
    try:
        compiled = memory.compile_within(
            train_steps, first.program, states, sums, *arguments, 0, 0, statics=1
        )
    except UserError as error:  # too little memory
        report(note=f"siblings are trained one after the other: together {error}")
        return [fit.train_epoch(epoch) for epoch in epochs]
    for start, stop in fit.slices(max(counts)):
        states, sums = compiled(states, sums, *arguments, start, stop)
        jax.block_until_ready(sums)
        for epoch, count in zip(epochs, counts, strict=True):
            epoch.report(share=min(stop, count) / count)
    return [
        (jax.tree.map(lambda leaf, place=place: leaf[place], states), float(total), int(right))
        for place, (total, right) in enumerate(zip(*sums, strict=True))
    ]


@partial(jax.jit, static_argnames=("program",), donate_argnames=("states", "sums"))
def train_steps(
    program: Program,
    states: State,
    sums: tuple[Array, Array],
    images: tuple[tuple[Source, Draws], ...],
    steps: Steps,
    counts: Int[Array, " nodes"],
    start: Array,
    stop: Array,
) -> tuple[State, tuple[Array, Array]]:
    """`fit.train_steps` for several nodes. `states`, `sums`, `steps`: with a leading axis of
    nodes. `images`: of each node its own, and its draws, which `steps` has none of.

    A node that has done its `counts` steps stays as it is.
    """
    assert steps.rates is not None
    rates = steps.rates

    def body(step, carry):
        states, (total, right) = carry
        rows, real = steps.index[:, step], steps.valid[:, step]
        each = [(*own, row) for own, row in zip(images, rows, strict=True)]
        x = jnp.stack(
            [fit.inputs(program, source, steps.policy, row, mine) for source, mine, row in each]
        )
        targets = jnp.stack([jnp.maximum(source.targets[row], 0) for source, _, row in each])

        def one(state, x, targets, real, key, rate):
            mode = Mode(True, real if steps.padded else None, jax.random.fold_in(key, step))
            return fit.train_step(program, state, x, targets, mode, rate)

        after, value, correct = jax.vmap(one)(states, x, targets, real, steps.key, rates[:, step])
        busy = step < counts

        def kept(new, old):
            return jnp.where(busy.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        count = real.sum(1).astype(value.dtype)
        sums = (kept(total + value * count, total), kept(right + correct, right))
        return jax.tree.map(kept, after, states), sums

    return jax.lax.fori_loop(start, stop, body, (states, sums))
