"""A training as its definition says it, written out plainly: what each node must be given.

Which images make up a batch, what becomes of their pixels, which masks are drawn, at which rate
and by which loss a step is taken, what an epoch reports and which epoch is kept: all of it is
worked out here from the seed, the labels and the recipe, without the trainers of either framework
and without `data.training`. A node's own arithmetic is taken from PyTorch's layers in float64,
which other checks hold against JAX's. `parity.checks.program` compares a framework's run with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import torch
from torch import Tensor, nn

from data.base.streams import integer, stream
from data.images.augmentation import Augmentation, draw
from data.images.datasets import Examples
from data.images.splits import Splits
from data.recipes.networks import Vgg
from data.recipes.recipe import Phase, Recipe
from data.tree import hierarchy
from data.tree.hierarchy import ROOT, Groups, Node, Tree
from parity.checks import pixels
from parity.pairs.passes import gradient_of
from trunk_torch_ref.inference.load import channel_first
from trunk_torch_ref.network.network import channels_last
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training import grow as torch_grow

Weights = dict[str, np.ndarray]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Call:
    """One call of a node.

    `what`: training, validation or ASL; `train`: the node's mode. `x`: what it was given,
    [b, c, h, w]. `keys`: of JAX's dropout, the step's and the node's own. `place`: the node's
    among the nodes of a step.
    """

    where: str
    what: str
    root: bool
    train: bool
    x: np.ndarray
    scores: np.ndarray
    keys: tuple[bytes, bytes] | None = None
    place: int = 0


@dataclass(frozen=True)
class Step:
    """One training step. `key`: JAX's; `targets`: of a tree trained as a whole, labels."""

    where: str
    targets: np.ndarray
    rate: float
    loss: float
    key: bytes | None = None


@dataclass
class Course:
    """What happened in a run, in its order. `rows`: each epoch's reported numbers."""

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    asl: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)


class Masks(Protocol):
    """How a framework draws dropout masks."""

    def prepare(self, module: nn.Module, words: tuple[str, ...]) -> nn.Module:
        """A node's network, ready to be given masks; `words`: its layers in `networks`."""

    def drawn(self, seed: int) -> AbstractContextManager[None]:
        """A pass whose masks follow from `seed`."""

    def step(self, module: nn.Module, number: int, place: int | None, width: int) -> Any:
        """Masks for one node of one step, of `width` rows; its keys."""


class TorchMasks:
    """PyTorch's: one after the other from the global generator, seeded for each pass."""

    def prepare(self, module, words):
        """The network as it is: its own layers draw."""
        return module

    @contextmanager
    def drawn(self, seed):
        """The global generator starts from `seed` inside."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    def step(self, module, number, place, width):
        """Nothing: no keys."""


class _Masked(nn.Module):
    """Dropout with JAX's masks."""

    def __init__(self, rate: float, channels: bool, stream: int):
        super().__init__()
        self.rate, self.channels, self.stream, self.width = rate, channels, stream, 0
        self.key: jax.Array = jax.random.key(0)  # another one for each step

    def forward(self, x: Tensor) -> Tensor:
        """Drop what the key says; padding rows have masks too, which nothing here needs."""
        if not self.training:
            return x
        batch, channels, height, width = x.shape
        shape = (self.width, *((1, 1) if self.channels else (height, width)), channels)
        kept = jax.random.bernoulli(jax.random.fold_in(self.key, self.stream), 1 - self.rate, shape)
        return x * torch.tensor(np.asarray(kept)[:batch].transpose(0, 3, 1, 2)) / (1 - self.rate)


class JaxMasks:
    """JAX's: a key for each pass, from it one for each step, node (of several) and layer."""

    def prepare(self, module, words):
        """The network with other dropout layers; a layer's stream is its place in `words`."""
        streams = [place for place, word in enumerate(words) if word in ("D", "D2")]
        kinds = (nn.Dropout, nn.Dropout2d)
        names = [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
        for name, number in zip(names, streams, strict=True):
            layer = module.get_submodule(name)
            module.set_submodule(name, _Masked(layer.p, isinstance(layer, nn.Dropout2d), number))
        return module

    @contextmanager
    def drawn(self, seed):
        """The key of a pass."""
        self.key = jax.random.key(seed)
        yield

    def step(self, module, number, place, width):
        """The masked layers' keys: (the step's, the node's own)."""
        key = own = jax.random.fold_in(self.key, number)
        if place is not None:
            own = jax.random.fold_in(key, place)
        for layer in module.modules():
            if isinstance(layer, _Masked):
                layer.key, layer.width = own, width
        return as_bytes(key), as_bytes(own)


def as_bytes(key: Any) -> bytes:
    """A JAX key's data."""
    return np.asarray(jax.random.key_data(key)).tobytes()


@dataclass(frozen=True)
class Setting:
    """What a run is made of.

    `groups`: by its number of classes, how a node is split. `start`: by node and phase, the
    state_dict that a network starts with. `together`: siblings train side by side.
    """

    recipe: Recipe
    splits: Splits
    groups: dict[int, Groups]
    start: dict[tuple[str, str], Weights]
    masks: Masks
    together: bool = False
    nudge: bool = False  # the last bit of one weight of each start is changed

    def network(
        self, tree: Tree, node: Node, phase: str, above: dict[Node, NodeNetwork]
    ) -> NodeNetwork:
        """A node's network before it is trained."""
        recipe, name = self.recipe, tree.names[node]
        shape = channel_first(self.splits.train.image_shape)
        module = torch_grow.initial_network(recipe, tree, node, phase, above, shape).double()
        weights = {key: torch.tensor(array) for key, array in self.start[name, phase].items()}
        module.load_state_dict(weights)
        if self.nudge:
            with torch.no_grad():
                first = next(module.parameters()).view(-1)
                first[0] = torch.nextafter(first[0], torch.tensor(torch.inf, dtype=first.dtype))
        network = recipe.network(name)
        assert isinstance(network, Vgg)  # which alone have dropout
        self.masks.prepare(module, network.layers)
        return channels_last(module)


# --- one node


def images_of(
    recipe: Recipe, examples: Examples, rows: np.ndarray, draws: Weights, policy: Augmentation
) -> Tensor:
    """What the root is given for the images at `rows`."""
    mine = {name: values[rows] for name, values in draws.items()}
    given = pixels.prepare(examples.images[rows], mine, policy, recipe.mean, recipe.std)
    x = torch.tensor(np.ascontiguousarray(given.transpose(0, 3, 1, 2)))
    return x.contiguous(memory_format=torch.channels_last)


def loss(scores: Tensor, targets: Tensor, kind: str, smoothing: float) -> Tensor:
    """The loss of each image."""
    if kind == "cross_entropy":
        scores = scores - torch.logsumexp(scores, 1, keepdim=True)
    own = -scores[torch.arange(len(targets)), targets]
    return (1 - smoothing) * own - smoothing * scores.mean(1)


def rates(phase: Phase, steps: int) -> list[float]:
    """The learning rate of each step of epochs of `steps` steps."""
    found, total = [], phase.epochs * steps
    for step in range(total):
        epoch = step // steps
        if phase.schedule == "onecycle":
            low, lowest = phase.lr / 25, phase.lr / 25 / 1e4
            top = phase.warmup * total - 1
            start, end, share = (
                (low, phase.lr, step / top)
                if step <= top
                else (phase.lr, lowest, (step - top) / (total - 1 - top))
            )
            found.append(end + (start - end) * (1 + math.cos(math.pi * share)) / 2)
        elif phase.schedule == "cosine":
            turn = epoch / (phase.period or phase.epochs)
            found.append(phase.lr * (1 + math.cos(math.pi * turn)) / 2)
        elif phase.schedule == "step":
            found.append(phase.lr * phase.factor ** (epoch // phase.period))
        else:
            found.append(phase.lr)
    return found


def optimizer(phase: Phase, parameters: list[Tensor]) -> Callable[[float], None]:
    """A function that takes a step at a learning rate: Adam, or SGD with momentum; coupled L2."""
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    count = 0

    @torch.no_grad()
    def step(rate: float) -> None:
        nonlocal count
        count += 1
        for p, m, v in zip(parameters, first, second, strict=True):
            gradient = gradient_of(p) + phase.weight_decay * p
            if phase.optimizer == "sgd":
                m.mul_(phase.momentum).add_(gradient)
                p.sub_(rate * (gradient + phase.momentum * m if phase.nesterov else m))
                continue
            b1, b2 = phase.betas
            m.mul_(b1).add_((1 - b1) * gradient)
            v.mul_(b2).add_((1 - b2) * gradient**2)
            root = (v / (1 - b2**count)).sqrt() + 1e-8
            p.sub_(rate * m / (1 - b1**count) / root)

    return step


def batches(
    recipe: Recipe, order: np.ndarray, targets: np.ndarray, size: int, *, subset: bool, last: bool
) -> list[np.ndarray]:
    """A node's batches of `size` from `order`; `last`: also a last one that is not full."""
    mine = order if subset else np.array([row for row in order if targets[row] >= 0])
    size = min(size, len(mine))
    rows = [mine[at : at + size] for at in range(0, len(mine), size)]
    if len(rows[-1]) < size and not last:
        rows.pop()
    rows = [np.array([r for r in row if targets[r] >= 0], int) for row in rows]
    return [row for row in rows if len(row)]


class Best:
    """The best epoch so far."""

    def __init__(self, ties: str):
        self.ties, self.accuracy = ties, -1.0
        self.weights: dict[str, Weights] = {}

    def offer(self, accuracy: float, modules: Mapping[str, nn.Module]) -> None:
        """Keep an epoch's weights if they are the best."""
        if accuracy > self.accuracy or (self.ties == "last" and accuracy == self.accuracy):
            self.accuracy = accuracy
            self.weights = {name: state_dict(module) for name, module in modules.items()}


def state_dict(module: nn.Module) -> Weights:
    """A copy of a network's weights."""
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


def load(module: M, weights: Weights) -> M:
    """The network with these weights, in eval mode."""
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return module.eval()


def fit(
    setting: Setting,
    course: Course,
    tree: Tree,
    node: Node,
    phase_name: str,
    above: dict[Node, NodeNetwork],
) -> Iterator[None]:
    """Train a node for a phase; it stops after each epoch's training, before the validation."""
    recipe, name = setting.recipe, tree.names[node]
    row = recipe.root if node == ROOT else recipe.others
    phase = row.class_phase if phase_name == "class" else row.group_phase
    stage = f"{name}/{phase_name}"
    train, check = setting.splits.train, setting.splits.validation
    of = targets_of(tree, node, phase_name)
    targets, check_targets = of[train.labels], of[check.labels]
    subset = "subset_batches" in recipe.faults
    plans = [
        batches(
            recipe,
            stream(recipe.seed, stage, epoch, "order").permutation(len(targets)),
            targets,
            recipe.batch_size,
            subset=subset,
            last=False,
        )
        for epoch in range(1, phase.epochs + 1)
    ]
    checks = batches(
        recipe,
        np.arange(len(check_targets)),
        check_targets,
        recipe.eval_batch_size,
        subset=subset,
        last="drop_last_validation" not in recipe.faults,
    )
    longest, width = max(map(len, plans)), max(len(row) for plan in plans for row in plan)
    plan_rates = rates(phase, longest)
    module = setting.network(tree, node, phase_name, above)
    descend = optimizer(phase, list(module.parameters()))
    best = Best(recipe.ties)
    for epoch in range(1, phase.epochs + 1):
        draws = drawn(recipe.augment, recipe.seed, train, stage, epoch, "train", "augmentation")
        total, right, seen = 0.0, 0, 0
        with setting.masks.drawn(integer(recipe.seed, stage, epoch, "dropout")):
            for number, rows in enumerate(plans[epoch - 1]):
                where = f"{stage}, epoch {epoch}, step {number + 1}"
                x = images_of(recipe, train, rows, draws, recipe.augment)
                x = through(above, node, x)
                rate = plan_rates[(epoch - 1) * longest + number]
                keys = setting.masks.step(module, number, None, width)
                truth = torch.tensor(targets[rows])
                module.train().zero_grad()
                scores = module(x)[1]
                value = loss(scores, truth, recipe.loss, phase.label_smoothing).mean()
                value.backward()
                descend(rate)
                course.calls.append(_call(where, "training", node, x, scores, keys))
                key = keys and keys[0]
                course.steps.append(Step(where, targets[rows], rate, value.item(), key))
                total += value.item() * len(rows)
                right += int((scores.argmax(1) == truth).sum())
                seen += len(rows)
        yield
        scores = evaluate(
            setting,
            course,
            module,
            node,
            above,
            check,
            checks,
            recipe.eval_augment,
            drawn(recipe.eval_augment, recipe.seed, check, stage, epoch, "check", "augmentation"),
            integer(recipe.seed, stage, epoch, "check dropout"),
            "train_mode_validation" in recipe.faults,
            f"{stage}, epoch {epoch}",
            "validation",
        )
        truth = torch.tensor(np.concatenate([check_targets[rows] for rows in checks]))
        accuracy = float((scores.argmax(1) == truth).double().mean())
        best.offer(accuracy, {name: module})
        course.rows.append(
            {
                "node": name,
                "phase": phase_name,
                "epoch": epoch,
                "lr": plan_rates[(epoch - 1) * longest],
                "train_loss": total / seen,
                "train_accuracy": right / seen,
                "validation_accuracy": accuracy,
                "validation_loss": float(loss(scores, truth, "cross_entropy", 0.0).mean()),
            }
        )
    course.weights[name] = best.weights[name]
    above[node] = load(module, best.weights[name])


def _call(where, what, node, x, scores, keys=None, place=0, train=True) -> Call:
    x, scores = x.detach().numpy().copy(), scores.detach().numpy().copy()
    return Call(where, what, node == ROOT, train, x, scores, keys, place)


def targets_of(tree: Tree, node: Node, phase: str) -> np.ndarray:
    """A node's right output for each label, -1 for labels that are not its own."""
    found, rank = [], 0
    for path in tree.paths:
        inside = path[: len(node)] == node
        found.append((rank if phase == "class" else path[len(node)]) if inside else -1)
        rank += inside
    return np.array(found)


def drawn(policy: Augmentation, seed: int, examples: Examples, *names: str | int) -> Weights:
    """The random choices for all images."""
    return draw(policy, stream(seed, *names), len(examples.labels), *examples.images.shape[1:3])


@torch.no_grad()
def through(above: dict[Node, NodeNetwork], node: Node, x: Tensor) -> Tensor:
    """Feature maps of a node's frozen ancestors."""
    for depth in range(len(node)):
        x = above[node[:depth]].eval().features(x)
    return x


@torch.no_grad()
def evaluate(
    setting, course, module, node, above, examples, rows, policy, draws, seed, train, where, what
) -> Tensor:
    """A node's scores over batches, in eval mode, or with the release's fault in train mode."""
    found, width = [], max(map(len, rows))
    with setting.masks.drawn(seed):
        for number, batch in enumerate(rows):
            x = through(above, node, images_of(setting.recipe, examples, batch, draws, policy))
            keys = setting.masks.step(module, number, None, width) if train else None
            scores = module.train(train)(x)[1]
            here = f"{where}, {what} batch {number + 1}"
            course.calls.append(_call(here, what, node, x, scores, keys, train=train))
            found.append(scores)
    return torch.cat(found)


def likelihood(
    setting: Setting, course: Course, tree: Tree, node: Node, above: dict[Node, NodeNetwork]
) -> None:
    """A node's ASL: of its validation images, or with the release's fault of training ones."""
    recipe, name = setting.recipe, tree.names[node]
    faulty = "train_mode_asl" in recipe.faults
    examples = setting.splits.train if faulty else setting.splits.validation
    targets = targets_of(tree, node, "class")[examples.labels]
    order, size, policy = np.arange(len(targets)), recipe.eval_batch_size, Augmentation()
    if faulty:
        order = stream(recipe.seed, name, "asl order").permutation(len(targets))
        size, policy = recipe.batch_size, recipe.augment
    subset = faulty and "subset_batches" in recipe.faults
    rows = batches(recipe, order, targets, size, subset=subset, last=not faulty)
    before = state_dict(above[node])
    scores = evaluate(
        setting,
        course,
        above[node],
        node,
        above,
        examples,
        rows,
        policy,
        drawn(policy, recipe.seed, examples, name, "asl augmentation"),
        integer(recipe.seed, name, "asl dropout"),
        faulty,
        name,
        "ASL",
    )
    load(above[node], before)  # its running statistics may have moved
    truth, softmax = np.concatenate([targets[batch] for batch in rows]), torch.softmax(scores, 1)
    course.asl[name] = np.stack(
        [softmax.numpy()[truth == index].mean(0) for index in range(scores.shape[1])]
    )


# --- a tree


def grown(setting: Setting) -> Course:
    """The course of growing a tree, each node in its turn, or the children of one side by side."""
    course = Course()
    above: dict[Node, NodeNetwork] = {}
    tree = hierarchy.bare(int(setting.splits.train.labels.max()) + 1)
    waiting: list[list[Node]] = [[ROOT]]

    def side_by_side(nodes: list[Node], phase: str) -> None:
        fits = [fit(setting, course, tree, node, phase, above) for node in nodes]
        while fits:
            fits = [each for each in fits if next(each, "done") is None]

    while waiting:
        nodes = waiting.pop(0)
        side_by_side(nodes, "class")
        split = []
        for node in nodes:
            likelihood(setting, course, tree, node, above)
            groups = setting.groups[len(tree.members(node))]
            if 1 < len(groups) < sum(map(len, groups)):
                tree = hierarchy.regroup(tree, node, groups)
                split.append(node)
        side_by_side(split, "group")
        for node in split:
            children = sorted(tree.children(node), key=lambda path: tree.names[path])
            waiting += [children] if setting.together else [[child] for child in children]
    return course


def joint(setting: Setting, tree: Tree) -> Course:
    """The course of training all nodes together, balanced: two images of each class in a batch."""
    recipe, train, phase = setting.recipe, setting.splits.train, setting.recipe.joint
    assert phase is not None
    course = Course()
    modules: dict[Node, NodeNetwork] = {}
    order = tree.nodes
    for node in order:
        modules[node] = setting.network(tree, node, "group", modules)
    by_name = {tree.names[node]: modules[node] for node in order}
    own = {
        node: [label for label, path in enumerate(tree.paths) if path[:-1] == node]
        for node in order
    }
    width = 2 * len(tree.paths)
    if width != recipe.batch_size:
        raise ValueError("a batch holds two images of each class")
    steps = len(train.labels) // width
    all_rates = rates(phase, steps)
    descend = optimizer(phase, [p for module in modules.values() for p in module.parameters()])
    best = Best(recipe.ties)
    for epoch in range(1, phase.epochs + 1):
        columns = {
            node: _balanced(recipe, epoch, tree.names[node], own[node], train.labels, steps)
            for node in order
        }
        draws = drawn(
            recipe.augment, recipe.seed, train, "tree/joint", epoch, "train", "augmentation"
        )
        total, right = 0.0, 0
        with setting.masks.drawn(integer(recipe.seed, "tree/joint", epoch, "dropout")):
            for number in range(steps):
                where = f"tree/joint, epoch {epoch}, step {number + 1}"
                rows = np.concatenate([columns[node][number] for node in order])
                labels = train.labels[rows]
                rate = all_rates[(epoch - 1) * steps + number]
                x = images_of(recipe, train, rows, draws, recipe.augment)
                value, hits = _whole(setting, course, tree, modules, x, labels, number, where)
                for module in modules.values():
                    module.zero_grad()
                value.backward()
                descend(rate)
                keys = course.calls[-1].keys
                step = Step(where, labels, rate, value.item(), keys and keys[0])
                course.steps.append(step)
                total += value.item() * width
                right += int(hits)
        accuracy = _reach(recipe, tree, modules, setting.splits.validation)
        best.offer(accuracy, by_name)
        course.rows.append(
            {
                "node": "tree",
                "phase": "joint",
                "epoch": epoch,
                "lr": all_rates[(epoch - 1) * steps],
                "train_loss": total / (steps * width),
                "train_accuracy": right / (steps * width),
                "validation_accuracy": accuracy,
            }
        )
    course.weights = best.weights
    return course


def _whole(setting, course, tree, modules, x, labels, number, where) -> tuple[Tensor, Tensor]:
    """(loss of a batch, how many images no node on their path gets wrong)."""
    phase = setting.recipe.joint
    total, right = torch.zeros((), dtype=x.dtype), torch.ones(len(labels), dtype=torch.bool)
    features: dict[Node, tuple[np.ndarray, Tensor]] = {}
    for place, node in enumerate(tree.nodes):
        targets = targets_of(tree, node, "group")[labels]
        mine = np.flatnonzero(targets >= 0)
        given = x
        if node != ROOT:
            theirs, above = features[node[:-1]]
            first = list(theirs).index(mine[0])  # a node's rows are neighbours
            given = above[first : first + len(mine)]
        keys = setting.masks.step(modules[node], number, place, len(mine))
        maps, scores = modules[node].train()(given)
        features[node] = mine, maps
        truth = torch.tensor(targets[mine])
        each = loss(scores, truth, setting.recipe.loss, phase.label_smoothing)
        total = total + each.sum() / len(labels)
        right[torch.tensor(mine)] &= scores.argmax(1) == truth
        here = f"{where}, {tree.names[node]}"
        course.calls.append(_call(here, "training", node, given, scores, keys, place))
    return total, right.sum()


def _balanced(recipe, epoch, name, own, labels, steps) -> np.ndarray:
    """A group's images for each step: its classes equally often, their images in turn."""
    generator = stream(recipe.seed, "tree/joint", epoch, "order", name)
    shuffled = [generator.permutation(np.flatnonzero(labels == label)) for label in own]
    if not shuffled:
        return np.zeros((steps, 0), int)
    turns = [
        rows[turn % len(rows)] for turn in range(2 * steps) for rows in shuffled
    ]  # two a class and step
    return generator.permutation(turns).reshape(steps, 2 * len(own))


@torch.no_grad()
def _reach(
    recipe: Recipe, tree: Tree, modules: Mapping[Node, nn.Module], examples: Examples
) -> float:
    """The mean over classes of the share of images that reach their own leaf."""
    x = images_of(recipe, examples, np.arange(len(examples.labels)), {}, Augmentation())
    hits = []
    for image in x.split(1):
        node: Node = ()
        while node in modules:
            image, scores = modules[node].eval()(image)
            node = (*node, int(scores.argmax()))
        hits.append(node)
    shares = []
    for label in np.unique(examples.labels):
        mine = np.flatnonzero(examples.labels == label)
        shares.append(np.mean([hits[row] == tree.paths[label] for row in mine]))
    return float(np.mean(shares))
