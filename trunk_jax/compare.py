"""`python -m trunk_jax.compare`: trees and monolithic baselines, what each costs and achieves.

Accuracies come from the run folders at hand and are never made up; a baseline without a run is
measured with untrained weights, for its costs alone.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import jax
import numpy as np
from rich.console import Console

from data.base import writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.base.writing import save_json
from data.images import datasets, specs
from data.images.specs import Spec
from data.recipes.baselines import models as recipes
from data.recipes.recipe import Recipe
from data.run import results
from data.tree import hierarchy
from data.tree.hierarchy import ROOT
from data.tree.metrics import path_costs
from trunk_jax import framework
from trunk_jax.baselines import start
from trunk_jax.inference.load import load
from trunk_jax.inference.model import Model
from trunk_jax.inference.single import compile_single
from trunk_jax.measure import comparison
from trunk_jax.measure.comparison import Row
from trunk_jax.pictures import style
from trunk_jax.pictures.comparison import comparison_picture


def measure(
    model: Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    group: str,
    source: str,
    accuracy: float | None,
) -> Row:
    """The costs of a network on these images, uint8 [n, h, w, c], and what is known besides."""
    recipe = model.recipe
    one = compile_single(model)
    jax.block_until_ready(one(images[0]))
    times = []
    for image in images:
        began = time.perf_counter()
        jax.block_until_ready(one(image))
        times.append(time.perf_counter() - began)
    analysis = one.memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.networks))
    framework.predict(model, images)  # compiles
    began = time.perf_counter()
    framework.predict(model, images)
    seconds = time.perf_counter() - began
    mean = path_costs(model.tree, framework.costs(model), labels)["mean"]
    return Row(
        name=name,
        group=group,
        model=recipe.backbone,
        source=source,
        accuracy=accuracy,
        published=comparison.published(recipe.backbone, recipe.dataset),
        latency=1000 * median(times),
        throughput=len(images) / seconds,
        memory=weights + (analysis.temp_size_in_bytes if analysis else 0),
        multiply_adds=mean["multiply_adds"],
        parameters=mean["parameters"],
    )


def from_run(folder: Path, images: np.ndarray, labels: np.ndarray) -> Row:
    """A finished run: its accuracy on test as it recorded it, its costs measured now."""
    model, summary = load(folder), results.read_summary(folder)
    name, group = comparison.identity(folder, model.recipe, model.tree)
    return measure(
        model,
        images,
        labels,
        name=name,
        group=group,
        source=str(folder),
        accuracy=summary["accuracy"]["test"]["accuracy"],
    )


def recipe_of(model: str, data: Spec, size: int | None) -> Recipe:
    """An untrained baseline's recipe. WrongSize for a size that it cannot take."""
    # nobody has fine-tuned on digits, or on data of one's own
    name = "corrected" if data.name in specs.SPECS and data.name != "digits" else "scratch"
    return recipes.load(model, data.name, name, size=size, weights=recipes.NO_WEIGHTS, data=data)


def untrained(
    model: str, data: Spec, images: np.ndarray, labels: np.ndarray, size: int | None
) -> Row:
    """A baseline as its recipe trains it, for its costs; its weights do not matter for them."""
    recipe = recipe_of(model, data, size)
    classes = len(data.class_names)
    networks = {ROOT: start.empty(recipe, images.shape[1:], classes)}
    tree = hierarchy.bare(classes)
    return measure(
        Model(recipe, tree, networks),
        images,
        labels,
        name=model,
        group=comparison.UNTRAINED,
        source="untrained",
        accuracy=None,
    )


def fitting(models: Sequence[str], data: Spec, size: int | None) -> tuple[list[str], list[str]]:
    """(the models that can take the images, why each of the others is left out)."""
    good, left_out = [], []
    for model in models:
        try:
            recipe_of(model, data, size)
        except recipes.WrongSize as error:
            left_out.append(str(error))
        else:
            good.append(model)
    return good, left_out


def main(arguments: list[str] | None = None) -> None:
    """Compare as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.compare",
        description="Compare trees and monolithic baselines: accuracy of the runs at hand, "
        "latency, throughput, memory, multiply-adds and parameters.",
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="cifar10",
        help="one of those, or data of your own, as in train (default: %(default)s)",
    )
    add("--image-size", type=int, default=0, help="of data of your own, as in train")
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets (default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    add(
        "--runs",
        metavar="DIR",
        default="runs",
        help="where run folders are looked for (default: %(default)s)",
    )
    add(
        "--models",
        help="baselines to measure, with commas between; none: no untrained ones (default: all)",
    )
    add(
        "--size",
        type=int,
        help="side that images are resized to for untrained baselines, 0 for "
        "none (default: each recipe's, mostly 224)",
    )
    add("--images", type=int, default=32, help="test images to measure on (default: %(default)s)")
    add(
        "--out",
        type=out_folder,
        default="runs/compare",
        help="folder for compare.json and pictures (default: %(default)s)",
    )
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    if options.images < 1:
        raise UserError("--images must be 1 or more")
    chosen = recipes.MODELS if options.models is None else options.models.split(",")
    models = () if options.models == "none" else chosen
    for model in models:
        if model not in recipes.MODELS:
            raise UserError(f"no model {model!r}; the models: {', '.join(recipes.MODELS)}")
    from trunk_jax.machine import backend

    backend.start()
    dataset = datasets.load(options.dataset, options.data_dir, image_size=options.image_size)
    models, left_out = fitting(models, dataset.spec, options.size)
    images = np.ascontiguousarray(dataset.test.images[: options.images])
    labels = dataset.test.labels
    console = Console(file=sys.stderr, highlight=False)
    found, others = comparison.runs(Path(options.runs), dataset.spec)
    left_out += [f"{folder} takes images of another size (--image-size)" for folder in others]
    for reason in left_out:
        console.print(f"left out: {reason}", soft_wrap=True)
    if not found:
        console.print(f"no finished run on {dataset.spec.name} in {options.runs}: costs alone")
    rows = []
    for folder in found:
        console.print(f"measuring {folder}", soft_wrap=True)
        rows.append(from_run(folder, images, labels))
    trained = {row.model for row in rows}
    for model in models:
        if model in trained:
            continue
        console.print(f"measuring {model}, untrained")
        rows.append(untrained(model, dataset.spec, images, labels, options.size))
        jax.clear_caches()  # the next one's weights need the room
    if not rows:
        why = f"; left out: {'; '.join(left_out)}" if left_out else ""
        raise UserError(f"nothing to compare: no run in {options.runs}, no --models{why}")
    out, device = Path(options.out), framework.device()["kind"]
    rows = comparison.distinct(rows)
    title = f"{dataset.title}: accuracy and cost on {device}, {len(images)} images"
    comparison.print_table(title, rows)
    result = {
        "dataset": dataset.spec.name,
        "dataset_title": dataset.title,
        "device": framework.device(),
        "images": len(images),
        "left_out": left_out,
        "rows": [asdict(row) for row in rows],
    }
    writing.write_json(out / "compare.json", result)
    style.write(comparison_picture(rows, title), out, "compare")
    print(f"written: {out / 'compare.json'}, {out / 'compare.png'}, {out / 'compare.svg'}")
    if options.json:
        save_json(options.json, result)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
