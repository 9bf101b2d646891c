"""`python -m parity.check --self-test`: plant faults one at a time, and see each one caught.

A check that cannot fail proves nothing. Each fault here is a plausible mistake in one of the two
ports, or in the data that they share; it is planted by replacing one function, or a few words of
one, and the checks that should notice are run. The same checks are first run without a fault,
where they must pass.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax

from data.base import tables
from data.base.errors import UserError
from data.base.progress import watching, working
from data.images.datasets import load
from data.recipes import recipe as recipes
from data.training import epochs
from data.training import joint as joint_batches
from data.tree import hierarchy, metrics
from parity.checks import optimisers, processes, program, training
from parity.checks.nodes import check_in_float32, check_in_float64
from parity.checks.routing import check_routing
from parity.checks.stopping import check_exits
from parity.checks.tolerance import Check
from parity.pairs import passes
from parity.pairs.conversion import to_torch
from parity.pairs.families import FAMILIES, Family, build
from trunk_jax.inference import route
from trunk_jax.inference.model import Model
from trunk_jax.layers import basic as layers
from trunk_jax.layers import conv
from trunk_jax.layers.conv import general
from trunk_jax.network import augment, network
from trunk_jax.nodes import mobilenet
from trunk_jax.training import fit, grow, joint, objective, siblings
from trunk_torch_ref.inference.model import Model as TorchModel
from trunk_torch_ref.network import augment as torch_augment
from trunk_torch_ref.training import fit as torch_fit
from trunk_torch_ref.training import grow as torch_grow
from trunk_torch_ref.training import joint as torch_joint
from trunk_torch_ref.training import objective as torch_objective

SEED = 0


def _family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


# What is run to catch a fault.


def mobilenet_node() -> list[Check]:
    """A root with a stride-2 stem, depthwise convolutions, ReLU6 and log-softmax."""
    return check_in_float64(_family("digits mobilenet root"), SEED)


def mobilenet_child() -> list[Check]:
    """A child, whose blocks have live shortcuts."""
    return check_in_float64(_family("digits mobilenet sg1"), SEED)


def vgg_node() -> list[Check]:
    """A root with biased convolutions, max pool, dropout, flatten and Linear."""
    return check_in_float64(_family("digits vgg root"), SEED)


def vgg_node_in_float32() -> list[Check]:
    """The same, forward in float32."""
    return check_in_float32(_family("digits vgg root"), SEED)


def published_phases() -> list[Check]:
    """The published phases of each optimiser and schedule."""
    wanted = ("svhn mobilenet", "cifar10 mobilenet", "cifar10 vgg")
    return [
        check
        for phase, name in optimisers.phases().items()
        if name.startswith("published") and any(part in name for part in wanted)
        for check in optimisers.check_phase(name, phase, SEED)
    ]


def likelihood() -> list[Check]:
    """ASL and groups."""
    return training.check_likelihood(SEED)


def small_tree() -> list[Check]:
    """A tree grown with all the release's faults: subsets as batches, so batches are padded."""
    return training.check_tree(training.small_recipe(faults=True), "digits tree")


def routing() -> list[Check]:
    """An untrained tree of two like siblings, on digits."""
    recipe = recipes.load("corrected", "digits", "mobilenet")
    tree = hierarchy.regroup(hierarchy.bare(10), hierarchy.ROOT, ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))
    ours: dict = {}
    theirs: dict = {}
    for node in tree.nodes:
        name = tree.names[node]
        shape = (8, 8, 1) if node == hierarchy.ROOT else (4, 4, 24)
        family = Family("digits", "mobilenet", name, shape, tree.width(node))
        both = build(family, SEED + len(ours))
        ours[node] = both.jax
        template = torch_grow.initial_network(recipe, tree, node, "group", theirs, (1, 8, 8))
        theirs[node] = to_torch(both.jax, template)
    test = load("digits").test
    return check_routing(
        "digits, untrained tree",
        Model(recipe, tree, ours),
        TorchModel(recipe, tree, theirs),
        test.images,
        test.labels,
    )


def early_stopping() -> list[Check]:
    """An untrained tree with exits, on digits."""
    return check_exits(SEED)


def one_node_in_jax() -> list[Check]:
    """The program that trains one node."""
    return program.check_program("jax", "flat")


def siblings_in_jax() -> list[Check]:
    """The program that grows a tree, siblings side by side."""
    return program.check_program("jax", "grown")


def faulty_in_jax() -> list[Check]:
    """The program with the release's faults: padded batches, augmented validation images."""
    return program.check_program("jax", "faulty")


def joint_in_jax() -> list[Check]:
    """The program that trains a tree as a whole."""
    return program.check_program("jax", "joint")


def one_node_in_torch() -> list[Check]:
    """PyTorch's program that trains one node."""
    return program.check_program("torch", "flat")


def joint_in_torch() -> list[Check]:
    """PyTorch's program that trains a tree as a whole."""
    return program.check_program("torch", "joint")


# How a fault is planted.


@contextmanager
def _replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    with patch.object(target, name, value):
        yield


def _replace(target: Any, name: str, value: Any) -> Callable[[], Any]:
    return lambda: _replaced(target, name, value)


@contextmanager
def _other_words(module: Any, name: str, old: str, new: str) -> Iterator[None]:
    function = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    if source.count(old) != 1:
        raise ValueError(f"{module.__name__}.{name} no longer has {old!r} once: plant it anew")
    made: dict[str, Any] = {}
    changed = compile(source.replace(old, new), f"<{name} with a fault>", "exec")
    exec(changed, vars(module), made)  # noqa: S102, the source is our own
    with ExitStack() as stack:
        for user in _users(function, name):
            stack.enter_context(patch.object(user, name, made[name]))
        yield


def _users(function: Any, name: str) -> list[Any]:
    """Every module of ours that has the function under its own name: imports make copies."""
    ours = ("data.", "trunk_jax.", "trunk_torch_ref.")
    modules = [m for key, m in list(sys.modules.items()) if key.startswith(ours)]
    return [module for module in modules if vars(module).get(name) is function]


def _words(module: Any, name: str, old: str, new: str) -> Callable[[], Any]:
    """A few words of a function changed, wherever it is used."""
    return lambda: _other_words(module, name, old, new)


def _layout(layer: type[layers.Layer], key: str, axes: tuple[int, ...]) -> Callable[[], Any]:
    ours, _ = layer.LAYOUT[key]
    return _replace(layer, "LAYOUT", layer.LAYOUT | {key: (ours, axes)})


def _default(layer: type, **settings: float) -> Callable[[], Any]:
    """The layer's constructor with other defaults."""
    init = vars(layer)["__init__"]

    def changed(self, *args, **kwargs):
        init(self, *args, **(settings | kwargs))

    return _replace(layer, "__init__", changed)


def _batch_norm(
    *, outside: bool = False, biased: bool = False, ignore_valid: bool = False
) -> Callable[[], Any]:
    def apply(self, x, mode):
        if mode.train:
            mean, var, n = _moments(x, None if ignore_valid else mode.valid)
            m = self.momentum
            stored = var if biased else var * (n / (n - 1))
            self.mean[...] = (1 - m) * self.mean[...] + m * mean
            self.var[...] = (1 - m) * self.var[...] + m * stored
            self.count[...] = self.count[...] + 1
        else:
            mean, var = self.mean[...], self.var[...]
        root = jnp.sqrt(var) + self.eps if outside else jnp.sqrt(var + self.eps)
        return (x - mean) / root * self.scale[...] + self.bias[...]

    return _replace(layers.BatchNorm, "apply", apply)


def _moments(x, valid):
    """Mean and biased variance of each channel over the valid images, and how many values."""
    weight = jnp.ones(x.shape[0], x.dtype) if valid is None else valid.astype(x.dtype)
    weight = weight[:, None, None, None]
    n = weight.sum() * x.shape[1] * x.shape[2]
    mean = (x * weight).sum((0, 1, 2)) / n
    return mean, (jnp.square(x - mean) * weight).sum((0, 1, 2)) / n, n


def _same_padding(x, kernel, *, stride=1, padding=0, groups=1):
    if stride == 1:
        return conv.conv(x, kernel, stride=stride, padding=padding, groups=groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _rounded(x, kernel, stride, padding, groups=1):
    """Products as if in bfloat16, in float32 alone: what a fast mode left on would do."""
    if x.dtype == jnp.float32:
        x, kernel = (lax.reduce_precision(a, 8, 7) for a in (x, kernel))
    return general(x, kernel, stride, padding, groups)


def _dropout(*, always: bool = False, unscaled: bool = False) -> Callable[[], Any]:
    apply = layers.Dropout.apply

    def changed(self, x, mode):
        if always and not mode.train:
            return x.at[..., ::2].set(0) / (1 - self.rate)
        y = apply(self, x, mode)
        return y * (1 - self.rate) if unscaled and mode.train else y

    return _replace(layers.Dropout, "apply", changed)


def _optimizer(change: Callable[[Any], Any]) -> Callable[[], Any]:
    return _replace(objective, "optimizer", change)


def _decoupled(phase):
    base = (
        objective.adam(*phase.betas) if phase.optimizer == "adam" else optax.trace(phase.momentum)
    )
    return optax.chain(base, optax.add_decayed_weights(phase.weight_decay))


def _with_adam(transform: Callable[..., Any]) -> Callable[[Any], Any]:
    def optimizer(phase):
        decay = optax.add_decayed_weights(phase.weight_decay)
        if phase.optimizer == "adam":
            return optax.chain(decay, transform(*phase.betas))
        return optax.chain(decay, optax.trace(phase.momentum))

    return optimizer


def _dampened(phase):
    decay = optax.add_decayed_weights(phase.weight_decay)
    if phase.optimizer == "adam":
        return optax.chain(decay, objective.adam(*phase.betas))
    return optax.chain(decay, optax.ema(phase.momentum, debias=False))


def _rates(change: Callable[[Any, np.ndarray], np.ndarray]) -> Callable[[], Any]:
    """Another rate in each epoch; `published_phases` has none that is stepped once a batch."""
    original = objective.learning_rates

    def changed(phase, steps=1):
        return change(phase, original(phase)).repeat(steps)

    return _replace(objective, "learning_rates", changed)


def _stopped(phase, rates):
    if phase.schedule == "cosine" and 0 < phase.period < phase.epochs:
        rates = rates.copy()
        rates[phase.period :] = 0
    return rates


def _early_step(phase, rates):
    return np.append(rates[1:], rates[-1]) if phase.schedule == "step" else rates


def _off_by_a_millionth(value, module):
    """The converter, but for one weight."""
    module = to_torch(value, module)
    weight = next(p for p in module.parameters() if p.ndim == 4)
    with torch.no_grad():
        weight.view(-1)[0] *= 1 + 1e-6
    return module


def _ancestors_in_train_mode(value, x):
    return network.merge(value).features(x, layers.Mode(train=True))


class _NoSoftmax:
    """`data.tree.metrics` but for its softmax."""

    def __getattr__(self, name: str) -> Any:
        return getattr(metrics, name)

    @staticmethod
    def softmax(scores: np.ndarray) -> np.ndarray:
        """The softmax over images instead of classes."""
        return metrics.softmax(scores.T).T


@dataclass(frozen=True)
class Fault:
    """`plant` makes a context in which the fault is there; `catch` runs what should notice."""

    name: str
    plant: Callable[[], Any]
    catch: Callable[[], list[Check]]


def faults() -> list[Fault]:
    """All of them."""
    residual = mobilenet.InvertedResidual
    return [
        Fault("kernel axes swapped", _layout(layers.Conv, "weight", (3, 2, 1, 0)), vgg_node),
        Fault("Linear transposed", _layout(layers.Linear, "weight", (0, 1)), vgg_node),
        Fault(
            "flatten in row, column, channel order",
            _replace(layers.Flatten, "apply", lambda self, x, mode: x.reshape(x.shape[0], -1)),
            vgg_node,
        ),
        Fault("batch-norm eps 1e-3", _default(layers.BatchNorm, eps=1e-3), mobilenet_node),
        Fault("batch-norm eps outside the root", _batch_norm(outside=True), mobilenet_node),
        Fault(
            "batch-norm momentum read the other way",
            _default(layers.BatchNorm, momentum=0.9),
            mobilenet_node,
        ),
        Fault("biased running variance", _batch_norm(biased=True), mobilenet_node),
        Fault("padding rows counted by batch norm", _batch_norm(ignore_valid=True), small_tree),
        Fault(
            "missing ReLU6 cap",
            _replace(layers.Relu6, "apply", lambda self, x, mode: jax.nn.relu(x)),
            mobilenet_node,
        ),
        Fault(
            '"SAME" padding at stride 2', _replace(layers, "conv", _same_padding), mobilenet_node
        ),
        Fault(
            "shortcut left out",
            _replace(residual, "__call__", lambda self, x, mode: self.inverted_residual(x, mode)),
            mobilenet_child,
        ),
        Fault("convolution in bfloat16", _replace(conv, "general", _rounded), vgg_node_in_float32),
        Fault("dropout left on in eval mode", _dropout(always=True), vgg_node),
        Fault("dropout not scaled", _dropout(unscaled=True), vgg_node),
        Fault(
            "softmax over the wrong axis",
            _replace(
                layers.LogSoftmax, "apply", lambda self, x, mode: jax.nn.log_softmax(x, axis=1)
            ),
            mobilenet_node,
        ),
        Fault(
            "one weight off by one part in a million",
            _replace(passes, "to_torch", _off_by_a_millionth),
            mobilenet_child,
        ),
        Fault("decoupled weight decay", _optimizer(_decoupled), published_phases),
        Fault(
            "Adam's eps inside the root",
            _optimizer(
                _with_adam(lambda b1, b2: optax.scale_by_adam(b1, b2, eps=0.0, eps_root=1e-8))
            ),
            published_phases,
        ),
        Fault(
            "Adam's bias correction in float32",
            _optimizer(_with_adam(optax.scale_by_adam)),
            published_phases,
        ),
        Fault("momentum dampened", _optimizer(_dampened), published_phases),
        Fault("cosine stopped at T_max", _rates(_stopped), published_phases),
        Fault("learning-rate step an epoch early", _rates(_early_step), published_phases),
        Fault("softmax of ASL over images", _replace(grow, "metrics", _NoSoftmax()), likelihood),
        Fault(
            "children in the wrong order",
            _words(route, "walk", "branches[0], ", "branches[0] if node else 1 - branches[0], "),
            routing,
        ),
        Fault(
            "the sure go on, the unsure stop",
            _words(route, "_visit", "shares.max(1) < threshold", "shares.max(1) >= threshold"),
            early_stopping,
        ),
        Fault(
            "a node's temperature left out",
            _words(route, "_visit", "scores / temperature", "scores"),
            early_stopping,
        ),
        Fault(
            "the second branch is the least probable",
            _words(route, "_visit", "rest.argmax(1)", "branches.argmin(1)"),
            early_stopping,
        ),
        Fault(
            "ancestors in train mode",
            _replace(fit, "features", _ancestors_in_train_mode),
            small_tree,
        ),
        *_of_programs(),
    ]


def _of_programs() -> list[Fault]:
    """Faults of the programs around the networks, each in the code that it is a fault of."""
    plain, no_recipe = "(), ()", "__import__('dataclasses').replace(recipe, mean=(), std=())"
    mean_of = "inputs - jnp.array(mean", "inputs - jnp.array(std"
    torch_mean_of = "inputs - centre[", "inputs - scale["
    images = "training images not normalised"
    by_place = "augmentation drawn by place in the batch"
    balance, nesterov = "class balance ignored", "Nesterov ignored"
    return [
        Fault(
            f"{images}, JAX's fit",
            _words(
                fit,
                "train_steps",
                "x = inputs(program, ",
                "x = inputs(replace(program, mean=(), std=()), ",
            ),
            one_node_in_jax,
        ),
        Fault(
            f"{images}, JAX's joint training",
            _words(
                joint,
                "train_steps",
                "x = inputs(program, ",
                "x = inputs(replace(program, mean=(), std=()), ",
            ),
            joint_in_jax,
        ),
        Fault(
            f"{images}, PyTorch's fit",
            _words(torch_fit, "_train_epoch", "x = inputs(recipe, ", f"x = inputs({no_recipe}, "),
            one_node_in_torch,
        ),
        Fault(
            f"{images}, PyTorch's joint training",
            _words(torch_joint, "_train_epoch", "recipe.mean, recipe.std", plain),
            joint_in_torch,
        ),
        Fault("std used for mean, JAX", _words(augment, "prepare", *mean_of), one_node_in_jax),
        Fault(
            "std used for mean, PyTorch",
            _words(torch_augment, "prepare", *torch_mean_of),
            one_node_in_torch,
        ),
        Fault(
            f"{by_place}, JAX's fit",
            _words(fit, "inputs", "values[index]", "values[: len(index)]"),
            one_node_in_jax,
        ),
        Fault(
            f"{by_place}, JAX's joint training",
            _words(
                joint,
                "train_steps",
                "rows, steps.draws",
                "rows, {k: v.at[rows].set(v[: len(rows)]) for k, v in steps.draws.items()}",
            ),
            joint_in_jax,
        ),
        Fault(
            f"{by_place}, PyTorch's fit",
            _words(torch_fit, "inputs", "values[index]", "values[: len(index)]"),
            one_node_in_torch,
        ),
        Fault(
            f"{by_place}, PyTorch's joint training",
            _words(torch_joint, "_train_epoch", "values[index]", "values[: len(index)]"),
            joint_in_torch,
        ),
        Fault(
            "the same augmentation in every epoch",
            _words(epochs, "training", 'stage, epoch, "train"', 'stage, "train"'),
            one_node_in_torch,
        ),
        Fault(
            "training loss that counts padding rows",
            _words(fit, "train_steps", "real.sum().astype(value.dtype)", "real.size"),
            faulty_in_jax,
        ),
        Fault(
            "validation inputs kept by the training policy",
            _words(
                fit,
                "fitting",
                "cache(validation, recipe.eval_augment)",
                "cache(validation, recipe.augment)",
            ),
            faulty_in_jax,
        ),
        Fault(
            "siblings with the first one's learning rates",
            _words(siblings, "_together", "jnp.asarray(e.rates, ", "jnp.asarray(first.rates, "),
            siblings_in_jax,
        ),
        Fault(
            f"{balance} in joint training's shares, JAX",
            _words(joint, "fit_tree", "recipe.batch_size, recipe.balanced", "recipe.batch_size"),
            joint_in_jax,
        ),
        Fault(
            f"{balance} when JAX chooses an epoch",
            _words(joint, "_accuracy", ", model.recipe.balanced", ""),
            joint_in_jax,
        ),
        Fault(
            f"{balance} in joint training's shares, PyTorch",
            _words(
                torch_joint, "fit_tree", "recipe.batch_size, recipe.balanced", "recipe.batch_size"
            ),
            joint_in_torch,
        ),
        Fault(
            f"{balance} when PyTorch chooses an epoch",
            _words(torch_joint, "_accuracy", ", model.recipe.balanced", ""),
            joint_in_torch,
        ),
        Fault(
            f"{balance} in joint training's batches",
            _words(joint_batches, "batches", "if recipe.balanced:", "if False:"),
            joint_in_torch,
        ),
        Fault(
            "the same dropout key for every node",
            _words(joint, "objective", "jax.random.fold_in(mode.key, place)", "mode.key"),
            joint_in_jax,
        ),
        Fault(
            "dropout keys by the place in the batch",
            _words(
                joint, "objective", "fold_in(mode.key, place)", "fold_in(mode.key, share.start)"
            ),
            joint_in_jax,
        ),
        Fault(
            "PyTorch's joint training in eval mode",
            _words(torch_joint, "train_step", "state.networks.train()", "state.networks.eval()"),
            joint_in_torch,
        ),
        Fault(
            "label smoothing left out of JAX's joint training",
            _words(joint, "objective", ", program.phase.label_smoothing", ""),
            joint_in_jax,
        ),
        Fault(
            "label smoothing left out of PyTorch's joint training",
            _words(torch_joint, "objective", ", phase.label_smoothing", ""),
            joint_in_torch,
        ),
        Fault(
            f"{nesterov}, JAX",
            _words(objective, "optimizer", "=phase.nesterov", "=False"),
            one_node_in_jax,
        ),
        Fault(
            f"{nesterov}, PyTorch",
            _words(torch_objective, "optimizer", "=phase.nesterov", "=False"),
            one_node_in_torch,
        ),
    ]


def caught_by(name: str | None, catch: Callable[[], list[Check]] | None = None) -> str | None:
    """The first check that fails with a fault planted, or without any when `name` is None."""
    jax.clear_caches()
    with ExitStack() as stack:
        if name is not None:
            fault = next(fault for fault in faults() if fault.name == name)
            stack.enter_context(fault.plant())
            catch = fault.catch
        assert catch is not None  # one of the two is given
        try:
            failed = [c for c in catch() if not c.passed]
        except UserError as error:
            return f"refused: {error}"
        finally:
            from trunk_jax.machine import memory

            memory.forget()
            jax.clear_caches()
    return f"{failed[0].name}: {failed[0].what} ({failed[0].dtype})" if failed else None


_Work = tuple[str | None, Callable[[], list[Check]] | None]  # what `caught_by` is given


def _caught_by(work: _Work) -> str | None:
    return caught_by(*work)


def self_test(jobs: int) -> list[dict[str, str | None]]:
    """Each fault's name and what caught it; a check that fails without a fault counts as none.

    So does one that breaks: it names no tensor, and would break the check of a right network too.
    """
    planted = faults()
    catches = sorted({fault.catch for fault in planted}, key=lambda catch: catch.__name__)
    work: list[_Work] = [(None, catch) for catch in catches]
    work += [(fault.name, None) for fault in planted]
    found: dict[int, str | None] = {}

    def state() -> str:
        return f"planting faults: {len(found)} of {len(work)} done"

    with working("planting faults one at a time"), watching(state):
        for place, by in processes.outcomes(_caught_by, work, jobs):
            name, catch = work[place]
            if isinstance(by, processes.Broken):
                what = name if catch is None else f"{catch.__name__}, no fault"
                print(f"{what}: the check broke: {by.why}")
                by = None if name else by.why
            found[place] = by
    broken = {catch: found[place] for place, catch in enumerate(catches)}
    rows = [
        {"name": fault.name, "caught_by": None if broken[fault.catch] else found[place]}
        for place, fault in enumerate(planted, len(catches))
    ]
    for catch, failure in broken.items():
        if failure:
            print(f"{catch.__name__} fails without any fault: {failure}")
    cells = [[str(row["name"]), row["caught_by"] or "NOT CAUGHT"] for row in rows]
    missed = [place for place, row in enumerate(rows) if not row["caught_by"]]
    tables.print_table("", ("fault", "caught by"), cells, left=(0, 1), marked=missed)
    print(f"{len(rows) - len(missed)} of {len(rows)} faults caught")
    return rows


__all__ = ["Fault", "faults", "self_test"]
