"""`python -m trunk_torch_ref.evaluate RUN`: a finished run's accuracy, from its weights."""

import sys

from data import datasets, results, runfolder
from data.errors import run_command
from data.options import evaluate_options
from data.splits import split
from trunk_torch_ref import route, run


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the flags say. UserError for anything a user can put right."""
    options = evaluate_options(run.FRAMEWORK, arguments)
    folder = options.run
    recipe, tree = runfolder.read_recipe(folder), runfolder.read_tree(folder)
    dataset = datasets.load(recipe.dataset, options.data_dir or runfolder.data_dir(folder))
    networks = run.load_networks(folder, recipe, tree, dataset.spec.image_shape)
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    examples = getattr(parts, options.split)
    with run.exact():
        outcome = route.predict(recipe, tree, networks, examples.images)
    value = results.evaluation(options.split, recipe, dataset, tree, examples, outcome.labels)
    results.write_predictions(
        folder, options.split, dataset, examples, outcome.labels, outcome.confidence
    )
    if dataset.fingerprint != runfolder.read_config(folder).get("dataset_sha256"):
        print("note: these are not the images that the run was trained on", file=sys.stderr)
    print(
        f"{value['dataset_title']} {options.split}: {100 * value['accuracy']:.2f} % "
        f"({value['correct']:,} of {value['total']:,})"
    )
    if options.json:
        runfolder.write_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
