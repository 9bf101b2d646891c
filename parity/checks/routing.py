"""Checks of decisions: the path of every image through a whole tree."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data.base.progress import working
from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference.model import Model
from data.tree.hierarchy import ROOT, Node
from parity.checks import tolerance
from parity.checks.growth import error_of_scores
from parity.checks.stopping import check_stopping
from parity.checks.tolerance import Check
from trunk_jax.inference import route
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import apply
from trunk_torch_ref.inference import route as torch_route
from trunk_torch_ref.network.augment import prepare as torch_prepare

BATCH = 256


def check_routing(
    name: str, ours: Model, theirs: Model, images: Images, labels: np.ndarray
) -> list[Check]:
    """Predictions of both frameworks in float32 against each other and the float64 truth.

    They must be identical wherever the two best scores of every node on the way are further
    apart than twice the error measured on them; closer images are counted. The error itself
    must be one of rounding: within `tolerance.CONSTANT` times unit roundoff, the scale of the
    scores and the root of the accumulation length summed over the layers of the path.
    """
    if theirs.tree.exits or theirs.stopping.second is not None:
        with working(f"both frameworks and float64 classify {len(images):,} images"):
            return check_stopping(name, ours, theirs, images, labels)
    with working(f"JAX classifies {len(images):,} images"):
        jax_labels = route.predict(ours, images).labels
    with working(f"PyTorch classifies {len(images):,} images"):
        torch_labels = torch_route.predict(theirs, images).labels
    with working(f"PyTorch classifies {len(images):,} images in float64"):
        truth, close, error = truth_of(ours, theirs, images)
    note = f"{int(close.sum())} of {len(images)} images are closer than the measured error"
    checks = [
        tolerance.equal(
            name,
            f"predictions, {which}",
            np.where(close, truth, found),
            truth,
            "float32",
            note,
        )
        for which, found in (
            ("JAX against truth", jax_labels),
            ("PyTorch against truth", torch_labels),
        )
    ]
    right = [int((found == labels).sum()) for found in (jax_labels, torch_labels)]
    agree = int((jax_labels == torch_labels).sum())
    detail = f"right: JAX {right[0]}, PyTorch {right[1]}; equal: {agree} of {len(images)}"
    same = tolerance.equal(
        name,
        "predictions, JAX against PyTorch",
        np.where(close, 0, jax_labels),
        np.where(close, 0, torch_labels),
        "float32",
        detail,
    )
    return [*checks, same, error_of_scores(name, error, theirs)]


@jax.jit
def _jax_node(network, x):
    return apply(network, x)[0]


def truth_of(
    ours: Model, theirs: Model, images: Images
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """(float64 predictions, whether an image is too close to call, largest error of a score).

    The error: absolute, and as a share of the largest score that its node gave to the batch.
    """
    recipe, tree = theirs.recipe, theirs.tree
    exact = {node: copy.deepcopy(net).double().eval() for node, net in theirs.networks.items()}
    leaves = {path: label for label, path in enumerate(tree.paths)}
    truth = np.full(len(images), -1)
    close = np.zeros(len(images), bool)
    largest = [0.0, 0.0]
    device = next(theirs.networks[ROOT].parameters()).device
    # a baseline's maps may be large
    batch = recipe.eval_batch_size if recipe.baseline else BATCH

    def visit(node: Node, x64, x32, ours_x, places: np.ndarray) -> None:
        with torch.no_grad():
            f64, s64 = exact[node](x64)
            f32, s32 = theirs.networks[node].eval()(x32)
        padded = np.zeros((route.bucket(len(places), batch), *ours_x.shape[1:]), np.float32)
        padded[: len(places)] = ours_x
        our_f, our_s = (
            np.asarray(a)[: len(places)] for a in _jax_node(ours.networks[node], padded)
        )
        s64 = s64.cpu().numpy()
        error = np.maximum(np.abs(s32.cpu().numpy() - s64), np.abs(our_s - s64)).max(1)
        best = np.sort(s64, 1)
        close[places] |= best[:, -1] - best[:, -2] <= 2 * error
        worst = float(error.max())
        largest[:] = max(largest[0], worst), max(largest[1], worst / float(np.abs(s64).max()))
        chosen = s64.argmax(1)
        for output in np.unique(chosen):
            mine = np.flatnonzero(chosen == output)
            child = (*node, int(output))
            if child in leaves:
                truth[places[mine]] = leaves[child]
            else:
                rows = torch.tensor(mine)
                visit(child, f64[rows], f32[rows], our_f[mine], places[mine])

    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        pixels = torch.tensor(np.ascontiguousarray(part.transpose(0, 3, 1, 2)), device=device)
        mean, std = recipe.mean, recipe.std
        x64, x32 = (
            torch_prepare(pixels, {}, Augmentation(), mean, std, kind)
            for kind in (torch.float64, torch.float32)
        )
        ours_x = np.asarray(prepare(jnp.asarray(part), {}, Augmentation(), mean, std))
        visit(ROOT, x64, x32, ours_x, np.arange(start, start + len(part)))
    return truth, close, (largest[0], largest[1])
