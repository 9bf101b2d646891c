"""Checks of the program around the networks: whole trainings, input by input.

Other checks compare networks, losses and optimisers' steps, given to both frameworks alike. What
they cannot see is a program that gives the wrong thing to the right network. Here a small tree is
grown, and one trained as a whole, by each framework's own program, while all that reaches a node
is written down (`parity.checks.recording`). It is held against the same training written out
plainly, from pixels, labels, recipe and seed (`parity.checks.plain`): what the nodes were given
and answered, each step's targets, rate, loss and dropout keys, what each epoch reports, and the
weights that come out.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np

from data.images import datasets
from data.images.augmentation import Augmentation
from data.images.datasets import Examples
from data.images.splits import Splits
from data.recipes import recipe as recipes
from data.recipes.recipe import NodeRecipe, Phase, Recipe
from data.run import runfolder
from data.tree import grouping, hierarchy
from data.tree.hierarchy import ROOT, Groups, Node
from parity.checks import plain, recording, tolerance
from parity.checks.plain import Call, Course, JaxMasks, Setting, TorchMasks
from parity.checks.tolerance import Check
from parity.checks.training import CONTROL
from parity.pairs.passes import cast, compiling
from trunk_jax.network import exchange
from trunk_jax.network.network import Network
from trunk_jax.nodes.vgg import VggNode
from trunk_jax.training import grow, joint
from trunk_torch_ref.inference.load import channel_first
from trunk_torch_ref.network import exchange as torch_exchange
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.nodes.vgg import VggNode as TorchVggNode
from trunk_torch_ref.training import grow as torch_grow
from trunk_torch_ref.training import joint as torch_joint


@dataclass(frozen=True)
class Case:
    """A training to check. `groups`: by its number of classes, how a node is split."""

    name: str
    recipe: Recipe
    groups: dict[int, Groups]


def cases() -> dict[str, Case]:
    """The trainings; `flat` is the start of `grown`, for the self-test."""
    alone = tuple((index,) for index in range(10))
    return {
        "flat": Case("one node", _ours(), {10: alone}),
        "grown": Case("growing", _ours(), {10: _pairs((0, 1, 2), (3, 4, 5), 10), 3: alone[:3]}),
        "faulty": Case(
            "growing, the release's faults",
            _faulty(),
            {10: _pairs((0, 1, 2, 3), (), 10), 4: alone[:4]},
        ),
        "joint": Case("training as a whole", _joint(), {}),
    }


def _pairs(first: tuple[int, ...], second: tuple[int, ...], classes: int) -> Groups:
    rest = ((index,) for index in range(classes) if index not in first + second)
    return hierarchy.as_groups([list(group) for group in (first, second, *rest) if group])


def _ours() -> Recipe:
    """Random augmentation, Nesterov, smoothing; a rate for each step, so siblings' differ."""
    phase = Phase(
        2,
        optimizer="sgd",
        lr=0.02,
        weight_decay=5e-4,
        nesterov=True,
        schedule="onecycle",
        label_smoothing=0.1,
    )
    return replace(_base(phase), augment=Augmentation((2, 8), 1, True, (1, 3)), ties="last")


def _faulty() -> Recipe:
    """The release's faults, and augmented validation images where training ones are plain."""
    phase = Phase(3, lr=1e-3, weight_decay=5e-4, schedule="cosine", period=2)
    other = replace(phase, epochs=2, lr=2e-3, schedule="step", period=1, factor=0.3)
    recipe = replace(_base(phase), others=NodeRecipe(1.0, other, phase), ties="first")
    others = ("pointwise_padding", "no_head", "no_stem_norm")  # of other networks
    faults = tuple(fault for fault in recipes.FAULTS if fault not in others)
    return replace(recipe, eval_augment=Augmentation(None, 0, True, (1, 4)), faults=faults)


def _joint() -> Recipe:
    """A whole tree, its classes balanced though the images are not."""
    recipe = _ours()
    phase, policy = replace(recipe.root.class_phase, lr=0.05), Augmentation(None, 1, True, (1, 3))
    return replace(recipe, joint=phase, balanced=True, batch_size=20, augment=policy)


def _base(phase: Phase) -> Recipe:
    recipe = recipes.load("corrected", "digits", "vgg")
    row = NodeRecipe(1.0, phase, phase)
    return replace(
        recipe,
        root=row,
        others=row,
        batch_size=10,
        eval_batch_size=12,
        mean=(0.3, 0.45, 0.55),
        std=(0.2, 0.25, 0.3),
    )


# So many images of each class: siblings have epochs of different lengths.
TRAIN = (9, 6, 8, 15, 11, 7, 10, 5, 4, 13)
VALIDATION = (3, 4, 2, 5, 3, 4, 3, 2, 2, 3)


def images() -> Splits:
    """Digits, each tinted in a colour of its own: three channels that are not alike."""
    digits, rng = datasets.load("digits"), np.random.default_rng(0)

    def some(examples: Examples, counts: tuple[int, ...]) -> Examples:
        rows = [np.flatnonzero(examples.labels == c)[:n] for c, n in enumerate(counts)]
        mixed = rng.permutation(np.concatenate(rows))
        tint = rng.uniform(0.3, 1, (len(mixed), 1, 1, 3))
        return Examples((examples.images[mixed] * tint).astype(np.uint8), examples.labels[mixed])

    train, validation = some(digits.train, TRAIN), some(digits.test, VALIDATION)
    return Splits(train, validation, validation)


# A tree of three levels for `joint`: root, {0, 1, 2}, and {3, 4, 5} with {4, 5} below it.
TREE = hierarchy.regroup(
    hierarchy.regroup(hierarchy.bare(10), ROOT, _pairs((0, 1, 2), (3, 4, 5), 10)),
    (1,),
    ((0,), (1, 2)),
)


def check_program(framework: str, which: str) -> list[Check]:
    """A case (of `cases`) run by one framework (`jax`, `torch`) against the plain one."""
    case = cases()[which]
    name = f"{'JAX' if framework == 'jax' else 'PyTorch'}'s program, {case.name}"
    splits = images()
    run = RUNS[framework, "joint" if case.recipe.joint else "grow"]
    with jax.enable_x64(framework == "jax"), compiling("float64"):
        found, start = run(case, splits)
        setting = Setting(
            case.recipe,
            splits,
            case.groups,
            start,
            JaxMasks() if framework == "jax" else TorchMasks(),
            together=framework == "jax",
        )
        expected, control = (
            plain.joint(each, TREE) if case.recipe.joint else plain.grown(each)
            for each in (setting, replace(setting, nudge=True))
        )
    return judge(name, found, expected, control)


# --- the frameworks' own programs


Start = dict[tuple[str, str], plain.Weights]


def _grow(case: Case, program: Callable[..., object], recorded) -> Course:
    """What `program(folder)` does, and what it leaves in its run folder."""
    fixed = patch.object(grouping, "group", lambda asl, *_: case.groups[len(asl)])
    with tempfile.TemporaryDirectory() as temporary, fixed:
        folder = Path(temporary)
        with recorded as course:
            program(folder)
        course.rows = runfolder.read_metrics(folder)
        for file in (folder / "asl").glob("*.json"):
            value = runfolder.read_json(file)
            course.asl[file.stem] = np.array(value["asl"])
    return course


def _jax_grow(case: Case, splits: Splits) -> tuple[Course, Start]:
    start: Start = {}

    def begin(recipe, tree, node, phase, *rest):
        network = cast(grow.initial_network(recipe, tree, node, phase, *rest), "float64")
        start[tree.names[node], phase] = exchange.to_state_dict(network)
        return network

    def program(folder):
        results = grow.grow(
            case.recipe, splits, 10, folder, _silent, start=begin, siblings="together"
        )
        final.update(
            {results.tree.names[n]: exchange.to_state_dict(w) for n, w in results.networks.items()}
        )

    final: dict[str, plain.Weights] = {}
    course = _grow(case, program, recording.jax_recorded(VggNode))
    course.weights = final
    return course, start


def _torch_grow(case: Case, splits: Splits) -> tuple[Course, Start]:
    start: Start = {}

    def begin(recipe, tree, node, phase, *rest):
        module = torch_grow.initial_network(recipe, tree, node, phase, *rest).double()
        start[tree.names[node], phase] = plain.state_dict(module)
        return module

    def program(folder):
        results = torch_grow.grow(case.recipe, splits, 10, folder, _silent, start=begin)
        final.update(
            {
                results.tree.names[n]: torch_exchange.to_state_dict(w)
                for n, w in results.networks.items()
            }
        )

    final: dict[str, plain.Weights] = {}
    course = _grow(case, program, recording.torch_recorded(TorchVggNode))
    course.weights = final
    return course, start


def _jax_joint(case: Case, splits: Splits) -> tuple[Course, Start]:
    phase = case.recipe.joint
    assert phase is not None
    networks: dict[Node, Network] = {}
    start: Start = {}
    for node in TREE.nodes:
        network = grow.initial_network(
            case.recipe, TREE, node, "group", networks, splits.train.image_shape
        )
        networks[node] = cast(network, "float64")
        start[TREE.names[node], "group"] = exchange.to_state_dict(networks[node])
    with recording.jax_recorded(VggNode) as course:
        trained = joint.fit_tree(
            case.recipe,
            phase,
            "tree/joint",
            TREE,
            networks,
            splits,
            restore=lambda *_: None,
            save=_silent,
            report=partial(_note_row, course),
        )
    course.weights = {TREE.names[n]: exchange.to_state_dict(w) for n, w in trained.items()}
    course.calls = [call for call in course.calls if call.train]  # routing is checked elsewhere
    return course, start


def _torch_joint(case: Case, splits: Splits) -> tuple[Course, Start]:
    phase = case.recipe.joint
    assert phase is not None
    networks: dict[Node, NodeNetwork] = {}
    start: Start = {}
    shape = channel_first(splits.train.image_shape)
    train = torch_grow.as_images(splits.train.images)
    for node in TREE.nodes:
        networks[node] = torch_grow.initial_network(
            case.recipe, TREE, node, "group", networks, shape
        ).double()
        start[TREE.names[node], "group"] = plain.state_dict(networks[node])
    with recording.torch_recorded(TorchVggNode) as course:
        trained = torch_joint.fit_tree(
            case.recipe,
            phase,
            "tree/joint",
            TREE,
            networks,
            train,
            splits,
            restore=lambda *_: None,
            save=_silent,
            report=partial(_note_row, course),
        )
    course.weights = {TREE.names[n]: torch_exchange.to_state_dict(w) for n, w in trained.items()}
    course.calls = [call for call in course.calls if call.train]  # routing is checked elsewhere
    return course, start


def _note_row(course: Course, row=None, **_) -> None:
    if row is not None:
        course.rows.append({"node": "tree", "phase": "joint", **row})


def _silent(*_, **__) -> None:
    pass


RUNS = {
    ("jax", "grow"): _jax_grow,
    ("jax", "joint"): _jax_joint,
    ("torch", "grow"): _torch_grow,
    ("torch", "joint"): _torch_joint,
}


# --- the comparison


@dataclass(frozen=True)
class Item:
    """One value that a run should have had: what kind it is, where, and the three values."""

    what: str
    where: str
    found: np.ndarray
    expected: np.ndarray
    control: np.ndarray


EXACT = ("targets", "dropout keys", "train or eval mode")  # the kinds of items without rounding


def judge(name: str, found: Course, expected: Course, control: Course) -> list[Check]:
    """Everything that was written down against what it should have been."""
    calls, steps = matched(found, expected)
    checks = [
        _complete(name, "calls of nodes", calls, found.calls),
        _complete(name, "training steps", steps, found.steps),
    ]
    items: dict[str, list[Item]] = {}
    for item in (
        *_of_calls(calls, expected, control),
        *_of_steps(steps, expected, control),
        *_of_rows(found, expected, control),
        *_of_tables(found, expected, control),
    ):
        items.setdefault(item.what, []).append(item)
    return checks + [_check(name, what, mine) for what, mine in items.items()]


def matched(found: Course, expected: Course) -> tuple[list[Call | None], list[plain.Step | None]]:
    """For each expected call and step the one that was found, or None.

    By JAX's keys, and where there are none by their order.
    """
    by_key = {(call.keys[0], call.place): call for call in found.calls if call.keys}
    others = iter([call for call in found.calls if not call.keys])
    calls = [
        by_key.get((call.keys[0], call.place)) if call.keys else next(others, None)
        for call in expected.calls
    ]
    keyed = {step.key: step for step in found.steps}
    if None in keyed or not keyed:
        steps = [*found.steps, *[None] * len(expected.steps)][: len(expected.steps)]
    else:
        steps = [keyed.get(step.key) for step in expected.steps]
    return calls, steps


def _complete(name: str, what: str, matches: list[Any], found: list[Any]) -> Check:
    """None is missing, and none too many.

    A step that a sibling only computes while it waits for others, its result thrown away, carries
    a key that is not among the expected ones; that it changes nothing the weights show.
    """
    missing = sum(match is None for match in matches)
    idle = [each for each in found if _keyed(each) and not any(each is m for m in matches)]
    extra = len(found) - len(idle) - (len(matches) - missing)
    detail = f"{len(matches)} expected, {missing} missing, {extra} too many"
    detail += f", {len(idle)} with other keys" if idle else ""
    off = missing + abs(extra)
    return Check(
        name, f"{what}, all that there should be", "-", off, off, "identical", not off, detail
    )


def _keyed(each: Call | plain.Step) -> bool:
    return (each.keys if isinstance(each, Call) else each.key) is not None


def _own_key(call: Call) -> np.ndarray:
    """The key of a node's dropout; empty if there was none."""
    return np.frombuffer(call.keys[1] if call.keys else b"", np.uint32)


def _of_calls(calls, expected: Course, control: Course) -> Iterator[Item]:
    for call, wanted, other in zip(calls, expected.calls, control.calls, strict=True):
        if call is None:
            continue
        modes = (np.array(each.train) for each in (call, wanted, other))
        yield Item("train or eval mode", wanted.where, *modes)
        if wanted.keys:
            keys = (_own_key(c) for c in (call, wanted, other))
            yield Item("dropout keys", wanted.where, *keys)
        which = "root" if wanted.root else "other nodes"
        given = "pixels given to the root" if wanted.root else "feature maps given to other nodes"
        count = len(wanted.x)  # a padded batch in eval mode does not say what is padding
        yield Item(f"{given} in {wanted.what}", wanted.where, call.x[:count], wanted.x, other.x)
        yield Item(
            f"scores of {which} in {wanted.what}",
            wanted.where,
            call.scores[:count],
            wanted.scores,
            other.scores,
        )


def _of_steps(steps, expected: Course, control: Course) -> Iterator[Item]:
    for step, wanted, other in zip(steps, expected.steps, control.steps, strict=True):
        if step is not None:
            kinds = {
                "targets": "targets",
                "learning rates of steps": "rate",
                "losses of steps": "loss",
            }
            for what, of in kinds.items():
                values = (np.asarray(getattr(s, of)) for s in (step, wanted, other))
                yield Item(what, wanted.where, *values)


def _of_rows(found: Course, expected: Course, control: Course) -> Iterator[Item]:
    rows = {(row["node"], row["phase"], row["epoch"]): row for row in found.rows}
    for wanted, other in zip(expected.rows, control.rows, strict=True):
        key = tuple(wanted[part] for part in ("node", "phase", "epoch"))
        for column in wanted.keys() - {"node", "phase", "epoch"}:
            value = rows.get(key, {}).get(column, math.nan)
            values = (np.array(v, np.float64) for v in (value, wanted[column], other[column]))
            where = f"{key[0]}/{key[1]}, epoch {key[2]}"
            yield Item(f"reported {column}", where, *values)


def _of_tables(found: Course, expected: Course, control: Course) -> Iterator[Item]:
    for name, wanted in expected.asl.items():
        yield Item("ASL", name, found.asl.get(name, np.array(())), wanted, control.asl[name])
    for name, weights in expected.weights.items():
        for key, array in weights.items():
            mine = found.weights.get(name, {}).get(key, np.array(()))
            yield Item(
                "weights at the end", f"{name}: {key}", mine, array, control.weights[name][key]
            )


def _check(name: str, what: str, items: list[Item]) -> Check:
    """The worst of the items, each judged by what one flipped bit does to such items."""
    if what in EXACT:
        wrong = [item for item in items if not np.array_equal(item.found, item.expected)]
        detail = f"{len(wrong)} of {len(items)} differ, first {wrong[0].where}" if wrong else ""
        return Check(
            name,
            what,
            "-",
            len(wrong),
            len(wrong),
            "identical",
            not wrong,
            detail or f"{len(items)} of them",
        )
    effect = max(float(np.abs(i.control - i.expected).max()) / _scale(i) for i in items)
    bound = max(CONTROL * effect, tolerance.VALUE_64)
    rows = [
        (tolerance.close(name, what, i.found, i.expected, bound, scale=_scale(i)), i.where)
        for i in items
    ]
    failed = [row for row in rows if not row[0].passed]
    check, where = failed[0] if failed else max(rows, key=lambda row: row[0].max_rel)
    detail = f"first at {where}" if failed else f"{len(items)} of them, worst at {where}"
    return replace(check, detail=f"{detail}; one flipped bit changes it by {effect:.1e}")


def _scale(item: Item) -> float:
    return float(np.abs(item.expected).max(initial=0.0)) or 1.0
