"""A model card: what a shipped folder says about itself, all of it from its JSON files."""

from pathlib import Path
from typing import Any

from data.base import tables
from data.images import stand_ins
from data.images.specs import SPECS
from data.inference import stopping
from data.run import results, runfolder
from data.run.options import DEFAULTS
from data.tree.interval import interval


def without_places(value: Any) -> Any:
    """JSON in which each absolute path, also after `--flag=`, is only its last part.

    What is handed on says nothing of the machine's folders.

    Example: `without_places(["--out=/home/me/x"])` is `["--out=x"]`.
    """
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.partition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + (Path(path).name if Path(path).is_absolute() else path)


def card(folder: Path, name: Path) -> str:
    """The text of the card of a folder that will be called `name`.

    UserError if the folder is no finished run.
    """
    return _text(folder, name, results.read_summary(folder), runfolder.read_manifest(folder))


def _stopped(folder: Path, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What early stopping gives, where there is a rule for it."""
    found = results.standing(folder, summary)
    if not found["stopped"]:
        return []
    right, total = found["correct"], found["total"]
    return [
        (
            "test accuracy, stopping early by `stopping.json`",
            f"**{100 * right / total:.2f} %**, {right:,} of {total:,}, at a mean of "
            f"{found['multiply_adds'] / 1e6:.1f} M multiply-adds and "
            f"{found['parameters'] / 1e3:,.0f} k parameters met",
        )
    ]


def _calibrated(folder: Path) -> str:
    """What was done for its probabilities to be as frequent as they say."""
    ruled = (folder / stopping.FILE).exists()
    if ruled and stopping.read(folder, runfolder.read_tree(folder)).temperatures:
        return "been calibrated on validation images alone, by a temperature for each node"
    return "not been calibrated"


def _text(folder: Path, name: Path, summary: dict[str, Any], about: dict[str, Any]) -> str:
    recipe = runfolder.read_recipe(folder)
    spec = recipe.spec
    data, images = about["dataset"], about["dataset"]["images"]
    test, paths = summary["accuracy"]["test"], summary["paths"]
    low, high = interval(test["correct"], test["total"])
    height, width, channels = spec.image_shape
    official = spec.official_sizes
    flags = about["flags"]
    given = [f"--dataset {summary['dataset']}", f"--backbone {summary['backbone']}"]
    given += [
        f"--{key.replace('_', '-')} {without_places(value)}"
        for key, value in flags.items()
        if key not in ("dataset", "backbone") and value != DEFAULTS.get(key)
    ]
    if name.is_absolute() or ".." in name.parts:
        name = Path(name.resolve().name)
    package = "trunk_jax" if summary["framework"] == "jax" else "trunk_torch_ref"
    images_at = "" if recipe.dataset in SPECS else " --data-dir IMAGES"
    lines = [
        f"# {summary['dataset_title']}, recipe `{summary['recipe']}`, {summary['backbone']} nodes",
        "",
        f"Classifies images of {height}x{width} pixels and {channels} channel"
        f"{'s' if channels > 1 else ''} into {len(spec.class_names)} classes with "
        + (
            f"a tree of {len(summary['nodes'])} networks, of which an image meets at most "
            f"{summary['depth']}."
            if len(summary["nodes"]) > 1
            else "one network."
        ),
        "",
    ]
    rows = [
        (
            "test accuracy",
            f"**{100 * test['accuracy']:.2f} %**, {test['correct']:,} of {test['total']:,}; 95 % "
            f"interval {100 * low:.2f} to {100 * high:.2f} % (Wilson)",
        )
    ]
    rows += [
        (
            f"{part} accuracy",
            f"{100 * counts['accuracy']:.2f} %, {counts['correct']:,} of {counts['total']:,}",
        )
        for part, counts in summary["accuracy"].items()
        if part != "test"
    ]
    rows += _stopped(folder, summary)
    rows += [
        (
            f"{which} path",
            f"{path['multiply_adds'] / 1e6:.1f} M multiply-adds, "
            f"{path['parameters'] / 1e3:,.0f} k parameters",
        )
        for which, path in paths.items()
    ]
    total = sum(node["parameters"] for node in summary["nodes"].values())
    rows.append(("all networks", f"{total / 1e3:,.0f} k parameters"))
    lines += [
        tables.markdown(("", ""), rows),
        "",
        "The mean path is over the test images, by their true classes.",
        "",
        "## Data and protocol",
        "",
        f"{data['title']}, version {data['version']}; SHA-256 of its arrays `{data['sha256']}`. "
        f"{images['train']:,} training, {images['validation']:,} validation and "
        f"{images['test']:,} test images. Licence: {spec.licence}.",
        "",
    ]
    if official and stand_ins.has_title_of_one(spec, data["title"]):
        lines += [
            f"**These are not the official splits** (which have {official[0]:,} and "
            f"{official[1]:,} images) but a stand-in of real images: the accuracy does not compare "
            "with results on the official test split.",
            "",
        ]
    if summary["protocol"] == "holdout":
        held_out = "a class-stratified tenth of the training images"
        if spec.validation:
            held_out = "those of the dataset's own validation split"
        lines.append(
            f"Epochs were selected on validation images, {held_out}; the test split was used once, "
            "at the end."
        )
    else:
        lines.append("**Epochs were selected on the test split**: the accuracy is optimistic.")
    lines += [
        "",
        f"Trained with `python -m {package}.train {' '.join(given)}`, seed {summary['seed']}; "
        f"config.json has every setting, manifest.json the machine and the versions. One seed: "
        "the interval covers the sampling of test images, not that of trainings.",
        "",
        "## Use",
        "",
        "```sh",
        f"python -m trunk_jax.predict {name.as_posix()} IMAGE...",
        f"python -m trunk_jax.evaluate {name.as_posix()}{images_at}",
        f"python -m parity.check --checkpoint {name.as_posix()}{images_at}",
        "```",
        "",
        *(["`IMAGES`: the folder or .npz file of the dataset's images.", ""] if images_at else []),
        "`weights/*.safetensors` have PyTorch's names and layouts"
        + (", `orbax/` the same arrays as JAX reads them." if (folder / "orbax").is_dir() else "."),
        "",
        "## Limits",
        "",
        "It knows these classes alone, and gives any image one of them; its probabilities have "
        f"{_calibrated(folder)}. It has been measured on images like those it was trained on, and "
        "on no others.",
        "",
    ]
    return "\n".join(lines)
