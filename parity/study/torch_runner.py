"""PyTorch's side of a coupled training: the reference port's own steps, one at a time."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from data.images.on_disk import Images
from data.images.splits import Splits
from data.recipes.recipe import Recipe
from data.training.batches import Plan
from data.training.epochs import Pass, likelihood_part
from data.training.stages import Stage
from data.tree.hierarchy import Node, Tree, ancestors
from data.tree.selection import HeldOut
from parity.pairs.passes import DTYPES, recorded_masks
from parity.study.step import Arrays, Step
from trunk_torch_ref.inference import route
from trunk_torch_ref.inference.load import channel_first
from trunk_torch_ref.inference.model import Model
from trunk_torch_ref.network import exchange
from trunk_torch_ref.network.network import channels_last, seeded
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training import fit, grow, objective


def images_of(parts: Splits) -> dict[str, torch.Tensor]:
    """The images of each split, for all runners of a study."""
    return {part: grow.as_images(getattr(parts, part).images) for part in vars(parts)}


@dataclass(frozen=True)
class Before:
    """As they were before a step: the state of the generator of masks, the learning rate."""

    generator: torch.Tensor
    rate: float


class TorchRunner:
    """One tree in PyTorch. `begin` a stage, `step` through it, `keep` its best epoch, `end` it."""

    framework = "torch"

    def __init__(self, recipe: Recipe, parts: Splits, dtype: str, images: dict[str, torch.Tensor]):
        self.recipe, self.parts, self.dtype, self.images = recipe, parts, dtype, images
        self.networks: dict[Node, NodeNetwork] = {}

    def initial(self, stage: Stage) -> Arrays:
        """PyTorch's own initial weights of a stage, as a state_dict of the runner's type."""
        return exchange.to_state_dict(self._template(stage).to(DTYPES[self.dtype][1]))

    def begin(self, stage: Stage, state: Arrays, steps: int) -> None:
        """Start a stage from these weights; its longest epoch has `steps` batches."""
        self.stage, self.phase, self.steps = stage, stage.settings(self.recipe), steps
        network = self._template(stage).to(DTYPES[self.dtype][1])
        network = exchange.from_state_dict(network, state)
        self.network = channels_last(network)
        self.optimizer = objective.optimizer(self.phase, self.network.parameters())
        self.scheduler = objective.scheduler(self.phase, self.optimizer, steps)
        self.best = copy.deepcopy(self.network)
        self.source = {part: self._source(part, stage) for part in self.images}

    def epoch(self, run: Pass, width: int) -> None:
        """Start an epoch: dropout draws what the trainer would draw."""
        self.run = run
        with seeded(run.seed):
            self.generator = torch.get_rng_state()

    def step(self, number: int, masks: Arrays | None = None) -> Step:
        """Train on a batch. PyTorch draws its own dropout masks, the same in every run.

        Without `masks` they are kept, in `masks` by layer name, for the others.
        """
        x, targets = self.inputs(number), self.targets(number)
        self.before = Before(self.generator, self.optimizer.param_groups[0]["lr"])
        given: Arrays = {}
        record: AbstractContextManager[Arrays] = (
            recorded_masks(self.network) if masks is None else nullcontext(given)
        )
        with torch.random.fork_rng([]), record as kept:
            torch.set_rng_state(self.generator)
            loss, _ = fit.train_step(
                self.network,
                self.optimizer,
                x,
                targets,
                self.recipe.loss,
                self.phase.label_smoothing,
            )
            self.generator = torch.get_rng_state()
        self.masks = dict(kept)
        if objective.each_step(self.phase):
            self.scheduler.step()
        gradients = {
            key: (torch.zeros_like(p) if p.grad is None else p.grad).numpy().copy()
            for key, p in self.network.named_parameters()
        }
        return Step(loss.item(), gradients, exchange.to_state_dict(self.network))

    def inputs(self, number: int) -> torch.Tensor:
        """What the node is given in a batch, [b, c, h, w]."""
        dtype = DTYPES[self.dtype][1]
        source, run = self.source["train"], self.run
        rows = self.rows(number).numpy()
        return fit.inputs(self.recipe, source, run.policy, rows, run.draws, dtype)

    def targets(self, number: int) -> torch.Tensor:
        """The node's output for each image of a batch, int64 [b]."""
        return self.source["train"].targets[self.rows(number)]

    def restore(self, state: Arrays) -> None:
        """Overwrite the network's weights and statistics."""
        exchange.from_state_dict(self.network, state)

    def update(self, state: Arrays, gradients: Arrays) -> Arrays:
        """The state_dict after the optimiser alone was given these gradients in that state."""
        self.restore(state)
        for key, parameter in self.network.named_parameters():
            parameter.grad = torch.tensor(gradients[key], dtype=parameter.dtype)
        self.optimizer.step()
        return exchange.to_state_dict(self.network)

    def converted(self, node: Node, state: Arrays) -> NodeNetwork:
        """A finished node's network with these weights, of their type."""
        network = copy.deepcopy(self.networks[node])
        dtype = next(torch.tensor(value).dtype for value in state.values())
        return exchange.from_state_dict(network.to(dtype), state)

    def after_epoch(self, improved: bool) -> None:
        """Keep this epoch's network if it is the best; then the next learning rate."""
        if improved:
            self.best = copy.deepcopy(self.network)
        if not objective.each_step(self.phase):
            self.scheduler.step()

    def scores(self, part: str, run: Pass) -> tuple[np.ndarray, np.ndarray]:
        """(scores, targets) of the node as it stands, over its images of a split."""
        return fit.evaluate(self.recipe, self.network, self.source[part], run)

    def end(self) -> None:
        """The stage is over: its best epoch is the node's network."""
        self.networks[self.stage.node] = self.best.eval()

    def likelihood(self, stage: Stage) -> np.ndarray:
        """The node's ASL."""
        network = self.networks[stage.node]
        source = self._source(likelihood_part(self.recipe), stage)
        return grow.average_likelihood(self.recipe, network, source, stage.name)

    def held_out(self, stage: Stage) -> HeldOut:
        """What the node says of its validation images."""
        source = self._source("validation", stage)
        return grow.held_out(self.recipe, self.networks[stage.node], source, stage.name)

    def multiply_adds(self, tree: Tree, node: Node) -> int:
        """Of one image in a node's network of a tree that is thought of."""
        shape = channel_first(self.parts.train.image_shape)
        return grow.multiply_adds(self.recipe, tree, node, self.networks, shape)

    def predict(self, tree: Tree, images: Images) -> np.ndarray:
        """The labels that the whole tree predicts."""
        return route.predict(Model(self.recipe, tree, self.networks), images).labels

    def weights(self, node: Node) -> Arrays:
        """A finished node's state_dict."""
        return exchange.to_state_dict(self.networks[node])

    def module(self, state: Arrays) -> NodeNetwork:
        """A network of the current stage with these weights."""
        return exchange.from_state_dict(copy.deepcopy(self.network), state)

    def rows(self, number: int) -> torch.Tensor:
        """Which images a batch is made of, int64 [b]."""
        batches: Plan = self.run.batches
        return torch.tensor(batches.index[number][batches.valid[number]]).long()

    def _template(self, stage: Stage) -> NodeNetwork:
        shape = channel_first(self.parts.train.image_shape)
        return grow.initial_network(
            self.recipe, stage.tree, stage.node, stage.phase, self.networks, shape
        )

    def _source(self, part: str, stage: Stage) -> fit.Source:
        targets = torch.tensor(stage.targets(getattr(self.parts, part).labels)).long()
        above = tuple(self.networks[node] for node in ancestors(stage.node))
        return fit.Source(self.images[part], targets, above)
