"""The flags of the train and evaluate commands, the same for both frameworks."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.base import reading
from data.base.errors import UserError
from data.base.parser import Parser, out_folder, target
from data.images import datasets, specs
from data.images.datasets import Dataset
from data.images.splits import split
from data.inference.shipped import run_of
from data.recipes import auto, recipe
from data.recipes.baselines import models as baselines
from data.recipes.networks import BACKBONES
from data.recipes.recipe import Recipe
from data.run import runfolder

EPOCHS_HELP = (
    "epochs of every phase; with the recipe auto, epochs in which the whole tree is trained "
    "together, and growth gets a 15th and a 30th of them (default: the recipe's)"
)
# What a run is started with when a flag is not given; None: the recipe's own value.
DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "recipe": None,
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
    "precision": None,
    "deterministic": False,
    "budget": None,
    "init": None,
    "image_size": None,
}
# Not what decides a run but how it runs.
HOW = ("siblings", "devices", "distributed", "autotune", "tensorboard", "images_in")
SIBLINGS = ("auto", "together", "alone")
OF_TREES = ("backbone", "volatility", "grouping", "budget")
OF_MODELS_RECIPE = "corrected"  # what --model takes where no recipe is named
GROUPS = ("volatility", "grouping", "budget")  # what --from may change
OF_RUNS = ("deterministic", "init", "image_size")  # no setting of a recipe
OF_MODELS = ("size", "weights", "speed_up")


@dataclass(frozen=True)
class TrainOptions:
    """What `train` was asked for.

    `dataset`: where it had to be loaded to know the recipe; `notes`: what is to be said of both.
    """

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
    source: Path | None = None  # the run of --from
    init: Path | None = None  # the run whose weights it starts from
    tensorboard: bool = False
    dataset: Dataset | None = None
    notes: tuple[str, ...] = ()
    seeds: int | None = None  # trainings of --seeds
    images_in: str = "auto"

    def load(self) -> Dataset:
        """The dataset to train on."""
        return self.dataset or datasets.load(self.recipe.dataset, self.data_dir)


def train_parser(framework: str) -> Parser:
    """The flags of `python -m trunk_jax.train` and `python -m trunk_torch_ref.train`."""
    parser = Parser(
        prog=f"python -m trunk_{'jax' if framework == 'jax' else 'torch_ref'}.train",
        description="Grow and train a TRUNK tree, then evaluate it on the test split.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add(
        "--dataset",
        help=f"one of {', '.join(specs.SPECS)}; or data of your own: a folder with a "
        "folder of images for each class, at the top or in train, test and perhaps validation, an "
        ".npz file of images and labels, tfds:NAME, any that TFDS has prepared, or hf:FOLDER, one "
        "that Hugging Face's save_to_disk has left (default: "
        "digits)",
    )
    add(
        "--image-size",
        type=int,
        metavar="N",
        help="bring images of your own to N x N (default: "
        "the size that most have, up to 64, else 64 or 32)",
    )
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets (default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    add(
        "--backbone",
        help=f"node networks: {', '.join(BACKBONES)} (default: the recipe's first for the dataset)",
    )
    add(
        "--recipe",
        help=f"one of {', '.join(recipe.names())}, or FILE.toml, a file of that form, "
        "or auto: designed for the data (default: the first of "
        f"{', '.join(recipe.PREFERRED)} that has the backbone; auto for data of your own; "
        "corrected for --model)",
    )
    add(
        "--protocol",
        help="holdout: select on held-out training images, or on the validation split of data that "
        "have one; published: select on test, as the release did (default: the recipe's)",
    )
    add(
        "--images-in",
        choices=("auto", "memory", "disk"),
        help="keep training images in memory, or read each batch from the cache on disk while the "
        "one before is used; the result is the same (default: auto, memory where they fit)",
    )
    add(
        "--epochs",
        type=int,
        help=EPOCHS_HELP,
    )
    add("--batch-size", type=int, help="images in a training batch (default: the recipe's)")
    add("--limit", type=int, help="use only so many images of each split (default: 0, all)")
    add(
        "--seed",
        type=int,
        help="of weights, batches, augmentation and splits (default: the recipe's)",
    )
    add(
        "--seeds",
        type=int,
        metavar="N",
        help="train N times, each with the next seed and in a "
        "folder of its own, and print mean and interval (default: once)",
    )
    add(
        "--volatility",
        type=volatility,
        help="grouping threshold for all nodes, above 0, "
        "higher splits more; or auto: groups are chosen on validation images (default: the "
        "recipe's)",
    )
    add(
        "--budget",
        type=_amount,
        help="with the volatility auto, multiply-adds that an image's "
        "mean path may cost, such as 40M, or 0 for any number; the recipe auto designs "
        "networks for it (default: 0; of auto 40M for images of 32x32)",
    )
    add(
        "--grouping",
        help="threshold; sampled: by 100,000 draws, as the release does; or, in a recipe with "
        "exits, one: all classes go on to one child (default: threshold)",
    )
    add(
        "--model",
        help="train a monolithic baseline instead of a tree: "
        f"{', '.join(baselines.MODELS)} (default: none)",
    )
    add(
        "--size",
        type=int,
        help="of --model: side that images are resized to, 0 for none "
        "(default: the recipe's, mostly 224)",
    )
    add(
        "--weights",
        help="of --model: safetensors to start from, or none (default: the "
        "recipe's; what python -m parity.pretrained left, or none)",
    )
    add(
        "--speed-up",
        type=float,
        help="of a pruned --model: how many times fewer multiply-adds (default: the recipe's, 2)",
    )
    add(
        "--out",
        type=out_folder,
        help="the run folder (default: runs/<dataset>-<backbone>-<recipe>-seed<seed>-<framework>)",
    )
    add(
        "--from",
        metavar="RUN",
        help="take flags, data, the class phase of the root and all else "
        "that is the same from RUN, which stays as it is; to be given with a new folder and "
        "another volatility, grouping or budget (default: none)",
    )
    add(
        "--init",
        metavar="RUN",
        help="start from the weights of a finished tree, which is kept: "
        "more epochs, other settings, or other data of the same shapes; flags that are not given "
        "are RUN's, which stays as it is (default: none)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, or start it if it is not there (default: off)",
    )
    add(
        "--json", type=target, metavar="FILE", help="also write the summary to FILE (default: none)"
    )
    add(
        "--tensorboard",
        action="store_true",
        help="also write each epoch's numbers to "
        "tensorboard/ in the run folder; needs the package tensorboard (default: off)",
    )
    always = "off" if framework == "jax" else "off; on a GPU too this framework always does"
    add(
        "--deterministic",
        action="store_true",
        help="compute so that the same command on the same "
        "GPU gives the same bits; on a CPU it does without; what it costs a long training is not "
        f"measured (default: {always})",
    )
    if framework == "jax":
        add(
            "--autotune",
            type=int,
            choices=range(5),
            metavar="LEVEL",
            help="how much XLA times "
            "kernels when it compiles for a GPU: 0 starts sooner, 4 may run faster (default: "
            "XLA's, 4)",
        )
        add(
            "--precision",
            choices=recipe.PRECISIONS,
            help="what a training step of a node "
            "computes in; parameters, statistics and validation stay float32; bfloat16 is for "
            "GPUs (default: float32)",
        )
        add(
            "--siblings",
            choices=SIBLINGS,
            help="train the children of a node together, in one "
            "program where they have one shape, or alone; weights agree to rounding (default: "
            "auto, together on accelerators)",
        )
        _add_devices(parser)
    return parser


def _add_devices(parser: Parser) -> None:
    parser.add_argument(
        "--devices",
        type=_count,
        help="how many of this process's devices share each batch, or all (default: all)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of a "
        "job: Slurm, Open MPI, Kubernetes or TPU pod (default: off)",
    )


def volatility(text: str) -> float | str:
    """A flag's number, or `auto`."""
    if text == recipe.AUTO:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _amount(text: str) -> float:
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1.0)
    try:
        value = float(text if factor == 1 else text[:-1]) * factor
        if not math.isfinite(value):  # no JSON file of ours could hold it
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 40M") from None
    return value


def _wanted(text: str) -> float:
    """A mean cost, or a share of right answers."""
    try:
        value = _amount(text)
        if not value > 0:
            raise argparse.ArgumentTypeError("")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a mean cost such as 25M nor a share such as 0.92"
        ) from None
    return value


def _count(text: str) -> str:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor all")
    return text


def train_options(
    framework: str, arguments: list[str] | None = None, data: Dataset | None = None
) -> TrainOptions:
    """Parse and check the flags of `train`; UserError for any that makes no sense.

    `data`: a dataset in memory (`datasets.of_arrays`), in place of the flag.

    A resumed run keeps the flags it was started with: those given again must agree. Without
    `--out` it is the run in the default folder for the flags given.
    """
    parser = train_parser(framework)
    given = vars(parser.parse_args(arguments))
    if recipe.is_file(given.get("recipe", "")):  # --resume may be said in another folder
        given["recipe"] = str(reading.at_home(given["recipe"]).absolute())
    name = given.get("dataset", "digits")
    if data is not None:
        given["dataset"] = data.spec.name
    elif name not in specs.SPECS:  # likewise
        given["dataset"] = datasets.located(name)
    out = given.pop("out", None)
    resume, data_dir = given.pop("resume", False), given.pop("data_dir", None)
    report = given.pop("json", None)
    source, seeds = given.pop("from", None), given.pop("seeds", None)
    how = {k: given.pop(k) for k in HOW if k in given}
    if source is not None:
        given = _flags_from(Path(source), framework, parser, given, out)
    elif given.get("init") is not None:
        given = _flags_of_init(parser, given, out)
    flags = _named(DEFAULTS | given)
    chosen = None
    if out is None:
        chosen = _chosen(flags, data_dir, data)
        out = _default_folder(chosen.recipe, framework)
    out = Path(out)
    if resume and (out / "config.json").exists():
        flags, chosen = _named(DEFAULTS | _stored_flags(out, parser) | given), None
    deterministic = flags["deterministic"]
    if deterministic and "autotune" in how:
        raise UserError("--autotune is of no use with --deterministic, which times no kernels")
    chosen = chosen or _chosen(flags, data_dir, data)
    if source is not None:
        how["source"] = _same_but_groups(Path(source), chosen.recipe)
    if flags["init"] is not None:
        how["init"] = Path(flags["init"])
    return TrainOptions(
        chosen.recipe,
        flags,
        out,
        resume,
        data_dir,
        report,
        deterministic=deterministic,
        dataset=chosen.dataset,
        notes=chosen.notes,
        seeds=seeds,
        **how,
    )


def arguments_of(flags: Mapping[str, Any]) -> list[str]:
    """Flags by their names in Python as on a command line; None and False: not given.

    Example:
      >>> arguments_of({"dataset": "digits", "batch_size": 32, "resume": True, "seed": None})
      ['--dataset=digits', '--batch-size=32', '--resume']

    """
    given = {key: value for key, value in flags.items() if value is not None and value is not False}
    return [_word(key.rstrip("_"), value) for key, value in given.items()]


def _named(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with a recipe: where none is named, the first that has the backbone."""
    if flags["recipe"] is not None:
        return flags
    if flags["model"] is not None:
        return flags | {"recipe": OF_MODELS_RECIPE}
    if flags["dataset"] not in specs.SPECS:
        return flags | {"recipe": recipe.AUTO}
    return flags | {"recipe": recipe.first(flags["dataset"], flags["backbone"])}


def _flags_from(
    source: Path, framework: str, parser: Parser, given: dict[str, Any], out: str | None
) -> dict[str, Any]:
    """The flags of a run that takes a class phase from `source`."""
    config = runfolder.read_config(source)
    if out is None:
        raise UserError(f"--from {source} needs --out: the folder of the new run")
    if Path(out).resolve() == source.resolve():
        raise UserError(f"--out {out} is the run that --from names; choose another folder")
    if config.get("framework") != framework:
        raise UserError(
            f"{source} was trained with {config.get('framework')}; --from takes runs of the same "
            "framework"
        )
    if not given.keys() & set(GROUPS):
        raise UserError(f"--from {source} needs another --volatility, --grouping or --budget")
    runfolder.read_recipe_of_tree(source)
    flags = _stored_flags(source, parser) | given
    if flags.get("init") is not None:
        raise UserError("--from takes class phases, which a run of --init has none of; give one")
    return flags


def _flags_of_init(parser: Parser, given: dict[str, Any], out: str | None) -> dict[str, Any]:
    """The flags of a run that starts from another's weights: those of that run, and those given."""
    run = run_of(given["init"]).absolute()
    if out is None:
        raise UserError(f"--init {given['init']} needs --out: the folder of the new run")
    if Path(out).resolve() == run.resolve():
        raise UserError(f"--out {out} is the run that --init names; choose another folder")
    runfolder.read_recipe_of_tree(run)
    theirs = {key: value for key, value in _stored_flags(run, parser).items() if key != "init"}
    return theirs | given | {"init": str(run)}


def _same_but_groups(source: Path, chosen: Recipe) -> Path:
    """`source` itself. UserError if its recipe differs in more than what decides groups."""
    theirs, mine = (recipe.to_json(each) for each in (runfolder.read_recipe(source), chosen))
    for value in (theirs, mine):
        for key in ("grouping", "budget"):
            value.pop(key, None)
        for row in ("root", "others"):
            del value[row]["volatility"]
    different = runfolder.differences(mine, theirs)
    if different:
        raise UserError(
            f"{source} was trained with other settings ({'; '.join(different)}); --from may "
            f"change no more than {', '.join(f'--{name}' for name in GROUPS)}"
        )
    return source


@dataclass(frozen=True)
class _Chosen:
    """A recipe, and the dataset if it was loaded for it."""

    recipe: Recipe
    dataset: Dataset | None = None
    notes: tuple[str, ...] = ()


def _chosen(flags: dict[str, Any], data_dir: str | None, data: Dataset | None) -> _Chosen:
    """The recipe that the flags choose, with what they override."""
    known = flags["dataset"] in specs.SPECS
    wrong = OF_MODELS if flags["model"] is None else OF_TREES
    for flag in wrong:
        if flags.get(flag) != DEFAULTS.get(flag):
            needs = "needs --model" if flags["model"] is None else "is for trees, not --model"
            raise UserError(f"--{flag.replace('_', '-')} {needs}")
    own = flags["recipe"] == recipe.AUTO and flags["model"] is None
    dataset, notes = None, []
    if own or not known:
        size = flags["image_size"]
        dataset = data or datasets.load(flags["dataset"], data_dir, image_size=size or 0)
        notes = [f"note: {note}" for note in dataset.notes]
    elif flags["image_size"] is not None:
        raise UserError(f"--image-size is for data of your own; {flags['dataset']} has its size")
    name, spec = flags["dataset"], None
    if not known and dataset is not None:
        name, spec = dataset.spec.name, dataset.spec
    if own and dataset is not None:
        found = _facts(dataset, flags)
        chosen = auto.design(found, flags["backbone"], flags["budget"], flags["epochs"])
    elif flags["model"] is None:
        chosen = recipe.load(flags["recipe"], name, flags["backbone"], spec)
        if spec is not None:  # of which no table has networks
            designed = auto.networks_of(spec, chosen.backbone, chosen.budget or flags["budget"])
            chosen = replace(chosen, networks=designed)
    else:
        mine = {flag: flags[flag] for flag in OF_MODELS}
        chosen = baselines.load(flags["model"], name, flags["recipe"], data=spec, **mine)
    overrides = DEFAULTS.keys() - {"dataset", "recipe", "backbone", "model", *OF_MODELS, *OF_RUNS}
    given = {key: flags[key] for key in overrides}
    if own:
        given["epochs"] = None  # of joint training: those of growth follow from them
        given["budget"] = given.get("budget") or None  # its own
    chosen = recipe.override(chosen, **given)
    if own:
        notes += auto.lines(chosen, found)
    return _Chosen(chosen, dataset, tuple(notes))


def _facts(dataset: Dataset, flags: dict[str, Any]) -> auto.Facts:
    """What a recipe is designed from: the images that will be trained on."""
    protocol = flags["protocol"] or Recipe.protocol
    seed = Recipe.seed if flags["seed"] is None else flags["seed"]
    if protocol not in recipe.PROTOCOLS or seed < 0 or flags["limit"] < 0:
        protocol, seed, limit = Recipe.protocol, Recipe.seed, 0  # refused when it is checked
    else:
        limit = flags["limit"]
    train = split(dataset, protocol, seed, limit, on_disk=True).train
    return auto.facts(dataset.spec, train.images, train.labels)


def _default_folder(chosen: Recipe, framework: str) -> Path:
    return Path(
        f"runs/{chosen.dataset}-{chosen.backbone}-{chosen.name}-seed{chosen.seed}-{framework}"
    )


def _stored_flags(run: Path, parser: Parser) -> dict[str, Any]:
    """The flags that a run was started with, checked as those of a command line are."""
    flags = runfolder.read_config(run).get("flags")
    if not isinstance(flags, dict) or flags.keys() - DEFAULTS.keys():
        raise UserError(f"{run / 'config.json'} is not a run's configuration")
    words = arguments_of(flags)
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
    stop_at: float | None = None
    beam: int | None = None
    curve: bool = False


def evaluate_options(framework: str, arguments: list[str] | None = None) -> EvaluateOptions:
    """Parse the flags of `python -m trunk_jax.evaluate` and its PyTorch sister."""
    parser = Parser(
        prog=f"python -m trunk_{'jax' if framework == 'jax' else 'torch_ref'}.evaluate",
        description="Recompute a finished run's accuracy; write predictions and confusion matrix "
        "into its folder.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add(
        "--split",
        choices=("train", "validation", "test"),
        default="test",
        help="which images (default: %(default)s)",
    )
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add(
        "--stop-at",
        type=_wanted,
        metavar="COST|SHARE",
        help="of a tree with exits: set on validation images how sure a node must be for an image "
        "to stop there: for a mean cost such as 25M multiply-adds, or an accuracy such as 0.92; "
        "kept in the run folder (default: as kept there; with --beam the most accurate)",
    )
    add(
        "--beam",
        type=int,
        choices=(1, 2),
        help="2: images whose second branch is probable enough, as set on validation images, "
        "visit both; kept in the run folder (default: as kept there; with --stop-at 1)",
    )
    add(
        "--curve",
        action="store_true",
        help="print accuracy against mean multiply-adds, for rules set on validation images",
    )
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
        options.stop_at,
        options.beam,
        options.curve,
    )
