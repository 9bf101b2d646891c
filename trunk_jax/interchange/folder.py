"""A finished run as a folder to hand on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.base import writing
from data.base.errors import UserError
from data.base.progress import working
from data.base.writing import copy_folder, new_folder
from data.images.splits import split
from data.inference import curve, stopping
from data.inference.stopping import Stopping
from data.run import card, derived, results, runfolder
from data.run.dataset import load_of_run

KEPT = ("config.json", "manifest.json", "tree.json", "metrics.jsonl", "summary.json")


def export(
    run: Path,
    folder: Path,
    data_dir: str | None,
    called: Path | None = None,
    *,
    orbax: bool = True,
) -> None:
    """Write `folder`: the run without its training state, its weights in Orbax's form as well.

    The test predictions are this framework's. `called`: what the card calls the folder, if not so.
    `orbax`: False leaves Orbax's form out; every weight is in `weights/` then, and nowhere else.
    UserError if the run is not finished, if `folder` exists, or if the predictions are not as
    accurate as the summary says.
    """
    writing.need_new(folder)
    recipe = runfolder.read_recipe_of_tree(run)
    summary = results.read_summary(run)
    dataset = load_of_run(run, recipe, data_dir)
    test = split(dataset, recipe.protocol, recipe.seed, recipe.limit, on_disk=True).test
    from trunk_jax.machine import backend

    backend.start()
    with working("loading JAX and the tree"):
        from trunk_jax.inference import route
        from trunk_jax.inference.load import load
        from trunk_jax.measure.costs import costs

        model = load(run)
    to_the_end = replace(model, stopping=Stopping())  # by which the summary was made
    with working(f"classifying {len(test.labels):,} test images"):
        found = route.predict(to_the_end, test.images)
    correct = int((found.labels == test.labels).sum())
    stated = summary["accuracy"]["test"]["correct"]
    if correct != stated:
        raise UserError(
            f"{run}: {correct:,} test images are right here, and {stated:,} in summary.json"
        )
    stopped: dict[str, Any] | None = None
    if model.stopping != Stopping():
        with working(f"classifying {len(test.labels):,} test images by the rule of stopping"):
            found = route.predict(model, test.images)
        mean = curve.of(found, model.tree, costs(model))
        stopped = results.accuracy_of(test.labels, found.labels) | mean
    with new_folder(folder) as aside:
        for name in (*KEPT, *([stopping.FILE] if (run / stopping.FILE).exists() else [])):
            shutil.copyfile(run / name, aside / name)
        for name in ("config.json", "manifest.json"):
            value = card.without_places(runfolder.read_json(aside / name))
            writing.write_json(aside / name, value)
        about = runfolder.read_manifest(aside)
        about["dataset"]["data_dir"] = None  # a folder of this machine
        writing.write_json(aside / "manifest.json", about)
        for name in ("asl", "weights"):
            copy_folder(run / name, aside / name)
        arrays = {
            model.tree.names[node]: {"params": network.params, "stats": network.stats}
            for node, network in model.networks.items()
        }
        if orbax:
            _save(arrays, aside / "orbax")
        results.write_predictions(aside, "test", dataset, test, found.labels, found.confidence)
        results.write_stopped(aside, "test", stopped)
        writing.write_bytes(aside / derived.CARD, card.card(aside, called or folder).encode())


def _save(arrays: dict[str, Any], place: Path) -> None:
    """Write the folder `place`: `arrays`, the weights by node, in Orbax's form."""
    with working("writing the weights"):
        import orbax.checkpoint as ocp  # here: it takes seconds, and not every export needs it

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place.absolute(), text_keys(arrays))


def text_keys(value: Any) -> Any:
    """Nested dicts with text for keys, as Orbax has them; a layer's place in a list is a number."""
    if isinstance(value, dict):
        return {str(key): text_keys(item) for key, item in value.items()}
    return value
