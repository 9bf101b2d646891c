"""What `python -m trunk_jax.train` and its PyTorch sister do once their flags are read."""

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data.base import reading, writing
from data.base.errors import UserError
from data.base.progress import Reporter, working
from data.base.writing import save_json
from data.images.datasets import Dataset
from data.images.splits import Splits, split
from data.recipes.recipe import Recipe, to_json
from data.run import results, runfolder
from data.run.derived import digest
from data.run.manifest import changes, manifest
from data.run.options import TrainOptions
from data.training import estimate, placement, scalars, sharing
from data.training.framework import Framework, M, within_memory
from data.training.initial import carry, need_fit, need_whole
from data.tree import drawing

OnEpoch = Callable[[dict[str, Any]], None]


def train(
    framework: Framework[M],
    options: TrainOptions,
    on_epoch: OnEpoch | None = None,
    show: bool = True,
) -> None:
    """Grow a tree into its run folder, evaluate it and print the tree and the summary.

    Of a finished run only these are printed. UserError for anything a user can put right.

    `on_epoch`: called with the numbers of each epoch, once they are in `metrics.jsonl`. `show`:
    whether anything is printed on standard output.
    """
    recipe, folder = options.recipe, options.out
    dataset = options.load()
    splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True)
    if recipe.batch_size > len(splits.train.labels):
        raise UserError(
            f"--batch-size {recipe.batch_size} is more than the {len(splits.train.labels):,} "
            "training images"
        )
    if options.tensorboard:
        scalars.need_package()
    if options.source is not None:  # before the folder is made
        with framework.exact():  # in which the settings are those of the training
            about = _config(framework.name, options, dataset, framework.settings())
        sharing.check_source(options.source, len(dataset.spec.class_names), about)
    initial = None
    if options.init is not None and not (folder / "summary.json").exists():
        need_whole(options.init)
        initial = framework.load(options.init)
        need_fit(options.init, initial, recipe, dataset.spec)
    with runfolder.lock(folder), framework.exact():
        config = _config(framework.name, options, dataset, framework.settings())
        runfolder.create(folder, config, options.resume)
        if not (folder / "summary.json").exists():
            if options.source is not None:
                _take(options.source, folder, recipe, dataset)
            with within_memory(
                framework,
                "use a smaller --batch-size, or free memory; --resume goes on with what is saved",
            ):
                _grow_and_evaluate(framework, options, dataset, splits, on_epoch, initial)
        summary, tree = results.read_summary(folder), runfolder.read_tree(folder)
    if show:
        names = dataset.spec.class_names
        print(*results.lines(summary, tree.titles(names)), sep="\n")
        print(textwrap.indent(drawing.draw(tree, names, width=98), "  "))
        print(f"  run folder {folder}")
    if options.json:
        save_json(options.json, summary)


def _take(source: Path, folder: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Give the run folder what the run of `--from` has trained of it already."""
    taken = sharing.share(folder, recipe, len(dataset.spec.class_names), [source])
    print(f"from {source}: {', '.join(taken)}", file=sys.stderr)


def _config(
    framework: str, options: TrainOptions, dataset: Dataset, settings: dict[str, Any]
) -> dict[str, Any]:
    """All that decides a run's result."""
    start = {} if options.init is None else {"init": {"weights_sha256": digest(options.init)}}
    return start | {
        "format": runfolder.FORMAT,
        "framework": framework,
        "flags": options.flags,
        "settings": settings,
        "dataset_sha256": dataset.fingerprint,
        "recipe": to_json(options.recipe),
    }


def _grow_and_evaluate(
    framework: Framework[M],
    options: TrainOptions,
    dataset: Dataset,
    splits: Splits,
    on_epoch: OnEpoch | None,
    initial: M | None,
) -> None:
    folder, recipe = options.out, options.recipe
    began = time.monotonic()
    placed = placement.place(
        options.images_in,
        placement.bytes_of(splits),
        framework.free(),
        placement.stored_in(dataset.train.images),
    )
    if not placed.on_disk:
        splits = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    about = manifest(framework.name, framework.device(), options, dataset, splits)
    about, changed = _continued(folder / "manifest.json", about)
    if changed:
        print(
            f"note: resumed under another {'; '.join(changed)}: the last bits of the weights may "
            "differ from those of an undisturbed run",
            file=sys.stderr,
        )
    writing.write_json(folder / "manifest.json", about)
    earlier = about.get("seconds", 0.0)
    try:
        model = _grow(framework, options, dataset, splits, on_epoch, initial, placed.line)
        summary = _evaluate(framework, options, dataset, splits, model)
    finally:  # a part that is stopped counts too
        about["seconds"] = round(earlier + time.monotonic() - began, 1)
        writing.write_json(folder / "manifest.json", about)
    writing.write_json(folder / "summary.json", summary)  # last: it marks a finished run


def _continued(file: Path, about: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The manifest of a run that goes on (when it was started, and resumed), and what changed."""
    if not file.exists():
        return about, []
    form = {"started": str}
    before = reading.json_of_form(file, form, "a run's file; remove it to go on without its dates")
    if not isinstance(before.get("resumed", []), list):
        raise UserError(f"{file} is not a run's file; remove it to go on without its dates")
    resumed = [*before.get("resumed", []), about["started"]]
    kept = {"started": before["started"], "resumed": resumed}
    if isinstance(before.get("seconds", 0.0), int | float):
        kept["seconds"] = before.get("seconds", 0.0)  # of the parts before this one
    return about | kept, changes(before, about)


def _grow(
    framework: Framework[M],
    options: TrainOptions,
    dataset: Dataset,
    splits: Splits,
    on_epoch: OnEpoch | None,
    initial: M | None,
    placed: str,
) -> M:
    recipe, classes = options.recipe, len(dataset.spec.class_names)
    with ExitStack() as opened:
        report = opened.enter_context(Reporter())
        listeners = [] if on_epoch is None else [on_epoch]
        given = None if initial is None else initial.tree
        listeners.append(estimate.telling(recipe, report.note, given))
        if options.tensorboard:
            listeners.append(opened.enter_context(scalars.writing(options.out)))
        report.note(f"{dataset.spec.name}: {dataset.source}")
        for line in (*options.notes, placed):
            report.note(line)
        if recipe.protocol == "published":
            chosen = {
                "test": "epochs are selected on the TEST split",
                "nothing": "the last epoch is kept; validation is on the test split",
            }
            report.note(f"protocol published: {chosen[results.selected_on(recipe)]}")
        tell = _telling(report, listeners)
        if initial is None:
            return framework.grow(recipe, splits, classes, options.out, tell)
        assert options.init is not None  # where `initial` was read from
        report.note(f"starts from {options.init}, whose tree it keeps")
        carry(options.init, options.out)
        return framework.grow(recipe, splits, classes, options.out, tell, init=initial)


def _telling(report: Callable[..., None], listeners: Sequence[OnEpoch]) -> Callable[..., None]:
    """`report`, and the others told of each epoch's numbers."""

    def tell(*, row: dict[str, Any] | None = None, **progress: Any) -> None:
        report(row=row, **progress)
        if row is not None:
            for listener in listeners:
                listener(dict(row))

    return tell


def _evaluate(
    framework: Framework[M], options: TrainOptions, dataset: Dataset, splits: Splits, model: M
) -> dict[str, Any]:
    """The run's summary. Predictions for the test split are left in its folder."""
    recipe = options.recipe
    parts = {part: getattr(splits, part) for part in ("train", "validation", "test")}
    found = {}
    for part, examples in parts.items():
        with working(f"classifying {len(examples.labels):,} {part} images"):
            found[part] = framework.predict(model, examples.images)
    test = found["test"]
    results.write_predictions(
        options.out, "test", dataset, splits.test, test.labels, test.confidence
    )
    predicted = {part: (examples, found[part].labels) for part, examples in parts.items()}
    with working("counting multiply-adds"):
        costs = framework.costs(model)
    summary = results.summary(framework.name, recipe, dataset, model.tree, costs, predicted)
    if recipe.backbone == "resnet50_qat":
        with working(f"classifying {len(splits.test.labels):,} test images in int8"):
            labels, size = framework.int8(model, splits.test.images)
        summary["int8"] = results.int8(splits.test, labels, size)
    return summary
