"""The coupled design: both frameworks, and their controls, trained in lockstep.

All start from PyTorch's initial weights, see the same batches with the same augmentation and drop
the same units. A control is a framework's own run with bits of weights flipped at the start of
each stage.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from sklearn.metrics import cohen_kappa_score

from data.base.errors import UserError
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training import epochs, growth
from data.training.epochs import Position
from data.training.growth import Decision, decision_of
from data.training.stages import Stage
from data.tree import metrics
from data.tree.hierarchy import Groups, Node, Tree, ancestors
from data.tree.selection import HeldOut
from parity.checks.tolerance import UNIT
from parity.study import distances, jax_runner, torch_runner, trees, verdict
from parity.study.jax_runner import JaxRunner
from parity.study.judge import Judgement, judge, truth_of
from parity.study.locate import located
from parity.study.shadow import Shadows
from parity.study.step import Arrays, Step, flipped
from parity.study.torch_runner import TorchRunner
from parity.study.trace import Trace, compare, digits, largest
from parity.study.verdict import Finding

Runner = JaxRunner | TorchRunner
Report = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """One of the runs: `name`, e.g. `jax` or `torch flip 2`; `flip`: which one, 0 for none.

    `of`: of a control, the place of the run that it controls: 0 is JAX's, 1 PyTorch's.
    """

    name: str
    runner: Runner
    of: int
    flip: int


@dataclass
class Study:
    """The runs in lockstep: the first is JAX's, the second PyTorch's, the rest are controls."""

    recipe: Recipe
    parts: Splits
    dtype: str
    members: list[Member]
    report: Report
    stages: list[dict[str, Any]] = field(default_factory=list)
    groups: dict[str, Any] = field(default_factory=dict)
    finding: dict[str, Any] | None = None
    compiled: dict[Any, Any] = field(default_factory=dict)
    shadows: Shadows | None = None

    @property
    def runners(self) -> tuple[JaxRunner, TorchRunner]:
        """JAX's and PyTorch's, which are compared."""
        ours, theirs = (member.runner for member in self.members[:2])
        assert isinstance(ours, JaxRunner)
        assert isinstance(theirs, TorchRunner)
        return ours, theirs


def coupled(
    recipe: Recipe,
    parts: Splits,
    classes: int,
    dtype: str,
    nodes: str,
    controls: int,
    report: Report = lambda line: None,
    compiled: dict[Any, Any] | None = None,
) -> dict[str, Any]:
    """Train a root (`nodes` "root") or a whole tree in both frameworks; all that was seen.

    `controls`: runs of each framework with flipped bits. `compiled`: kept by a caller that trains
    more than once, so that JAX's steps are compiled once. UserError if the recipe trains the
    tree jointly, which this design does not follow, and a whole tree is asked for.
    """
    if recipe.joint is not None and nodes == "tree":
        raise UserError(
            f"recipe {recipe.name} trains the whole tree together, which the coupled design does "
            "not follow; use --nodes root, or --design independent"
        )
    with jax.enable_x64(dtype == "float64"), jax_runner.recording():
        study = _start(recipe, parts, dtype, controls, report, {} if compiled is None else compiled)
        names = [member.name for member in study.members]
        tree = growth.grow(
            classes,
            fit=lambda tree, node, phase: _fit(study, Stage(tree, node, phase)),
            likelihood=lambda tree, node: np.zeros(0),  # each run takes its own, in `decide`
            decide=lambda tree, node, _: _decide(study, tree, node, nodes),
            finish=lambda tree, node: None,
        )
        return {
            "dtype": dtype,
            "seed": recipe.seed,
            "runs": names,
            "stages": study.stages,
            "groups": study.groups,
            "tree": [list(path) for path in tree.paths],
            "predictions": _predictions(study, tree) if nodes == "tree" else None,
            "finding": study.finding,
        }


def _start(
    recipe: Recipe,
    parts: Splits,
    dtype: str,
    controls: int,
    report: Report,
    compiled: dict[Any, Any],
) -> Study:
    images = jax_runner.images_of(parts), torch_runner.images_of(parts)

    def make(framework: str) -> Runner:
        if framework == "jax":
            return JaxRunner(recipe, parts, dtype, images[0], compiled)
        return TorchRunner(recipe, parts, dtype, images[1])

    members = [
        Member(f"{framework} flip {flip}" if flip else framework, make(framework), of, flip)
        for flip in range(controls + 1)
        for of, framework in enumerate(("jax", "torch"))
    ]
    return Study(recipe, parts, dtype, members, report, compiled=compiled)


def _fit(study: Study, stage: Stage) -> None:
    """Train a stage in all runs, step by step, comparing after each."""
    recipe, phase, name = study.recipe, stage.settings(study.recipe), str(stage)
    targets = {part: stage.targets(getattr(study.parts, part).labels) for part in ("train", "test")}
    checked = stage.targets(study.parts.validation.labels)
    plans = epochs.training_batches(recipe, name, phase.epochs, targets["train"])
    steps = max(len(plan.index) for plan in plans)
    width = max(plan.index.shape[1] for plan in plans)
    checks = epochs.validation_batches(recipe, name, checked)
    tests = epochs.validation_batches(recipe, name, targets["test"])
    size = study.parts.train.image_shape[:2]

    ours, torch = study.runners
    initial = torch.initial(stage)
    flips = {}
    for member in study.members:
        state = initial
        if member.flip:
            state, flips[member.name] = flipped(initial, recipe.seed, name, member.flip)
        member.runner.begin(stage, state, steps)
    study.shadows = None
    if study.dtype == "float32":
        study.shadows = Shadows(stage, initial, ours, torch, study.compiled)
    before = [Step(0.0, {}, initial)] * 2
    order = list(initial)
    trace, rows, positions = Trace(), [], [Position()] * len(study.members)
    finding: Finding | None = None
    jumps: list[dict[str, Any]] = []
    for epoch in range(1, phase.epochs + 1):
        batches = plans[epoch - 1]
        run = epochs.training(recipe, name, epoch, batches, len(targets["train"]), size)
        for member in study.members:
            member.runner.epoch(run, width)
        for number in range(len(batches.index)):
            made = _step_all(study, number)
            controls = zip(study.members[2:], made[2:], strict=True)
            trace.add(made[0], made[1], [(made[member.of], one) for member, one in controls])
            if finding is None:
                finding, leap = _judged(study, name, trace, number, before[1].state, made[1], order)
                jumps += [leap] if leap else []
                if finding and study.finding is None:
                    study.finding = {"stage": name, **_plain(finding)} | _located(
                        study, number, before[1].state, finding
                    )
                (study.shadows or ours).follow(before[1].state, made[1].gradients)
            before = made[:2]
        check = epochs.validation(recipe, name, epoch, checks, len(checked), size)
        test = epochs.validation(recipe, name, epoch, tests, len(targets["test"]), size)
        row: dict[str, Any] = {"epoch": epoch, "step": len(trace.losses)}
        found = [member.runner.scores("validation", check) for member in study.members]
        row["validation"] = _agreement(study, found)
        found_test = [member.runner.scores("test", test) for member in study.members]
        row["test"] = _agreement(study, found_test)
        for place, member in enumerate(study.members):
            accuracy = metrics.score_accuracy(*found[place])[0]
            positions[place] = positions[place].after(accuracy, recipe.ties)
            member.runner.after_epoch(positions[place].improved)
        rows.append(row)
        weight = trace.whole["weight"][-1].relative
        study.report(
            f"{study.dtype} {name:<12} epoch {epoch:>3}/{phase.epochs}  step {row['step']:>5}  "
            f"weights apart {weight:.1e}, control {trace.controls['weight'][-1][1]:.1e}"
        )
    for member in study.members:
        member.runner.end()
    study.stages.append(
        {
            "stage": name,
            "outputs": stage.outputs,
            "steps": len(trace.losses),
            "images": int((targets["train"] >= 0).sum()),
            "flips": flips,
            "order": order,
            "trace": trace.to_json(),
            "epochs": rows,
            "kept": {
                member.name: position.best_epoch
                for member, position in zip(study.members, positions, strict=True)
            },
            "finding": None if finding is None else _plain(finding),
            "jumps": jumps,  # all that had to be looked at twice, in the order of steps
        }
    )


def _step_all(study: Study, number: int) -> list[Step]:
    """One step of every run, on the masks that PyTorch drew. Controls draw the same ones."""
    _, torch = study.runners
    theirs = torch.step(number)
    return [
        theirs if member.runner is torch else member.runner.step(number, torch.masks)
        for member in study.members
    ]


def _judged(
    study: Study,
    name: str,
    trace: Trace,
    number: int,
    state: Arrays,
    theirs: Step,
    order: list[str],
) -> tuple[Finding | None, dict[str, Any] | None]:
    """(what of the newest step is a finding, what went beyond the control without being one).

    `state`: PyTorch's before the step, `theirs`: its step. Where something is beyond the
    control, JAX takes the same step from PyTorch's state: see `verdict`.
    """
    differences, bands = trace.last()
    beyond = verdict.first_beyond(len(trace.losses), study.dtype, differences, bands, order)
    if beyond is None:
        return None, None
    ours, torch = study.runners
    above = [torch.weights(node) for node in ancestors(torch.stage.node)]
    states = [state] + [flipped(state, study.recipe.seed, name, place)[0] for place in (1, 2)]
    if study.shadows:
        ours.followed = study.shadows.moments()
    again, *flips = (ours.replay(number, torch.masks, one, above) for one in states)
    alone, controls = compare(again, theirs)[0], [compare(again, flip)[0] for flip in flips]
    bands = largest(controls)
    step, floor = len(trace.losses), verdict.floor_of_a_step
    finding = verdict.first_beyond(step, study.dtype, alone, bands, order, floor)
    seen: dict[str, Any] = {"same_state": digits(alone[beyond.kind][beyond.tensor])}
    if finding is None or study.dtype == "float64":
        return finding, None if finding else _plain(beyond) | seen
    found = _in_float64(study, name, number, state, {"jax": again, "torch": theirs}, finding, order)
    seen = {"same_state": digits(finding.difference), "truth": _told(found)}
    return found.finding, None if found.finding else _plain(finding) | seen


def _in_float64(
    study: Study,
    name: str,
    number: int,
    state: Arrays,
    steps: dict[str, Step],
    suspected: Finding,
    order: list[str],
) -> Judgement:
    """What a step that looks like a difference in float32 is, by the same step in float64."""
    (_, torch), shadows = study.runners, study.shadows
    assert shadows is not None
    of = shadows.step(number, state)
    starts = [flipped(of.before, study.recipe.seed, name, place)[0] for place in (1, 2)]
    bands = largest([compare(of.jax, shadows.replay(number, one))[0] for one in starts])
    x = torch.inputs(number).numpy()
    error = distances.whole({"x": x}, {"x": of.x}).relative
    truth = truth_of(shadows.torch, of, max(UNIT, error))
    return judge(suspected, steps, shadows, of, bands, truth, order)


def _told(found: Judgement) -> dict[str, Any]:
    return {
        "apart": digits(found.apart),
        "errors": {name: digits(error) for name, error in found.errors.items()},
        "allowed": {name: digits(most) for name, most in found.allowed.items()},
        "sides": found.sides,
        "undecided": found.undecided,
        "open": found.open,
    }


def _located(study: Study, number: int, state: Arrays, finding: Finding) -> dict[str, Any]:
    """Which layer gives another output for the same weights, batch and masks, if any does.

    Both networks are given PyTorch's weights from before the step, so nothing that has grown
    up to then counts; the difference is allowed the floor alone. In float64, unless float32 alone
    is at fault.
    """
    dtype = study.dtype if finding.framework else "float64"
    ours, theirs = study.runners
    x = theirs.inputs(number).numpy()
    named = f"{verdict.WORDS[finding.kind]} {finding.tensor}".strip(" *")
    return located(ours.network(state), theirs.module(state), x, dtype, named, finding.kind)


def _plain(finding: Finding) -> dict[str, Any]:
    value = asdict(finding)
    return value | {key: digits(value[key]) for key in ("difference", "allowed")}


def _agreement(study: Study, found: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Accuracies, and how far predictions agree: the frameworks', and each control's."""
    labels = [scores.argmax(1) for scores, _ in found]
    truth = found[0][1]
    return agreement(study.members, labels, truth)


def agreement(members: list[Member], labels: list[np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """Right answers of each run, and of how many images two runs say the same.

    `kappa` is Cohen's: agreement beyond what the frequencies of the labels alone would give;
    None where both runs know one label only.
    """
    both = list(zip(members, labels, strict=True))
    pairs = [("jax, torch", labels[0], labels[1])]
    pairs += [(f"{members[m.of].name}, {m.name}", labels[m.of], mine) for m, mine in both[2:]]
    return {
        "images": len(truth),
        "right": {member.name: int((mine == truth).sum()) for member, mine in both},
        "pairs": {
            name: {"agree": int((a == b).sum()), "kappa": kappa(a, b)} for name, a, b in pairs
        },
    }


def kappa(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cohen's kappa, or None where it is 0 / 0."""
    if len(np.union1d(a, b)) < 2:
        return None
    return digits(float(cohen_kappa_score(a, b)))


def _decide(study: Study, tree: Tree, node: Node, nodes: str) -> Groups:
    """The node's groups as each run sees them; the tree goes on where the frameworks agree.

    A control whose own groups are others goes on with the frameworks': it is there for their steps.
    """
    stage = Stage(tree, node, "class")
    name = tree.names[node]
    decisions = [_decision(study.recipe, stage, member.runner) for member in study.members]
    likelihoods = [decision.asl for decision in decisions]
    found = [decision.groups for decision in decisions]
    volatility = decisions[1].volatility  # with auto, of PyTorch's choice
    study.groups[name] = {
        "volatility": volatility,
        "groups": {
            member.name: [list(group) for group in groups]
            for member, groups in zip(study.members, found, strict=True)
        },
        "same": found[0] == found[1],
        "adjusted_rand": digits(trees.adjusted_rand(found[0], found[1])),
        "controls_same": sum(
            groups == found[member.of]
            for member, groups in zip(study.members[2:], found[2:], strict=True)
        ),
        "controls": len(found) - 2,
        "asl_difference": digits(float(np.abs(likelihoods[0] - likelihoods[1]).max())),
        "margin": digits(trees.margin(likelihoods[1], volatility)),
        "asl": [[digits(v) for v in line] for line in likelihoods[1].tolist()],
    }
    whole = (tuple(range(len(tree.members(node)))),)
    if nodes == "root" or found[0] != found[1]:
        return whole
    return found[0]


def _decision(recipe: Recipe, stage: Stage, runner: Runner) -> Decision:
    """What a run makes of its node after the class phase."""
    asl = runner.likelihood(stage)

    def held_out() -> HeldOut:
        return runner.held_out(stage)

    return decision_of(recipe, stage.tree, stage.node, asl, held_out, runner.multiply_adds)


def _predictions(study: Study, tree: Tree) -> dict[str, Any]:
    """What the whole trees say of the test images."""
    images, labels = study.parts.test.images, study.parts.test.labels
    found = [member.runner.predict(tree, images) for member in study.members]
    return agreement(study.members, found, labels)
