"""What `python -m trunk_jax.evaluate` and its PyTorch sister do once their flags are read."""

import sys
from contextlib import nullcontext

from data.base import tables
from data.base.progress import working
from data.base.writing import save_json
from data.images import arrays
from data.images.splits import split
from data.inference import curve
from data.inference.stopping import Stopping
from data.run import derived, results, runfolder
from data.run.dataset import load_of_run
from data.run.options import EvaluateOptions
from data.training import exits
from data.training.framework import Framework, M, within_memory


def evaluate(framework: Framework[M], options: EvaluateOptions) -> None:
    """Recompute a finished run's accuracy from its weights, print it, and write predictions.

    A folder that is handed on as it is (`derived.is_shipped`) is not written to: predictions that
    it does not have go to `runs/<its name>/`.
    UserError for anything a user can put right.
    """
    folder = options.run
    runfolder.read_config(folder)
    shipped = derived.is_shipped(folder)
    with nullcontext() if shipped else runfolder.lock(folder):
        _evaluate(framework, options, shipped)


def _evaluate(framework: Framework[M], options: EvaluateOptions, shipped: bool) -> None:
    folder, part = options.run, options.split
    recipe = runfolder.read_recipe(folder)
    dataset = load_of_run(folder, recipe, options.data_dir)
    with working("loading the tree"):
        model = framework.load(folder)
    exits.need_use(folder, model.tree, options)
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True)
    examples = getattr(parts, part)
    arrays.note_dark(examples.images)
    with (
        framework.exact(),
        within_memory(framework, "free some, or use another device"),
        working(f"classifying {len(examples.labels):,} {part} images"),
    ):
        known = exits.known(framework, model, parts.validation, options)
        before = model.stopping
        model = exits.with_rule(folder, model, known, options, store=not shipped)
        found = framework.predict(model, examples.images)
        drawn = exits.drawn(framework, model, known, examples, options)
    value = results.evaluation(part, recipe, dataset, model.tree, examples, found.labels)
    if model.tree.exits or model.stopping.second is not None:
        value["mean"] = curve.of(found, model.tree, framework.costs(model))
    tried = shipped and model.stopping != before  # by a rule that is not the folder's
    if not tried and not (shipped and (folder / f"predictions-{part}.csv").exists()):
        place = derived.claim(folder) if shipped else folder
        results.write_predictions(place, part, dataset, examples, found.labels, found.confidence)
        counts = {key: value[key] for key in ("accuracy", "correct", "total")}
        ruled = model.stopping != Stopping()
        results.write_stopped(place, part, counts | value["mean"] if ruled else None)
    if tried:
        print(
            f"note: {folder} is handed on as it is (it has a {derived.CARD}, or is a hub's): this "
            "rule of stopping is not kept",
            file=sys.stderr,
        )
    if known and recipe.protocol == "published":
        print(
            "note: under the protocol published the validation images are the test images: where "
            "images stop was chosen on TEST",
            file=sys.stderr,
        )
    if dataset.fingerprint != runfolder.read_config(folder).get("dataset_sha256"):
        print("note: these are not the images that the run was trained on", file=sys.stderr)
    print(
        f"{value['dataset_title']} {part}: {100 * value['accuracy']:.2f} % "
        f"({value['correct']:,} of {value['total']:,})"
        + (
            ", epochs selected on TEST (protocol published)"
            if results.selected_on(recipe) == "test"
            else ""
        )
    )
    print(
        f"  balanced over classes {tables.percent(value['balanced_accuracy'])}; "
        f"{results.weakest(value['recall'])}"
    )
    if "mean" in value:
        print(f"  {exits.in_words(value['mean'])}")
    if drawn:
        value["curve"] = [dict(zip(("validation", part), pair, strict=True)) for pair in drawn]
        print(*exits.table(drawn, part), sep="\n")
    if options.json:
        save_json(options.json, value)
