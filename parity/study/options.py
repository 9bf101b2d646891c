"""The flags of `python -m parity.study`, and what they decide."""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.base.parser import Parser, out_folder, target
from data.images import specs
from data.recipes import recipe
from data.recipes.networks import BACKBONES
from data.recipes.recipe import Recipe
from data.run.options import EPOCHS_HELP, arguments_of, train_options, volatility
from parity.study import bounds, plants, verdict

DESIGNS = ("coupled", "independent", "stepwise")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Settings:
    """All that decides what is computed.

    `recipe` has seed 0; a seed's runs use theirs. `nodes`: `root`, the root's class phase alone,
    or `tree`. `controls`: runs with flipped bits a framework. `fault`: planted in JAX, or None.
    Of the stepwise design: `every`: each so many-th step is judged; `fault_from`: the step of the
    whole training, from 1, from which on the fault is there.
    """

    recipe: Recipe
    seeds: int
    nodes: str
    designs: tuple[str, ...]
    dtypes: tuple[str, ...]
    controls: int
    fault: str | None
    devices: bool
    every: int = 1
    fault_from: int = 1


@dataclass(frozen=True)
class Options:
    """What the command was asked for. `margin`, in points, and `power` judge what was computed."""

    settings: Settings
    margin: float
    power: float
    jobs: int
    data_dir: str | None
    out: Path
    json: Path | None
    command: tuple[str, ...]


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="python -m parity.study",
        description="Does the result of a training depend on the framework? Train in JAX and in "
        "PyTorch, coupled step by step and independently over seeds, and state what follows. A "
        "study that was interrupted goes on when it is started again.",
    )
    add = made.add_argument
    add(
        "--dataset",
        default="digits",
        help=f"one of {', '.join(specs.SPECS)}, or data of your own, as in train (default: "
        "%(default)s)",
    )
    add("--image-size", type=int, metavar="N", help="of data of your own, as in train")
    add("--budget", help="of the recipe auto, as in train")
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets (default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    add("--backbone", help=f"node networks: {', '.join(BACKBONES)} (default: the recipe's first)")
    add(
        "--recipe",
        help=f"one of {', '.join(recipe.names())}, or FILE.toml (default: corrected; auto for data "
        "of your own)",
    )
    add(
        "--seeds",
        type=int,
        default=1,
        help="how many: each gives one coupled pair of runs, and "
        "one independent run of each framework (default: %(default)s)",
    )
    add("--epochs", type=int, help=EPOCHS_HELP)
    add("--batch-size", type=int, help="images in a training batch (default: the recipe's)")
    add(
        "--volatility",
        type=volatility,
        help="grouping threshold for all nodes, or auto (default: the recipe's)",
    )
    add(
        "--limit",
        type=int,
        default=0,
        help="use only so many images of each split (default: 0, all)",
    )
    add(
        "--nodes",
        choices=("root", "tree"),
        default="root",
        help="the root's class phase alone, or the whole tree (default: %(default)s)",
    )
    add(
        "--design",
        choices=(*DESIGNS, "both"),
        default="both",
        help="coupled: both trained on the same weights, batches and masks; independent: each on "
        "its own; stepwise: PyTorch trained, and JAX taking each of its steps from the same state; "
        "both: coupled and independent (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=(*DTYPES, "both"),
        default="both",
        help="of the coupled design, and in which each step is judged in the stepwise one "
        "(default: %(default)s)",
    )
    add(
        "--every",
        metavar="K",
        type=int,
        default=1,
        help="stepwise: judge the first step of each phase and every K-th after it (default: "
        "%(default)s, all)",
    )
    add(
        "--controls",
        type=int,
        default=3,
        help="runs of each framework with flipped bits, for "
        "the coupled design's control, by turns of one weight and of half of all (default: "
        "%(default)s)",
    )
    add(
        "--margin",
        type=float,
        default=1.0,
        help="the largest difference of mean accuracy, in "
        "points, that counts as none (default: %(default)s)",
    )
    add(
        "--power",
        type=float,
        default=0.8,
        help="for which the number of seeds needed is stated (default: %(default)s)",
    )
    add(
        "--fault",
        metavar="NAME",
        help="plant a difference in JAX, to see it found: "
        f"{', '.join(plants.names())} (default: none)",
    )
    add(
        "--fault-from",
        metavar="STEP",
        type=int,
        default=1,
        help="stepwise: the fault begins at this step of the whole training (default: "
        "%(default)s, the first)",
    )
    add(
        "--devices",
        action="store_true",
        help="also run the trained root in every precision of "
        "the devices at hand, against float64 on the CPU (default: off)",
    )
    add("--jobs", type=int, default=1, help="processes, of one thread each (default: %(default)s)")
    add(
        "--out",
        type=out_folder,
        help="the study's folder (default: runs/study-<dataset>-<backbone>-<nodes>)",
    )
    add("--json", type=target, metavar="FILE", help="also write study.json to FILE (default: none)")
    return made


def options_of(arguments: list[str]) -> Options:
    """Parse and check the flags. UserError for any that makes no sense."""
    given = parser().parse_args(arguments)
    chosen = _recipe_of(given)
    _need(1 <= given.seeds <= 1000, "--seeds", given.seeds, "1 to 1000")
    _need(2 <= given.controls <= 100, "--controls", given.controls, "2 to 100")
    _need(1 <= given.jobs <= 256, "--jobs", given.jobs, "1 to 256")
    _need(given.margin > 0 and math.isfinite(given.margin), "--margin", given.margin, "above 0")
    _need(1 <= given.every <= 10**6, "--every", given.every, "1 to 1,000,000")
    _need(given.fault_from >= 1, "--fault-from", given.fault_from, "1 or more")
    stepwise = given.design == "stepwise"
    if not stepwise and (given.every > 1 or given.fault_from > 1):
        raise UserError("--every and --fault-from are of --design stepwise")
    if given.fault_from > 1 and given.fault is None:
        raise UserError("--fault-from says when --fault begins; name one")
    _need(0 < given.power < 1, "--power", given.power, "between 0 and 1")
    designs = ("coupled", "independent") if given.design == "both" else (given.design,)
    if "independent" in designs and given.seeds < 2 and given.design != "both":
        raise UserError("--design independent needs --seeds 2 or more: one run has no spread")
    if given.seeds < 2 and given.design == "both":
        print("one seed: the independent design, which needs two, is left out", file=sys.stderr)
    if given.seeds < 2 and not stepwise:
        designs = ("coupled",)
    followed = next((name for name in ("coupled", "stepwise") if name in designs), None)
    if chosen.joint is not None and followed and given.nodes == "tree":
        raise UserError(
            f"recipe {chosen.name} trains the whole tree together, which the {followed} design "
            "does not follow; use --nodes root, or --design independent"
        )
    if stepwise and given.devices:
        raise UserError("--devices goes with the coupled or the independent design")
    if given.fault is not None:
        plants.find(given.fault)
    settings = Settings(
        recipe=chosen,
        seeds=given.seeds,
        nodes=given.nodes,
        designs=designs,
        dtypes=DTYPES if given.dtype == "both" else (given.dtype,),
        controls=given.controls,
        fault=given.fault,
        devices=given.devices,
        every=given.every,
        fault_from=given.fault_from,
    )
    out = given.out or f"runs/study-{chosen.dataset}-{chosen.backbone}-{given.nodes}"
    if stepwise and not given.out:
        out += "-stepwise"
    return Options(
        settings,
        given.margin,
        given.power,
        given.jobs,
        given.data_dir,
        Path(out),
        given.json,
        tuple(arguments),
    )


def _recipe_of(given: argparse.Namespace) -> Recipe:
    """The recipe, with seed 0, as `train` would choose it."""
    names = ("dataset", "data_dir", "image_size", "budget", "backbone", "recipe", "epochs")
    words = {name: getattr(given, name) for name in (*names, "batch_size", "limit", "volatility")}
    if given.recipe is None:
        words["recipe"] = "corrected" if given.dataset in specs.SPECS else recipe.AUTO
    return train_options("jax", [*arguments_of(words), "--seed=0", "--out=runs/study"]).recipe


def config(settings: Settings, fingerprint: str) -> dict[str, Any]:
    """What a study's folder is known by: with other settings it cannot be gone on with."""
    stepwise = "stepwise" in settings.designs
    others = ("controls", "devices") if stepwise else ("every", "fault_from")
    return {
        "rule": bounds.EDITION if stepwise else verdict.EDITION,
        "dataset_sha256": fingerprint,
        "recipe": recipe.to_json(settings.recipe),
        **{
            name: _listed(value)
            for name, value in vars(settings).items()
            if name not in ("recipe", *others)
        },
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _need(good: bool, what: str, value: Any, wanted: str) -> None:
    if not good:
        raise UserError(f"{what} is {value!r}; it must be {wanted}")
