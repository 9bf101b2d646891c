"""Training recipes: read from the TOML files in `data/recipes/`, checked, held as frozen values."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

from data.base import reading
from data.base.errors import UserError
from data.images import specs
from data.images.augmentation import Augmentation
from data.images.specs import Spec
from data.recipes import networks
from data.recipes.networks import BACKBONES, Designed, Network

FOLDER = Path(__file__).parent

# The release's faults that change numbers (docs/trunk.md, section 6), each switched on by name.
FAULTS = (
    "pointwise_padding",  # padding 1 on 1x1 convolutions
    "warm_batchnorm",  # one image of ones through `features` in train mode before training
    "subset_batches",  # a child's batch: its members in a shuffled batch of the whole dataset
    "train_mode_validation",  # batch statistics and dropout in validation; it updates the former
    "train_mode_asl",  # likewise when ASL is taken, on shuffled, augmented training batches
    "drop_last_validation",  # the last partial validation batch is left out
    "no_head",  # DINOv2's 768 features are the scores
    "no_stem_norm",  # ConvNeXt's stem lost its layer norm with its convolution (on EMNIST)
)
LOSSES = ("nll", "cross_entropy")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "step", "constant", "onecycle")
PRECISIONS = ("float32", "bfloat16")
PROTOCOLS = ("holdout", "published")
TIES = ("first", "last", "final")
GROUPINGS = ("threshold", "sampled", "one")
PREFERRED = ("efficient", "corrected", "published")
AUTO: Final = "auto"
Volatility = float | Literal["auto"]  # auto: groups are chosen by `data.tree.selection`
# Faults of how batches and validation are made; joint training makes its own.
_NOT_JOINT = ("subset_batches", "train_mode_validation", "drop_last_validation")


@dataclass(frozen=True)
class Phase:
    """How one network is trained once.

    `optimizer`: PyTorch's Adam or SGD with coupled weight decay (L2 added to the gradient).
    `milestones`: for the schedule step, the epochs after which to multiply by `factor`, instead
    of every `period`.
    `schedule`, stepped once an epoch: cosine with T_max = `period` (which rises again after
    it; 0 means all epochs), step (times `factor` every `period` epochs), or constant; stepped
    once a batch: onecycle (PyTorch's OneCycleLR, its rate alone), which rises from lr / 25 to
    `lr` in the share `warmup` of all steps and falls to almost 0, both along a cosine.
    `nesterov`: for SGD. `label_smoothing`: the share of a target spread evenly over all outputs.
    `precision`: with bfloat16 a training step computes in it; in joint training only products
    are taken of values rounded to it. Parameters, statistics and validation stay float32.
    """

    epochs: int
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    period: int = 0
    factor: float = 0.1
    warmup: float = 0.3
    nesterov: bool = False
    label_smoothing: float = 0.0
    precision: str = "float32"
    milestones: tuple[int, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """What a monolithic baseline needs besides.

    Attributes:
      size: images are resized to size x size; 0 leaves them as they are.
      weights: `FILE#SHA-256` of the safetensors it starts from, or `none`.
      speed_up: of a pruned one, how many times fewer multiply-adds; 1 for none.

    """

    size: int = 0
    weights: str = "none"
    speed_up: float = 1.0


@dataclass(frozen=True)
class Exits:
    """What is particular to a tree whose nodes score classes, so that images may stop early.

    Both are for joint training. `weight`: what the loss of a node that has children counts, where
    that of one without counts 1. `distil`: what it counts besides that such a node gives, among
    a child's classes, the probabilities that the child does (cross entropy at the temperature
    `DISTIL_TEMPERATURE`, times its square); the child learns nothing from it.
    """

    weight: float = 1.0
    distil: float = 0.0


DISTIL_TEMPERATURE = 2.0


@dataclass(frozen=True)
class NodeRecipe:
    """The two phases of a node and its volatility."""

    volatility: Volatility
    class_phase: Phase
    group_phase: Phase


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run, but for the images themselves.

    `mean`, `std`: per channel, applied to pixels/255; empty for none.
    `ties`: which of the epochs with the same validation accuracy is kept; `final`: the last
    epoch, whatever its accuracy.
    `limit`: use only so many training (and of validation and test) images; 0 for all.
    `joint`: how all nodes are trained together once the tree is grown; None: they are not.
    `balanced`: in joint training the classes come equally often, and count equally when an
    epoch is chosen: for data whose classes are less even in training than where they are used.
    `baseline`: of a monolithic baseline, a tree of one node that `backbone` names; None: a tree.
    `budget`: with the volatility auto, multiply-adds that the mean path may cost; 0: any number.
    `data`: what is known of the dataset; None: what `specs` has under its name, put in by `check`.
    `networks`: those of a recipe that was designed for its data; None: the table's.
    `exits`: nodes score classes, and images may stop early; None: nodes score groups.
    """

    name: str
    dataset: str
    backbone: str
    root: NodeRecipe
    others: NodeRecipe
    batch_size: int = 128
    eval_batch_size: int = 256
    seed: int = 0
    loss: str = "cross_entropy"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Augmentation = field(default_factory=Augmentation)
    eval_augment: Augmentation = field(default_factory=Augmentation)
    protocol: str = "holdout"
    grouping: str = "threshold"
    ties: str = "last"
    limit: int = 0
    faults: tuple[str, ...] = ()
    joint: Phase | None = None
    baseline: Baseline | None = None
    balanced: bool = False
    budget: float = 0.0
    data: Spec | None = None
    networks: Designed | None = None
    exits: Exits | None = None

    @property
    def spec(self) -> Spec:
        """What is known of the dataset."""
        return specs.spec(self.dataset) if self.data is None else self.data

    def network(self, node: str) -> Network:
        """The layers of the node called `node`."""
        if self.networks is not None:
            return self.networks.network(node)
        return networks.network(self.dataset, self.backbone, node)

    def node(self, is_root: bool) -> NodeRecipe:
        """The row that applies to a node."""
        return self.root if is_root else self.others


def names() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def combinations(name: str) -> list[tuple[str, str]]:
    """The (dataset, backbone) pairs that a recipe covers."""
    table = _table(_file(name))
    return [(dataset, backbone) for dataset, rows in table.items() for backbone in rows]


def is_file(name: str) -> bool:
    """Whether `--recipe` names a file of the user's own."""
    return name.lower().endswith(".toml")


def having(name: str, dataset: str, backbone: str | None) -> bool:
    """Whether a recipe covers a dataset with a backbone (None: with any)."""
    pairs = combinations(name)
    return any(dataset == d and backbone in (None, b) for d, b in pairs)


def first(dataset: str, backbone: str | None) -> str:
    """The recipe for a command that names none: the first of `PREFERRED` with the backbone."""
    return next((name for name in PREFERRED if having(name, dataset, backbone)), PREFERRED[0])


def load(name: str, dataset: str, backbone: str | None = None, data: Spec | None = None) -> Recipe:
    """The recipe `name` for a dataset and backbone (None: the first one it has).

    `data`: of one that `specs` does not have, what is known of it.

    `name`: one of `names()`, or the path of a TOML file of the same form; the recipe is then
    called as the file is. UserError, with the choices, if there is none, and naming file, table
    and setting if one makes no sense.

    Example: `load("corrected", "digits").backbone` is the first that it has for digits.
    """
    file = _file(name)
    table = _table(file)
    if backbone is not None and backbone not in BACKBONES:
        raise UserError(f"no backbone {backbone!r}; the backbones: {', '.join(BACKBONES)}")
    rows = table.get(dataset)
    if rows is None or (backbone is not None and backbone not in rows):
        raise UserError(_no_such(name, table, dataset, backbone))
    backbone = backbone or next(iter(rows))
    called = file.name if is_file(name) and file.stem in names() else file.stem
    row = _row(rows[backbone]) | {"name": called, "dataset": dataset, "backbone": backbone}
    try:
        for key in rows[backbone].keys() & {"name", "dataset", "backbone"}:
            raise UserError(f"unknown setting {key!r}; the table's name says it")
        return check(dataclasses.replace(_build(Recipe, row), data=data))
    except (UserError, OverflowError) as error:  # the latter: too large for a float
        text = str(error).replace("_phase", "")
        raise UserError(f"{file}, table [{dataset}.{backbone}]: {text}") from None


def _row(settings: dict[str, Any]) -> dict[str, Any]:
    """A table's settings as `_build` takes them: without a root of its own it is as the others."""
    row = dict(settings)
    row.setdefault("root", row["others"])  # after the others, which are then at fault
    for key in ("root", "others"):
        phases = {f"{name}_phase": row[key][name] for name in ("class", "group")}
        row[key] = {k: v for k, v in row[key].items() if k not in ("class", "group")} | phases
    return row


def _no_such(name: str, table: dict[str, Any], dataset: str, backbone: str | None) -> str:
    """What to say where a recipe has nothing for a dataset and backbone."""
    wanted = f"{dataset} {backbone}" if backbone else dataset
    others = [other for other in names() if other != name and having(other, dataset, backbone)]
    also = f", but {' and '.join(others)} {'have' if others[1:] else 'has'}" if others else ""
    choices = ", ".join(f"{d} {b}" for d, backbones in table.items() for b in backbones)
    auto = "" if dataset in specs.SPECS else "; --recipe auto designs one"
    return f"recipe {name!r} has none for {wanted}{also}; it has: {choices}{auto}"


def _file(name: str) -> Path:
    """Where a recipe is. UserError if there is none of that name."""
    if is_file(name):
        return reading.at_home(name)
    if name not in names():
        choices = f"{', '.join(names())}, or FILE.toml"
        raise UserError(f"no recipe {name!r}; the recipes: {choices}")
    return FOLDER / f"{name}.toml"


def _table(file: Path) -> dict[str, Any]:
    """A recipe's file: by dataset and backbone its settings."""
    table = reading.toml_file(file)
    node = {"volatility": (float, str), "class": {str: Any}, "group": {str: Any}}
    try:
        reading.need(table, {str: {str: {"root?": node, "others": node}}})
    except ValueError as error:
        raise UserError(f"{file} is no recipe ({error})") from None
    return table


def override(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    volatility: Volatility | None = None,
    precision: str | None = None,
    **values: Any,
) -> Recipe:
    """`recipe` with the given fields replaced.

    `epochs`, `volatility` and `precision` apply to every node, the first also to joint training.

    None means: keep the recipe's. UserError if the outcome makes no sense.
    """

    def node(row: NodeRecipe) -> NodeRecipe:
        changes: dict[str, Any] = {}
        if volatility is not None:
            changes["volatility"] = volatility
        each = {"epochs": epochs, "precision": precision}
        each = {key: value for key, value in each.items() if value is not None}
        for kind in ("class_phase", "group_phase"):
            changes[kind] = dataclasses.replace(getattr(row, kind), **each)
        return dataclasses.replace(row, **changes)

    given = {key: value for key, value in values.items() if value is not None}
    if epochs is not None and recipe.joint is not None:
        given["joint"] = dataclasses.replace(recipe.joint, epochs=epochs)
    return check(
        dataclasses.replace(recipe, root=node(recipe.root), others=node(recipe.others), **given)
    )


def check(recipe: Recipe) -> Recipe:
    """The recipe itself; UserError naming the first value that makes no sense."""
    _need(recipe.loss in LOSSES, "loss", recipe.loss, LOSSES)
    _need(recipe.protocol in PROTOCOLS, "protocol", recipe.protocol, PROTOCOLS)
    _need(recipe.grouping in GROUPINGS, "grouping", recipe.grouping, GROUPINGS)
    _need(recipe.ties in TIES, "ties", recipe.ties, TIES)
    for fault in recipe.faults:
        _need(fault in FAULTS, "fault", fault, FAULTS)
    _need(recipe.batch_size >= 1, "batch size", recipe.batch_size, "a whole number above 0")
    _need(recipe.eval_batch_size >= 1, "eval batch size", recipe.eval_batch_size, "above 0")
    _need(recipe.limit >= 0, "limit", recipe.limit, "0 (all) or more")
    _need(0 <= recipe.seed < 2**63, "seed", recipe.seed, "a whole number, 0 or more")
    _need(len(recipe.mean) == len(recipe.std), "std", recipe.std, "one value for each of mean's")
    _need(all(std > 0 for std in recipe.std), "std", recipe.std, "above 0")
    for row in (recipe.root, recipe.others):
        number = row.volatility
        good = number == AUTO
        if not isinstance(number, str):
            good = math.isfinite(number) and number > 0
        _need(good, "volatility", number, "a number above 0, or auto")
        single = recipe.backbone == "monolith" and number == AUTO
        _need(not single, "volatility", number, "a number for the backbone monolith")
        _check_phase(recipe, row.class_phase)
        _check_phase(recipe, row.group_phase)
    if recipe.joint is not None:
        _check_phase(recipe, recipe.joint)
        faulty = [fault for fault in recipe.faults if fault in _NOT_JOINT]
        _need(not faulty, "joint with the faults", ", ".join(faulty), "without them")
    _need(recipe.budget >= 0 and math.isfinite(recipe.budget), "budget", recipe.budget, "0 or more")
    _need(not recipe.balanced or recipe.joint is not None, "balanced", True, "off without joint")
    if recipe.exits is not None:
        for what in ("weight", "distil"):
            number = getattr(recipe.exits, what)
            good = math.isfinite(number) and number >= 0
            _need(good, f"exits.{what}", number, "0 or more")
        _need(recipe.loss == "cross_entropy", "loss with exits", recipe.loss, "cross_entropy")
        _need(recipe.baseline is None, "exits", "on", "off for a monolithic baseline")
    if recipe.networks is not None:
        _check_networks(recipe, recipe.networks)
    one = recipe.grouping == "one"
    _need(not one or recipe.exits is not None, "grouping one", "without exits", "with exits")
    return _with_data(recipe)


def _with_data(recipe: Recipe) -> Recipe:
    """The recipe with its dataset as a value."""
    if recipe.data is None:
        return dataclasses.replace(recipe, data=specs.spec(recipe.dataset))
    specs.check(recipe.data)
    _need(recipe.data.name == recipe.dataset, "dataset", recipe.dataset, repr(recipe.data.name))
    return recipe


def _check_networks(recipe: Recipe, designed: Designed) -> None:
    own = recipe.backbone in ("resnet", "monolith")
    _need(own, "networks with the backbone", recipe.backbone, "none, but for resnet and monolith")
    for network in (designed.root, designed.others):
        _need(network.stem >= 0, "stem", network.stem, "0 (none) or more channels")
        _need(bool(network.blocks), "blocks", network.blocks, "one block at least")
        for block in network.blocks:
            _need(block.out >= 1, "out", block.out, "1 channel or more")
            _need(block.stride in (1, 2), "stride", block.stride, "1 or 2")


def _check_phase(recipe: Recipe, phase: Phase) -> None:
    _need(phase.optimizer in OPTIMIZERS, "optimizer", phase.optimizer, OPTIMIZERS)
    _need(phase.schedule in SCHEDULES, "schedule", phase.schedule, SCHEDULES)
    _need(phase.epochs >= 1, "epochs", phase.epochs, "a whole number above 0")
    _need(phase.lr > 0 and math.isfinite(phase.lr), "lr", phase.lr, "above 0")
    for what in ("weight_decay", "momentum", "factor"):
        number = getattr(phase, what)
        _need(number >= 0 and math.isfinite(number), what, number, "0 or more")
    _need(all(0 <= beta < 1 for beta in phase.betas), "betas", phase.betas, "0 to 1")
    _need(phase.period >= 0, "period", phase.period, "0 or more")
    needs_period = phase.schedule == "step" and not phase.milestones
    rising = all(0 < a < b for a, b in pairwise((0.5, *phase.milestones)))
    _need(rising, "milestones", phase.milestones, "rising epochs")
    _need(phase.period > 0 or not needs_period, "period", phase.period, "above 0 for step")
    _need(0 < phase.warmup < 1, "warmup", phase.warmup, "between 0 and 1")
    _need(0 <= phase.label_smoothing < 1, "label smoothing", phase.label_smoothing, "0 to 1")
    _need(phase.precision in PRECISIONS, "precision", phase.precision, PRECISIONS)
    smooth = phase.label_smoothing == 0 or recipe.loss == "cross_entropy"
    _need(smooth, "label smoothing", phase.label_smoothing, "0 for the loss nll")
    accelerated = not phase.nesterov or (phase.optimizer == "sgd" and phase.momentum > 0)
    _need(accelerated, "nesterov", phase.nesterov, "off, or with sgd and momentum")
    # its length is counted in steps, which vary with the fault
    even = phase.schedule != "onecycle" or "subset_batches" not in recipe.faults
    _need(even, "schedule", phase.schedule, "another with the fault subset_batches")


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The form stored in `config.json`: every setting, each dataclass as a table."""
    return dataclasses.asdict(recipe)


def from_json(value: Any) -> Recipe:
    """Read `to_json`'s form. UserError if it is not a recipe."""
    try:
        return check(_build(Recipe, value))
    except OverflowError as error:  # too large for a float
        raise UserError(f"not a recipe: {error}") from error


def _build(kind: type, value: Any, at: str = "") -> Any:
    """A dataclass from plain JSON or TOML: tables become dataclasses, lists tuples.

    UserError naming the setting, and the table that it stands in, `at`.
    """
    where = f" in {at}" if at else ""
    if not isinstance(value, dict):
        what = at or kind.__name__
        raise UserError(f"{what} must be a table of settings, not {value!r:.80}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        like = difflib.get_close_matches(str(unknown[0]), fields, 1)
        hint = f"; did you mean {like[0]}?" if like else f"; it takes {', '.join(fields)}"
        raise UserError(f"unknown setting {unknown[0]!r:.80}{where}{hint}")
    required = [
        name
        for name, each in fields.items()
        if each.default is each.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in value]
    if missing:
        raise UserError(f"{', '.join(missing)} missing{where}")
    return kind(
        **{
            key: _typed(item, fields[key].type, f"{at}.{key}" if at else key)
            for key, item in value.items()
        }
    )


def _typed(value: Any, kind: Any, what: str) -> Any:
    """`value` as a field's type. UserError if it is of another."""
    if kind == Volatility:
        if value == AUTO:
            return value
        kind = float
    if isinstance(kind, UnionType):  # a type or None
        if value is None:
            return None
        kind = get_args(kind)[0]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, what)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{what} must be a list, not {value!r:.80}")
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(value) != len(kinds):
            raise UserError(f"{what} must be a list of {len(kinds)} values, not {value!r:.80}")
        return tuple(_typed(item, each, what) for item, each in zip(value, kinds, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{what} must be {kind.__name__}, not {value!r:.80}")
    return value


def _need(good: bool, what: str, value: Any, wanted: Any) -> None:
    if not good:
        choices = f"one of {', '.join(wanted)}" if isinstance(wanted, tuple) else wanted
        raise UserError(f"{what} is {value!r:.80}; it must be {choices}")


def image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a recipe's root takes.

    They are the dataset's; of a recipe that normalises other channels there are as many as those.
    """
    height, width, channels = recipe.spec.image_shape
    return height, width, len(recipe.mean) or channels
