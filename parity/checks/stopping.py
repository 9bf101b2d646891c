"""Checks of early stopping: where each image stops, which branches it visits, and its answer."""

import copy

import numpy as np

from data.images.datasets import load
from data.images.on_disk import Images
from data.inference import curve
from data.inference.closeness import too_close
from data.inference.model import Model, predictions
from data.inference.stopping import Stopping
from data.recipes import recipe as recipes
from data.tree import hierarchy
from data.tree.hierarchy import ROOT
from parity.checks import tolerance
from parity.checks.growth import error_of_scores
from parity.checks.tolerance import Check
from parity.pairs.conversion import to_torch
from parity.pairs.families import Family, build
from trunk_jax.inference import route
from trunk_jax.inference.model import Model as JaxModel
from trunk_torch_ref.inference import route as torch_route
from trunk_torch_ref.inference.model import Model as TorchModel
from trunk_torch_ref.training import grow as torch_grow


def check_stopping(
    name: str, ours: Model, theirs: Model, images: Images, labels: np.ndarray
) -> list[Check]:
    """Both frameworks' ways and answers against those that float64 scores give, and each other.

    They must be identical but for images that are too close to call: at some node on the way a
    probability is nearer to what it is compared with than twice the error measured on the node's
    scores can move it. Those are counted, and the error itself must be one of rounding.
    """
    exact = {node: copy.deepcopy(net).double() for node, net in theirs.networks.items()}
    scores = torch_route.scores(TorchModel(theirs.recipe, theirs.tree, exact), images)
    singles = (route.scores(ours, images), torch_route.scores(theirs, images))
    error = {
        node: np.max([np.abs(each[node] - scores[node]).max(1) for each in singles], axis=0)
        for node in scores
    }
    tree, rule, count = theirs.tree, theirs.stopping, len(images)
    truth = predictions(tree, curve.visits(tree, scores, rule), count)
    close = too_close(tree, rule, scores, error, truth.met)
    found = {"JAX": route.predict(ours, images), "PyTorch": torch_route.predict(theirs, images)}
    note = f"{int(close.sum())} of {count} images are closer than the measured error"
    checks = []
    for which, mine in found.items():
        for what, left, right in (
            ("predictions", mine.labels, truth.labels),
            ("nodes visited", mine.met, truth.met),
        ):
            hidden = close if left.ndim == 1 else close[:, None]
            same = np.where(hidden, right, left)
            title = f"{what} with early stopping, {which} against truth"
            checks.append(tolerance.equal(name, title, same, right, "float32", note))
    hits = [int((each.labels == labels).sum()) for each in found.values()]
    met = [each.met[~close].sum(1).mean() if not close.all() else 0.0 for each in found.values()]
    detail = f"right: JAX {hits[0]}, PyTorch {hits[1]}; nodes an image: {met[0]:.3f}"
    ways = [np.where(close[:, None], 0, each.met) for each in found.values()]
    title = "nodes visited with early stopping, JAX against PyTorch"
    together = tolerance.equal(name, title, ways[0], ways[1], "float32", detail)
    absolute = max(float(each.max()) for each in error.values())
    share = max(float(each.max() / np.abs(scores[node]).max()) for node, each in error.items())
    return [*checks, together, error_of_scores(name, (absolute, share), theirs)]


def check_exits(seed: int) -> list[Check]:
    """An untrained tree with exits on digits: to the end, with thresholds, with two branches."""
    recipe = recipes.load("efficient", "digits", "resnet")
    tree = hierarchy.regroup(
        hierarchy.bare(10, exits=True), ROOT, ((0, 1, 2, 3), (4, 5, 6, 7, 8), (9,))
    )
    ours: dict = {}
    theirs: dict = {}
    for node in tree.nodes:
        shape = (8, 8, 1) if node == ROOT else (4, 4, 32)
        family = Family("digits", "resnet", tree.names[node], shape, tree.width(node))
        both = build(family, seed + len(ours))
        ours[node] = both.jax
        template = torch_grow.initial_network(recipe, tree, node, "class", theirs, (1, 8, 8))
        theirs[node] = to_torch(both.jax, template)
    test = load("digits").test
    plain = TorchModel(recipe, tree, theirs)
    first = torch_route.scores(plain, test.images)[ROOT]
    heat = float(first.std(1).mean()) / 2  # so that probabilities are neither all alike nor 0 or 1
    shares = np.exp(curve.log_softmax(first / heat))
    sure = shares.max(1)
    ways = np.sort(curve.branch_shares(tree, ROOT, shares), axis=1)
    share, low = float(np.median(sure)), float(np.median(ways[:, -2]))  # about half go both ways
    heats = dict.fromkeys(tree.names.values(), heat)
    checks = []
    for what, rule in {
        "to the end": Stopping(),
        "half stop": Stopping(heats, {"root": share}),
        "two branches": Stopping(heats, {"root": share}, second=low),
    }.items():
        mine = JaxModel(recipe, tree, ours, stopping=rule)
        other = TorchModel(recipe, tree, theirs, stopping=rule)
        title = f"digits, untrained tree with exits, {what}"
        checks += check_stopping(title, mine, other, test.images, test.labels)
    return checks
