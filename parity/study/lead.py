"""The training that the stepwise design judges: PyTorch's, in float32, as a user's would be.

It is trained once, from its first step to its last, and leaves behind what every step that is to
be repeated starts from: weights, statistics, the optimiser's moments and the state of the
generator that draws dropout masks. A `Segment` is a run of such steps in one epoch, in a file of
its own, so that segments can be repeated in any order and by any number of processes.
"""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.base import interrupts, writing
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.training import epochs, growth
from data.training.epochs import Position, position_from_json
from data.training.stages import Stage
from data.tree import hierarchy, metrics
from data.tree.hierarchy import Groups, Node, Tree
from parity.study import torch_runner
from parity.study.torch_runner import TorchRunner

MOST = 20  # steps of a segment: what is done again after an interruption


@dataclass(frozen=True)
class Segment:
    """`count` steps in a row of an epoch (from 1), from its batch `start` (from 0).

    `stage`: the number of the stage, in the order of training. `first`: the number of the first
    of these steps in the stage, from 1.
    """

    stage: int
    epoch: int
    start: int
    count: int
    first: int

    @property
    def name(self) -> str:
        """Its file's name; names sort in the order of training."""
        return f"{self.stage:03d}-{self.epoch:04d}-{self.start:06d}"


@dataclass(frozen=True)
class Course:
    """The epochs of a stage. `steps`, `width`: of the longest epoch and the widest batch."""

    plans: list[Any]
    steps: int
    width: int
    targets: np.ndarray


def course(recipe: Recipe, parts: Splits, stage: Stage) -> Course:
    """The batches of a stage's epochs."""
    targets = stage.targets(parts.train.labels)
    plans = epochs.training_batches(recipe, str(stage), stage.settings(recipe).epochs, targets)
    lengths = [len(plan.index) for plan in plans]
    return Course(plans, max(lengths), max(plan.index.shape[1] for plan in plans), targets)


def segments(stage: int, lengths: Sequence[int], every: int, most: int = MOST) -> list[Segment]:
    """The segments of a stage with epochs of so many steps, of which each `every`-th is judged.

    The first step of a stage always is. Example: of one epoch with 5 steps, every second:
    segments at 0, 2 and 4 with one step each; every one: one segment of 5.
    """
    made, done = [], 0
    for epoch, length in enumerate(lengths, 1):
        starts = range(0, length, most) if every == 1 else range(-done % every, length, every)
        for start in starts:
            count = min(most, length - start) if every == 1 else 1
            made.append(Segment(stage, epoch, start, count, done + start + 1))
        done += length
    return made


def save(file: Path, value: Any) -> None:
    """Tensors and plain values, whole or absent."""
    content = io.BytesIO()
    torch.save(value, content)
    writing.write_bytes(file, content.getvalue())


def load(file: Path) -> Any:
    """What `save` wrote; it runs no code."""
    return torch.load(file, weights_only=True)


def snapshot(runner: TorchRunner) -> dict[str, Any]:
    """What the runner's next step starts from."""
    return copy.deepcopy(
        {
            "network": runner.network.state_dict(),
            "optimizer": runner.optimizer.state_dict(),
            "scheduler": runner.scheduler.state_dict(),
            "generator": runner.generator,
        }
    )


def restore(runner: TorchRunner, value: dict[str, Any]) -> None:
    """Bring a runner, in a stage that it has begun, to a snapshot."""
    for name in ("network", "optimizer", "scheduler"):
        getattr(runner, name).load_state_dict(copy.deepcopy(value[name]))
    runner.generator = value["generator"].clone()


def stage_file(folder: Path, number: int) -> Path:
    """What is known of a stage as soon as it has begun; its tree and lengths."""
    return folder / "stages" / f"{number:03d}.json"


def weights_file(folder: Path, number: int) -> Path:
    """A finished stage's network, of its best epoch."""
    return folder / "stages" / f"{number:03d}.pt"


def start_file(folder: Path, segment: Segment) -> Path:
    """What the first step of a segment starts from."""
    return folder / "starts" / f"{segment.name}.pt"


def result_file(folder: Path, segment: Segment) -> Path:
    """What the repetition of a segment gave."""
    return folder / "steps" / f"{segment.name}.json"


def stage_json(stage: Stage) -> dict[str, Any]:
    """A stage as plain values."""
    return {"tree": hierarchy.to_json(stage.tree), "node": list(stage.node), "phase": stage.phase}


def stage_of(value: dict[str, Any]) -> Stage:
    """The stage that `stage_json` made."""
    tree = hierarchy.from_json(value["tree"])
    return Stage(tree, tuple(value["node"]), value["phase"])


def stages(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of every stage that has begun."""
    number = 0
    while stage_file(folder, number).exists():
        yield number, runfolder.read_json(stage_file(folder, number))
        number += 1


def finished(folder: Path) -> bool:
    """Whether the training is over."""
    return (folder / "tree.json").exists()


def lead(
    recipe: Recipe,
    parts: Splits,
    classes: int,
    nodes: str,
    every: int,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Train, or go on; `nodes`: `root`, the root's class phase alone, or `tree`.

    Segments whose result is there already get no file.
    """
    if finished(folder):
        return
    runner = TorchRunner(recipe, parts, "float32", torch_runner.images_of(parts))
    done: list[int] = []

    def fit(tree: Tree, node: Node, phase: str) -> None:
        _fit(runner, Stage(tree, node, phase), len(done), every, folder, report)
        done.append(len(done))

    def decide(tree: Tree, node: Node, _: Callable[[], np.ndarray]) -> Groups:
        stage = Stage(tree, node, "class")
        if nodes == "root":
            return (tuple(range(len(tree.members(node)))),)
        kept = folder / "groups" / f"{tree.names[node]}.json"
        if not kept.exists():
            asl = runner.likelihood(stage)
            decision = growth.decision_of(
                recipe, tree, node, asl, lambda: runner.held_out(stage), runner.multiply_adds
            )
            writing.write_json(kept, [list(group) for group in decision.groups])
        return hierarchy.as_groups(runfolder.read_json(kept))

    tree = growth.grow(
        classes,
        fit=fit,
        likelihood=lambda tree, node: np.zeros(0),  # taken in `decide`, if it is needed
        decide=decide,
        finish=lambda tree, node: None,
    )
    runfolder.write_tree(folder, tree)


def _fit(
    runner: TorchRunner,
    stage: Stage,
    number: int,
    every: int,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    recipe, phase, name = runner.recipe, stage.settings(runner.recipe), str(stage)
    if weights_file(folder, number).exists():
        best = load(weights_file(folder, number))
        runner.begin(stage, {key: value.numpy() for key, value in best.items()}, 1)
        runner.end()
        return
    plan = course(recipe, runner.parts, stage)
    lengths = [len(batches.index) for batches in plan.plans]
    work = {(one.epoch, one.start): one for one in segments(number, lengths, every)}
    size = runner.parts.train.images.shape[1:3]
    checked = stage.targets(runner.parts.validation.labels)
    checks = epochs.validation_batches(recipe, name, checked)
    runner.begin(stage, runner.initial(stage), plan.steps)
    about = {"name": name, "outputs": stage.outputs, "lengths": lengths, "every": every}
    writing.write_json(stage_file(folder, number), about | stage_json(stage))
    position, kept = Position(), folder / "position.pt"
    if kept.exists() and (found := load(kept))["stage"] == number:
        restore(runner, found["runner"])
        runner.best.load_state_dict(found["best"])
        position = position_from_json(found["position"])
    for epoch in range(position.epoch + 1, phase.epochs + 1):
        batches = plan.plans[epoch - 1]
        run = epochs.training(recipe, name, epoch, batches, len(plan.targets), size)
        runner.epoch(run, plan.width)
        for step in range(len(batches.index)):
            interrupts.check()
            segment = work.get((epoch, step))
            if segment and not result_file(folder, segment).exists():
                save(start_file(folder, segment), snapshot(runner))
            loss = runner.step(step, masks={}).loss
        check = epochs.validation(recipe, name, epoch, checks, len(checked), size)
        accuracy = metrics.score_accuracy(*runner.scores("validation", check))[0]
        position = position.after(accuracy, recipe.ties)
        runner.after_epoch(position.improved)
        now = {
            "stage": number,
            "runner": snapshot(runner),
            "best": runner.best.state_dict(),
            "position": asdict(position),
        }
        save(kept, now)
        report(
            f"{name} trained: epoch {epoch} of {phase.epochs}, loss {loss:.4f}, validation "
            f"{100 * accuracy:.2f} %"
        )
    runner.end()
    save(weights_file(folder, number), runner.networks[stage.node].state_dict())
