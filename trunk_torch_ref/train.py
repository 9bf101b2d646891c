"""`python -m trunk_torch_ref.train`: grow and train a tree, and evaluate it once on test."""

import sys
import time

from data import datasets, results, runfolder
from data.errors import UserError, run_command
from data.manifest import manifest
from data.options import train_options
from data.progress import Reporter
from data.splits import split
from trunk_torch_ref import grow, route, run


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags say. UserError for anything a user can put right."""
    options = train_options(run.FRAMEWORK, arguments)
    recipe, folder = options.recipe, options.out
    dataset = datasets.load(recipe.dataset, options.data_dir)
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    if recipe.batch_size > len(parts.train.labels):
        raise UserError(
            f"--batch-size {recipe.batch_size} is more than the {len(parts.train.labels):,} "
            "training images"
        )
    with runfolder.lock(folder), run.exact():
        runfolder.create(folder, run.config(options, dataset.fingerprint), options.resume)
        if not (folder / "summary.json").exists():
            _train(options, dataset, parts)
        summary = runfolder.read_json(folder / "summary.json")
    print(*results.lines(summary), f"  run folder {folder}", sep="\n")
    if options.json:
        runfolder.write_json(options.json, summary)


def _train(options, dataset, parts) -> None:
    recipe, folder = options.recipe, options.out
    began = time.time()
    about = manifest(run.FRAMEWORK, run.device(), options, dataset, parts)
    runfolder.write_json(folder / "manifest.json", about)
    with Reporter() as report:
        report.note(f"{dataset.spec.name}: {dataset.source}")
        if recipe.protocol == "published":
            report.note("protocol published: epochs are selected on the TEST split")
        classes = len(dataset.spec.class_names)
        try:
            grown = grow.grow(recipe, parts, classes, folder, report, device=run.where())
        except RuntimeError as error:
            # A GPU has a type of its own for it, a CPU only a text.
            if "out of memory" not in str(error) and "allocate memory" not in str(error):
                raise
            raise UserError("out of memory; use a smaller --batch-size") from error
    tree, networks = grown.tree, grown.networks
    predicted = {}
    for part in ("train", "validation", "test"):
        examples = getattr(parts, part)
        outcome = route.predict(recipe, tree, networks, examples.images)
        predicted[part] = examples, outcome.labels
        if part == "test":
            results.write_predictions(
                folder, part, dataset, examples, outcome.labels, outcome.confidence
            )
    costs = run.costs(tree, networks, dataset.spec.image_shape)
    seconds = about.get("seconds", 0) + round(time.time() - began, 1)
    runfolder.write_json(folder / "manifest.json", about | {"seconds": seconds})
    runfolder.write_json(
        folder / "summary.json",
        results.summary(run.FRAMEWORK, recipe, dataset, tree, costs, predicted),
    )


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
