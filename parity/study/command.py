"""What the command does: compute the tasks, then write all that follows from them."""

import platform
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import torch

from data.base import interrupts, writing
from data.base.tables import WIDTH
from data.base.writing import save_json
from data.images.datasets import Dataset
from data.images.splits import split
from data.run import runfolder
from data.run.dataset import load_of_recipe
from data.run.manifest import manifest
from data.run.options import TrainOptions
from parity.study import figures, findings, report, stepwise, tables, tasks
from parity.study.options import Options, config, options_of
from parity.study.outcome import outcome
from trunk_jax.machine import backend
from trunk_jax.pictures.style import write
from trunk_torch_ref.machine import settings as torch_settings


def main(arguments: list[str], inline: bool = False) -> int:
    """Run a study, or go on with it: 1 if steps of both differ beyond rounding, else 0.

    `inline`: without worker processes. UserError for anything a user can put right.
    """
    options = options_of(arguments)
    interrupts.resumable("python -m parity.study", arguments)
    backend.start()
    torch_settings.apply()
    settings, out = options.settings, options.out
    dataset = load_of_recipe(settings.recipe, options.data_dir)
    with runfolder.lock(out):
        runfolder.create(
            out,
            {"format": runfolder.FORMAT, "study": config(settings, dataset.fingerprint)},
            resume=True,
        )
        _keep_manifest(options, dataset)
        found = tasks.compute(settings, options.data_dir, out, options.jobs, inline)
        trained = []
        if "stepwise" in settings.designs:
            stepwise.compute(settings, options.data_dir, out, options.jobs, inline)
            trained = [stepwise.summary(settings, out, seed) for seed in range(settings.seeds)]
        value = outcome(options, dataset, found, trained)
        tables.write(out, found, trained)
        write_pages(value, out)
        writing.write_json(out / "study.json", value)
    say(value, out)
    if options.json:
        save_json(options.json, value)
    beyond = any(coupled["finding"] for coupled in value["coupled"])
    return 1 if beyond or any(one["beyond"] for one in value["stepwise"]) else 0


def write_pages(value: dict[str, Any], out: Path) -> None:
    """The pictures, the page and the summary of what `study.json` holds."""
    made = figures.figures(value)
    for name, drawing in made.items():
        write(drawing, out, name)
    writing.write_bytes(out / "report.html", report.page(value, made).encode())
    writing.write_bytes(out / "summary.md", report.markdown(value, list(made)).encode())


def say(value: dict[str, Any], out: Path) -> None:
    """The same on the terminal."""
    for section in report.sections(value):
        print(f"\n{section['title']}")
        for table in section["tables"]:
            table.print()
        print(*(_plain(line, "- ") for line in section["lines"]), sep="\n")
    print(f"\n{_plain(findings.headline(value))}\n{out / 'report.html'}")


def _plain(text: str, bullet: str = "") -> str:
    """A sentence without Markdown's marks of bold, in lines that fit."""
    plain = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    return textwrap.fill(
        plain,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _keep_manifest(options: Options, dataset: Dataset) -> None:
    """`manifest.json`, once: what the study was begun with."""
    file: Path = options.out / "manifest.json"
    if file.exists():
        return
    recipe = options.settings.recipe
    device: dict[str, Any] = {
        "jax": jax.devices()[0].device_kind,
        "torch": "cuda" if torch.cuda.is_available() else "cpu",
        "node": platform.machine(),
    }
    flags = {"arguments": list(options.command)}
    given = TrainOptions(recipe, flags, options.out, True, options.data_dir, None)
    parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
    about = manifest("both", device, given, dataset, parts)
    writing.write_json(file, about | {"written": time.strftime("%Y-%m-%d", time.gmtime())})
