"""`python -m benchmarks.reading`: images a second, in memory and read ahead from disk.

Trains one node for a few epochs on made images, in both frameworks and both ways in turns; the
first epoch, in which programs are compiled, does not count. What is read lies in the system's own
copy of the file where that fits into memory: more `--images` than that show the disk.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data.base import machine, tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.base.writing import save_json
from data.images.on_disk import OnDisk
from data.images.shapes import plain_spec
from data.recipes import auto
from data.recipes.recipe import Phase, Recipe
from data.tree import hierarchy
from data.tree.hierarchy import Tree

CLASSES, CHECKED = 10, 256
WAYS = ("memory", "disk")
Images = np.ndarray | OnDisk


def stored(file: Path, count: int, side: int) -> np.ndarray:
    """So many images of noise, mapped from a file."""
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, side, side, 3))
    rng = np.random.default_rng(0)
    for start in range(0, count, 1024):
        part = images[start : start + 1024]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    images.flush()
    return np.load(file, mmap_mode="r").view(np.ndarray)


def recipe_of(side: int, images: np.ndarray, budget: float | None) -> Recipe:
    """What `--recipe auto` makes for so many images of that size."""
    spec = plain_spec("noise", (side, side, 3), tuple(map(str, range(CLASSES))))
    facts = auto.Facts(spec, len(images), (0.5,) * 3, (0.29,) * 3, True, "noise")
    return auto.design(facts, "resnet", budget)


def seconds_in_jax(recipe: Recipe, phase: Phase, images: Images, labels: np.ndarray) -> list[float]:
    """Seconds of each epoch."""
    import jax.numpy as jnp

    from trunk_jax.training import fit
    from trunk_jax.training.grow import initial_network
    from trunk_jax.training.source import Source
    from trunk_jax.training.windows import as_array

    root = hierarchy.ROOT
    network = initial_network(recipe, _tree(), root, "class", {}, images.shape[1:])
    source = Source(as_array(images), jnp.asarray(labels), ())
    check = Source(jnp.asarray(images[:CHECKED]), jnp.asarray(labels[:CHECKED]), ())
    return _seconds(fit.fit, recipe, phase, network, source, check)


def seconds_in_torch(
    recipe: Recipe, phase: Phase, images: Images, labels: np.ndarray
) -> list[float]:
    """Seconds of each epoch."""
    import torch

    from trunk_torch_ref.machine.devices import where
    from trunk_torch_ref.training import fit
    from trunk_torch_ref.training.grow import initial_network
    from trunk_torch_ref.training.pixels import FromDisk, as_images

    height, width, channels = images.shape[1:]
    shape = (channels, height, width)
    network = initial_network(recipe, _tree(), hierarchy.ROOT, "class", {}, shape).to(where())
    given = FromDisk(images, where()) if isinstance(images, OnDisk) else as_images(images, where())
    targets = torch.tensor(labels, dtype=torch.int64, device=where())
    source = fit.Source(given, targets, ())
    check = fit.Source(as_images(images[:CHECKED], where()), targets[:CHECKED], ())
    return _seconds(fit.fit, recipe, phase, network, source, check)


def _tree() -> Tree:
    return hierarchy.bare(CLASSES)


def _seconds(fit: Callable[..., Any], *arguments: Any) -> list[float]:
    rows: list[dict[str, Any]] = []
    recipe, phase, *rest = arguments
    fit(
        recipe,
        phase,
        "root/class",
        *rest,
        restore=lambda *_: None,
        save=lambda *_: None,
        report=lambda row=None, **_: rows.append(row) if row else None,
    )
    return [row["seconds"] for row in rows[1:]]


def main(arguments: list[str] | None = None) -> None:
    """The command: a table, and with --json its numbers."""
    parser = Parser(
        prog="python -m benchmarks.reading",
        description="Images a second of a node's training, its images in memory and read ahead "
        "from disk, in both frameworks.",
    )
    add = parser.add_argument
    add("--images", type=int, default=20_000, help="how many (default: %(default)s)")
    add("--size", type=int, default=64, help="their side (default: %(default)s)")
    add("--budget", type=float, help="multiply-adds of a path (default: by the size)")
    add("--epochs", type=int, default=4, help="of each training (default: %(default)s)")
    add(
        "--folder",
        type=out_folder,
        help="where the images are written (default: the system's for such files)",
    )
    add("--json", type=target, metavar="FILE", help="also write the numbers to FILE")
    options = parser.parse_args(arguments)
    if options.images < CHECKED or options.epochs < 2:
        raise UserError(f"--images must be {CHECKED} or more, --epochs 2 or more")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = stored(Path(folder) / "images.npy", options.images, options.size)
        labels = np.arange(len(images), dtype=np.int32) % CLASSES
        recipe = recipe_of(options.size, images, options.budget)
        phase = Phase(options.epochs, "sgd", 0.05, 5e-4, nesterov=True)
        for name, measure in (("JAX", seconds_in_jax), ("PyTorch", seconds_in_torch)):
            for way in WAYS:
                given = images if way == "memory" else OnDisk(images, np.arange(len(images)))
                took = median(measure(recipe, phase, given, labels))
                found.setdefault(name, {})[way] = len(images) / max(took, 1e-9)
    rows = [
        [name, *(f"{rates[way]:,.0f}" for way in WAYS), f"{rates['disk'] / rates['memory']:.2f}"]
        for name, rates in found.items()
    ]
    head = ["images a second", *WAYS, "disk / memory"]
    size = f"{images.nbytes / 1e9:.2f} GB"
    print(f"{options.images:,} images of {options.size}x{options.size}, {size}")
    tables.print_table("", head, rows)
    if options.json:
        about = {"images": options.images, "size": options.size, "bytes": images.nbytes}
        save_json(options.json, about | {"rates": found, "cores": machine.cores()})


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
