"""A tree with its networks as one value, and the decisions that it takes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data.base.errors import UserError
from data.images.fitting import Options
from data.images.on_disk import Images
from data.images.specs import Spec
from data.inference.inputs import pixels_of
from data.inference.stopping import Stopping
from data.recipes.recipe import Recipe, image_shape
from data.tree import drawing
from data.tree.hierarchy import ROOT, Node, Tree


@dataclass(frozen=True)
class Visit:
    """Some images at one node.

    Attributes:
      node: where.
      places: which images, as positions in the array that was asked about.
      chosen: the branch that each takes: an output, or in a tree with exits the child that it goes
        on to; there -1 where it goes no further.
      likelihoods: the logarithm of each output's probability, at this node.
      second: the branch that each takes besides, -1 for none; None: none does.

    """

    node: Node
    places: Int[np.ndarray, " k"]
    chosen: Int[np.ndarray, " k"]
    likelihoods: Float[np.ndarray, "k outputs"]
    second: Int[np.ndarray, " k"] | None = None

    @property
    def taken(self) -> Iterator[tuple[Node, Bool[np.ndarray, " k"]]]:
        """Where images go on to: a child or leaf, and which of these images."""
        for branches in (self.chosen, self.second):
            if branches is not None:
                for branch in np.unique(branches[branches >= 0]):
                    yield (*self.node, int(branch)), branches == branch


@dataclass(frozen=True)
class Predictions:
    """What a tree predicts.

    Attributes:
      labels: the predicted class.
      confidence: its probability; the product of those on its path.
      met: whether the image was computed by each of `tree.nodes`.

    """

    labels: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    met: Bool[np.ndarray, "n nodes"]


def paths_met(tree: Tree, met: Bool[np.ndarray, "n nodes"]) -> Int[np.ndarray, "n depth"]:
    """In a tree with exits, the branch that each image went on to at each depth, -1 where to none.

    `met`: as in `Predictions`, of images that visit one branch a node.
    """
    nodes = tree.nodes
    padded = np.array([[*node, *[-1] * (tree.depth - len(node))] for node in nodes])
    length = np.array([len(node) for node in nodes])
    result: np.ndarray = padded[np.where(met, length, -1).argmax(1)]
    return result


def predictions(tree: Tree, visits: Iterable[Visit], count: int) -> Predictions:
    """What visits of `count` images come to; of an image, a node's comes before its children's."""
    met = np.zeros((count, len(tree.nodes)), bool)
    number = {node: place for place, node in enumerate(tree.nodes)}

    def noted() -> Iterator[Visit]:
        for visit in visits:
            met[visit.places, number[visit.node]] = True
            yield visit

    if tree.exits:
        shares = distribution(tree, noted(), count)
        labels = shares.argmax(1).astype(np.int32)
        return Predictions(labels, shares[np.arange(count), labels], met)
    labels, likelihood = _best_leaves(tree, noted(), count)
    return Predictions(labels, np.exp(likelihood), met)


def _best_leaves(
    tree: Tree, visits: Iterable[Visit], count: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Of the leaves that each image came to the most probable: its label, and its logarithm."""
    leaves = {path: label for label, path in enumerate(tree.paths)}
    labels, best = np.full(count, -1, np.int32), np.zeros(count)
    reached = {ROOT: np.zeros(count)}
    for visit in visits:
        came = reached[visit.node][visit.places]
        for branch, mine in visit.taken:
            places = visit.places[mine]
            likelihood = came[mine] + visit.likelihoods[mine, branch[-1]]
            if branch in leaves:
                better = (labels[places] < 0) | (likelihood > best[places])
                labels[places[better]] = leaves[branch]
                best[places[better]] = likelihood[better]
            else:
                reached.setdefault(branch, np.zeros(count))[places] = likelihood
    return labels, best


def distribution(tree: Tree, visits: Iterable[Visit], count: int) -> Float[np.ndarray, "n classes"]:
    """The probability of each class after visits of a tree with exits, float64; rows sum to 1.

    At a child that was visited its classes share, as it says, the probability that they had
    together; the others keep theirs.
    """
    shares = np.zeros((count, len(tree.paths)))
    reached = {ROOT: np.ones(count)}
    for visit in visits:
        mine = np.exp(visit.likelihoods.astype(np.float64))
        mine *= (reached[visit.node][visit.places] / mine.sum(1))[:, None]
        shares[np.ix_(visit.places, np.array(tree.members(visit.node)))] = mine
        for child, rows in visit.taken:
            places = visit.places[rows]
            below = shares[np.ix_(places, np.array(tree.members(child)))].sum(1)
            reached.setdefault(child, np.zeros(count))[places] = below
    return shares


@dataclass(frozen=True)
class Answer:
    """What a model says of images; image `i` is row `i`.

    Attributes:
      labels: the predicted class, int32.
      names: its name.
      probabilities: of each class, by label. A class outside the last node that the image visited
        gets 0, so a row sums to the probability of having come there (1 for the root). An output
        of that node that leads on to another, which the image did not take, shares its probability
        evenly among its classes. In a tree with exits a class has what the last node that knows it
        says, and a row sums to 1. The predicted class has the most.
      paths: the names of the nodes that each image met, a tuple an image.

    Example (with `model = trunk_jax.load("cifar10")`):
      >>> answer = model.predict(np.zeros((2, 32, 32, 3), np.uint8))
      >>> bool((answer.probabilities.argmax(1) == answer.labels).all())
      True
      >>> bool((answer.confidence <= answer.probabilities.sum(1)).all())
      True

    """

    labels: Int[np.ndarray, " n"]
    names: np.ndarray
    probabilities: Float[np.ndarray, "n classes"]
    paths: np.ndarray

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """The probability of the predicted class: the product of those on the image's path."""
        return self.probabilities[np.arange(len(self)), self.labels]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __str__(self) -> str:
        """A line an image."""
        rows = zip(self.names, self.confidence, self.paths, strict=True)
        return "\n".join(f"{name} {100 * p:.1f} % ({' > '.join(path)})" for name, p, path in rows)


@dataclass(frozen=True, repr=False)
class Model:
    """A tree and the network of each of its nodes; each framework has its own kind of it.

    Attributes:
      recipe: what it was trained by; its normalisation is applied to every image.
      tree: who is whose child, and where each class is decided.
      networks: by node.
      folder: the run folder that it was read from, if it was.
      stopping: where images stop before the end, or visit two branches.

    """

    recipe: Recipe
    tree: Tree
    networks: Mapping[Node, Any]
    folder: Path | None = None
    stopping: Stopping = field(default_factory=Stopping)

    @property
    def spec(self) -> Spec:
        """What is known of the data that it was trained on."""
        return self.recipe.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""
        return self.spec.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the root takes."""
        return image_shape(self.recipe)

    def predict(
        self, images: Any, *, invert: str = "auto", fit: str = "crop", as_stored: bool = False
    ) -> Answer:
        """The class of each image, how sure that is, and the nodes that it met.

        Args:
          images: uint8 (0 to 255) or floats (0 to 1), [n, h, w, c] or one image [h, w, c]; or the
            name of an image file or of a folder of them, an image of Pillow's, or a list of these,
            of any size. Arrays are taken as the dataset stores its images: in EMNIST rows and
            columns are exchanged (`images.swapaxes(1, 2)` of upright ones); files and Pillow's
            images are turned.
          invert: of files: exchange black and white: `yes`, `no`, or `auto`: where the dataset has
            light strokes on a dark ground, and the image a light border.
          fit: of files of other proportions: `crop` takes the middle, `pad` adds of the border's
            colour, `stretch` changes the proportions.
          as_stored: of files, for EMNIST: they are mirrored and rotated as the dataset's own.

        Raises:
          UserError: the images are something else; it is a ValueError.

        Example (with `model = trunk_jax.load("cifar10")`):
          >>> answer = model.predict(np.zeros((2, 32, 32, 3), np.uint8))
          >>> answer.labels.shape, answer.names.shape, answer.probabilities.shape
          ((2,), (2,), (2, 10))
          >>> answer.paths[0][0]
          'root'

        """
        pixels = self.pixels(images, Options(invert, fit, as_stored))
        return answer(self, self.visits(pixels), len(pixels))

    def features(
        self,
        images: Any,
        node: str | Node = "root",
        *,
        invert: str = "auto",
        fit: str = "crop",
        as_stored: bool = False,
    ) -> Float[np.ndarray, "n *features"]:
        """What the children of a node are given for these images; channels come last.

        All images are taken through the node and those above it, wherever they would go by
        themselves.

        Args:
          images: as for `predict`, as the others are.
          node: its name, or its path in the tree.
          invert: as for `predict`.
          fit: as for `predict`.
          as_stored: as for `predict`.

        Raises:
          UserError: there is no such node, or the images are something else; it is a ValueError.

        Example (with `model = trunk_jax.load("cifar10")`):
          >>> model.features(np.zeros((2, 32, 32, 3), np.uint8), "root").shape
          (2, 8, 8, 64)

        """
        wanted = self._node(node)
        return self.features_of(self.pixels(images, Options(invert, fit, as_stored)), wanted)

    def pixels(self, images: Any, options: Options) -> Images:
        """Images, or files of them, as the root is given them."""
        return pixels_of(images, self.spec, self.image_shape, options)

    def visits(self, pixels: Images) -> Iterator[Visit]:
        """The visits that take the images to their leaves; of an image, from the root down."""
        raise NotImplementedError

    def features_of(self, pixels: Images, node: Node) -> Float[np.ndarray, "n *features"]:
        """What `features` returns."""
        raise NotImplementedError

    def _node(self, node: str | Node) -> Node:
        """A node by its name or path. UserError if there is none."""
        by_name = {self.tree.names[path]: path for path in self.tree.nodes}
        with suppress(TypeError):  # a list, an array: nothing by which a node is called
            if node in by_name:
                return by_name[node]
            if node in self.tree.nodes:
                return node
        raise UserError(f"no node {node!r:.80}; the nodes: {', '.join(by_name)}")

    def __str__(self) -> str:
        """What it is, and the tree drawn in text."""
        return f"{self!r}\n{drawing.draw(self.tree, self.classes)}"

    def __repr__(self) -> str:
        """In a line."""
        nodes, recipe = len(self.tree.nodes), self.recipe
        return (
            f"<{self.spec.title}, {recipe.name} {recipe.backbone}: {len(self.classes)} classes, "
            f"{nodes} node{'s' if nodes > 1 else ''}>"
        )


def answer(model: Model, visits: Iterable[Visit], count: int) -> Answer:
    """What visits of `count` images come to."""
    tree, found = model.tree, list(visits)
    labels = predictions(tree, found, count).labels
    shares = distribution if tree.exits else group_shares
    paths: list[tuple[str, ...]] = [()] * count
    for visit in found:  # of an image, later ones are further down
        for place in visit.places:
            paths[place] = (*paths[place], tree.names[visit.node])
    met = np.empty(count, object)  # not by one assignment: NumPy would look inside the tuples
    for place, path in enumerate(paths):
        met[place] = path
    names = np.array(model.classes)[labels] if count else np.array([], str)
    return Answer(labels, names, shares(tree, found, count), met)


def group_shares(tree: Tree, visits: Iterable[Visit], count: int) -> Float[np.ndarray, "n classes"]:
    """`Answer.probabilities` of a tree whose nodes score groups."""
    shares = np.zeros((count, len(tree.paths)))
    reached = {ROOT: np.zeros(count)}
    for visit in visits:
        likelihoods = reached[visit.node][visit.places, None] + visit.likelihoods
        branches = tree.branches(visit.node)
        for output, below in enumerate(branches):
            share = np.exp(likelihoods[:, output]) / len(below)
            shares[np.ix_(visit.places, np.array(below))] = share[:, None]
        kept = np.zeros((len(visit.places), len(tree.paths)), bool)
        onward = np.zeros(len(visit.places), bool)
        for branch, mine in visit.taken:
            kept[np.ix_(mine, np.array(branches[branch[-1]]))] = True
            if branch not in tree.paths:
                onward |= mine
                came = reached.setdefault(branch, np.zeros(count))
                came[visit.places[mine]] = likelihoods[mine, branch[-1]]
        shares[visit.places] *= kept | ~onward[:, None]
    return shares
