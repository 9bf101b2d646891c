"""Whether an exported tree decides as ours does, image by image.

Two right programs may decide differently where the two best scores of a node are closer than
rounding; such images are counted apart. How close that is follows from the rounding model
(`data.base.rounding`), with the scale of the scores and the layers of the path.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int, UInt8

from data.base.rounding import CONSTANT, UNIT
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.closeness import too_close
from data.inference.model import paths_met
from data.tree.hierarchy import ROOT, ancestors
from trunk_jax.inference import route
from trunk_jax.interchange.trained import Trained
from trunk_jax.layers.basic import Layer
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, apply, merge


@dataclass(frozen=True)
class Comparison:
    """`labels`: ours. `different`: images decided differently that are no ties. `ties`: that are.

    Both are places of images, int64.
    """

    labels: Int[np.ndarray, " n"]
    different: Int[np.ndarray, " d"]
    ties: Int[np.ndarray, " t"]


def compare(trained: Trained, images: Images, found: Mapping[str, np.ndarray]) -> Comparison:
    """Our decisions on the images against `label` and `path` of an exported tree's outputs."""
    told = route.predict(trained.model, images)
    ours, tree = told.labels, trained.tree
    if tree.exits:
        paths = paths_met(tree, told.met)
    else:
        paths = np.array([_path(trained, label) for label in found["label"]])
    wrong = (found["label"] != ours) | (paths != found["path"]).any(1)
    places = np.flatnonzero(wrong)
    if tree.exits:
        tied = _are_ties(trained, images[places], told.met[places])
    else:
        tied = np.array([_is_tie(trained, images[i], found["path"][i]) for i in places], bool)
    return Comparison(ours, places[~tied], places[tied])


def _are_ties(
    trained: Trained, images: UInt8[np.ndarray, "n h w c"], met: Bool[np.ndarray, "n nodes"]
) -> Bool[np.ndarray, " n"]:
    """In a tree with exits, whether images are within rounding of another way or answer."""
    if not len(images):
        return np.zeros(0, bool)
    model, tree = trained.model, trained.tree
    scores = route.scores(model, images)
    growth = {node: accumulated(model.networks[node]) for node in tree.nodes}
    error = {
        node: CONSTANT
        * UNIT
        * sum(growth[each] for each in (*ancestors(node), node))
        * np.abs(scores[node]).max(1)
        for node in tree.nodes
    }
    return too_close(tree, model.stopping, scores, error, met)


def _path(trained: Trained, label: int) -> list[int]:
    """A label's path, -1 below its leaf; all -2 for what is no label."""
    deep = trained.tree.depth
    if not 0 <= label < len(trained.tree.paths):
        return [-2] * deep
    path = trained.tree.paths[label]
    return [*path, *[-1] * (deep - len(path))]


@jax.jit
def _pass(network: Network, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return apply(network, x)[0]


def _is_tie(trained: Trained, image: np.ndarray, path: np.ndarray) -> bool:
    """Whether `path` leaves ours where the two scores are within rounding of each other."""
    networks, recipe = trained.model.networks, trained.recipe
    x = prepare(jnp.asarray(image[None]), {}, Augmentation(), recipe.mean, recipe.std)
    node, growth = ROOT, 0.0
    for theirs in path:
        if node not in networks:
            return False
        growth += accumulated(networks[node])
        x, scores = _pass(networks[node], x)
        scores = np.asarray(scores[0], np.float64)
        ours = int(scores.argmax())
        if ours != theirs:
            known = 0 <= theirs < len(scores)
            bound = 2 * CONSTANT * UNIT * growth * np.abs(scores).max()
            return bool(known and scores[ours] - scores[theirs] <= bound)
        node = (*node, ours)
    return False


def accumulated(network: Network) -> float:
    """The root of the accumulation length, summed over the layers of a network."""
    layers = [layer for _, layer in nnx.iter_modules(merge(network)) if isinstance(layer, Layer)]
    return sum(
        math.sqrt(math.prod(layer.kernel.shape[:-1])) if hasattr(layer, "kernel") else 1.0
        for layer in layers
    )
