"""The flags of the train and evaluate commands, the same for both frameworks."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.base.parser import Parser, target
from data.images import specs
from data.recipes import recipe
from data.recipes.baselines import models as baselines
from data.recipes.networks import BACKBONES
from data.recipes.recipe import Recipe
from data.run import runfolder

# What a run is started with when a flag is not given; None: the recipe's own value.
DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "recipe": "default",
    "backbone": None,
    "protocol": None,
    "epochs": None,
    "batch_size": None,
    "limit": 0,
    "seed": None,
    "volatility": None,
    "grouping": "threshold",
    "model": None,
    "size": None,
    "weights": None,
    "speed_up": None,
}
# In a run's configuration only where they were given; the first is the recipe's as well.
LATER = {"precision": None, "deterministic": False}
HOW = ("siblings", "devices", "distributed", "autotune")  # not what decides a run but how it runs
SIBLINGS = ("auto", "together", "alone")
OF_TREES = ("backbone", "volatility", "grouping")
OF_MODELS = ("size", "weights", "speed_up")


@dataclass(frozen=True)
class TrainOptions:
    """What `train` was asked for."""

    recipe: Recipe
    flags: dict[str, Any]
    out: Path
    resume: bool
    data_dir: str | None
    json: Path | None
    siblings: str = "auto"
    devices: str = "all"
    distributed: bool = False
    deterministic: bool = False
    autotune: int | None = None


def train_parser(framework: str) -> Parser:
    """The flags of `python -m trunk_jax.train` and `python -m trunk_torch_ref.train`."""
    parser = Parser(
        prog=f"python -m trunk_{'jax' if framework == 'jax' else 'torch_ref'}.train",
        description="Grow and train a TRUNK tree, then evaluate it on the test split.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--dataset", help=f"one of {', '.join(specs.SPECS)} (default: digits)")
    add("--data-dir", help="folder of prepared TFDS datasets (default: TFDS_DATA_DIR, else "
                           "~/tensorflow_datasets)")  # fmt: skip
    add("--backbone", help=f"node networks: {', '.join(BACKBONES)} (default: the recipe's first "
                           "for the dataset)")  # fmt: skip
    add("--recipe", help=f"one of {', '.join(recipe.names())}, or FILE.toml, a file of that form "
                         "(default: default)")  # fmt: skip
    add("--protocol", help="holdout: select on held-out training images; published: select on "
                           "test, as the release did (default: the recipe's)")  # fmt: skip
    add("--epochs", type=int, help="epochs of every phase (default: the recipe's)")
    add("--batch-size", type=int, help="images in a training batch (default: the recipe's)")
    add("--limit", type=int, help="use only so many images of each split (default: 0, all)")
    add("--seed", type=int, help="of weights, batches, augmentation and splits (default: the "
                                 "recipe's)")  # fmt: skip
    add("--volatility", type=float, help="grouping threshold for all nodes, above 0; higher "
                                         "splits more (default: the recipe's)")  # fmt: skip
    add("--grouping", help="threshold, or sampled: by 100,000 draws, as the release does "
                           "(default: threshold)")  # fmt: skip
    add("--model", help="train a monolithic baseline instead of a tree: "
                        f"{', '.join(baselines.MODELS)} (default: none)")  # fmt: skip
    add("--size", type=int, help="of --model: side that images are resized to, 0 for none "
                                 "(default: the recipe's, mostly 224)")  # fmt: skip
    add("--weights", help="of --model: safetensors to start from, or none (default: the "
                          "recipe's; what python -m parity.pretrained left, or none)")  # fmt: skip
    add("--speed-up", type=float, help="of a pruned --model: how many times fewer multiply-adds "
                                       "(default: the recipe's, 2)")  # fmt: skip
    add("--out", help="the run folder (default: runs/<dataset>-<backbone>-<recipe>-seed<seed>"
                      "-<framework>)")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run in --out, or start it if it "
                                              "is not there (default: off)")  # fmt: skip
    add(
        "--json", type=target, metavar="FILE", help="also write the summary to FILE (default: none)"
    )
    always = "off" if framework == "jax" else "off; on a GPU too this framework always does"
    add("--deterministic", action="store_true", help="compute so that the same command on the same "
        "GPU gives the same bits; on a CPU it does without; what it costs in time is not measured "
        f"yet (default: {always})")  # fmt: skip
    if framework == "jax":
        add("--autotune", type=int, choices=range(5), metavar="LEVEL", help="how much XLA times "
            "kernels when it compiles for a GPU: 0 starts sooner, 4 may run faster (default: "
            "XLA's, 4)")  # fmt: skip
        add("--precision", choices=recipe.PRECISIONS, help="what a training step of a node "
            "computes in; parameters, statistics and validation stay float32; bfloat16 is for "
            "GPUs (default: float32)")  # fmt: skip
        add("--siblings", choices=SIBLINGS, help="train the children of a node together, in one "
            "program where they have one shape, or alone; weights agree to rounding (default: "
            "auto, together on accelerators)")  # fmt: skip
        _add_devices(parser)
    return parser


def _add_devices(parser: Parser) -> None:
    parser.add_argument("--devices", type=_count, help="how many of this process's devices share "
                        "each batch, or all (default: all)")  # fmt: skip
    parser.add_argument("--distributed", action="store_true", help="join the other processes of a "
                        "job: Slurm, Open MPI, Kubernetes or TPU pod (default: off)")  # fmt: skip


def _count(text: str) -> str:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor all")
    return text


def train_options(framework: str, arguments: list[str] | None = None) -> TrainOptions:
    """Parse and check the flags of `train`; UserError for any that makes no sense.

    A resumed run keeps the flags it was started with: those given again must agree. Without
    `--out` it is the run in the default folder for the flags given.
    """
    parser = train_parser(framework)
    given = vars(parser.parse_args(arguments))
    if recipe.is_file(given.get("recipe", "")):  # --resume may be said in another folder
        given["recipe"] = str(Path(given["recipe"]).expanduser().absolute())
    out = given.pop("out", None)
    resume, data_dir = given.pop("resume", False), given.pop("data_dir", None)
    report = given.pop("json", None)
    how = {k: given.pop(k) for k in HOW if k in given}
    flags = DEFAULTS | given
    out = _default_folder(_recipe(flags), framework) if out is None else Path(out)
    if resume and (out / "config.json").exists():
        flags = DEFAULTS | _stored_flags(out, parser) | given
    deterministic = flags.get("deterministic", False)
    if deterministic and "autotune" in how:
        raise UserError("--autotune is of no use with --deterministic, which times no kernels")
    return TrainOptions(
        _recipe(flags), flags, out, resume, data_dir, report, deterministic=deterministic, **how
    )


def _recipe(flags: dict[str, Any]) -> Recipe:
    """The recipe that the flags choose, with what they override."""
    specs.spec(flags["dataset"])
    wrong = OF_MODELS if flags["model"] is None else OF_TREES
    for flag in wrong:
        if flags[flag] != DEFAULTS[flag]:
            needs = "needs --model" if flags["model"] is None else "is for trees, not --model"
            raise UserError(f"--{flag.replace('_', '-')} {needs}")
    if flags["model"] is None:
        chosen = recipe.load(flags["recipe"], flags["dataset"], flags["backbone"])
    else:
        own = {flag: flags[flag] for flag in OF_MODELS}
        chosen = baselines.load(flags["model"], flags["dataset"], flags["recipe"], **own)
    overrides = DEFAULTS.keys() - {"dataset", "recipe", "backbone", "model", *OF_MODELS}
    overrides |= {"precision"} & flags.keys()
    return recipe.override(chosen, **{key: flags[key] for key in overrides})


def _default_folder(chosen: Recipe, framework: str) -> Path:
    return Path(
        f"runs/{chosen.dataset}-{chosen.backbone}-{chosen.name}-seed{chosen.seed}-{framework}"
    )


def _stored_flags(run: Path, parser: Parser) -> dict[str, Any]:
    """The flags that a run was started with, checked as those of a command line are."""
    flags = runfolder.read_config(run).get("flags")
    if not isinstance(flags, dict) or flags.keys() - DEFAULTS.keys() - LATER.keys():
        raise UserError(f"{run / 'config.json'} is not a run's configuration")
    words = [_word(key, value) for key, value in flags.items() if value is not None]
    try:
        return vars(parser.parse_args(words))
    except UserError as error:
        raise UserError(f"{run / 'config.json'}: {error}") from None


def _word(flag: str, value: Any) -> str:
    """A flag and its value as on a command line."""
    word = f"--{flag.replace('_', '-')}"
    return word if value is True else f"{word}={value}"


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` was asked for."""

    run: Path
    split: str
    data_dir: str | None
    json: Path | None
    devices: str = "all"
    distributed: bool = False


def evaluate_options(framework: str, arguments: list[str] | None = None) -> EvaluateOptions:
    """Parse the flags of `python -m trunk_jax.evaluate` and its PyTorch sister."""
    parser = Parser(
        prog=f"python -m trunk_{'jax' if framework == 'jax' else 'torch_ref'}.evaluate",
        description="Recompute a finished run's accuracy; write predictions and confusion matrix "
        "into its folder.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--split", choices=("train", "validation", "test"), default="test",
        help="which images (default: %(default)s)")  # fmt: skip
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    if framework == "jax":
        parser.set_defaults(devices="all", distributed=False)
        _add_devices(parser)
    options = parser.parse_args(arguments)
    return EvaluateOptions(
        Path(options.run),
        options.split,
        options.data_dir,
        options.json,
        getattr(options, "devices", "all"),
        getattr(options, "distributed", False),
    )
