"""The third runtime: a tree as ONNX in onnxruntime, held to what both frameworks are held to.

Scores of each node, read back from the file that is checked, against the float64 truth: an error
within the rounding model. Decisions of the file as a whole: identical wherever the two best scores
of every node on the way are further apart than twice the error measured on them. And what it is
given and what it tells besides: the normalised pixels, the path, the probabilities.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from data.images.augmentation import Augmentation
from data.images.on_disk import Images
from data.inference import curve
from data.inference.closeness import too_close
from data.inference.model import Model, distribution, paths_met, predictions
from data.tree.hierarchy import ROOT, Node, Tree
from parity.checks import tolerance
from parity.checks.growth import error_of_scores
from parity.checks.routing import BATCH
from parity.checks.tolerance import Check
from trunk_jax.interchange import parts, runtime
from trunk_torch_ref.network.augment import prepare

# A product of a few float32 factors, each a softmax: units of roundoff in what is at most 1.
PROBABILITY = 16


@dataclass(frozen=True)
class Truth:
    """What float64 says of each image, and how far the file's own nodes are from it.

    `labels`, `paths` (-1 below the leaf), `probabilities` [n, classes] as the file defines them;
    `close`: too close to call; `error`: the largest of a score, and as a share of the largest
    score that its node gave to the batch; `pixels`: the largest of the root's input, as a share.
    """

    labels: np.ndarray
    paths: np.ndarray
    probabilities: np.ndarray
    close: np.ndarray
    error: tuple[float, float]
    pixels: float


def check_exported(
    name: str,
    theirs: Model,
    model: onnx.ModelProto,
    images: Images,
    labels: np.ndarray,
) -> list[Check]:
    """All checks of a file against PyTorch's networks in float64, on these images."""
    found = runtime.predict(runtime.session(model), images)
    truth = truth_of(theirs, model, images)
    close, right = truth.close, int((found["label"] == labels).sum())
    note = f"{int(close.sum())} of {len(images)} images are closer than the measured error"
    decisions = [
        tolerance.equal(
            name,
            f"{what}, onnxruntime against truth",
            np.where(mask, wanted, mine),
            wanted,
            "float32",
            detail,
        )
        for what, mine, wanted, mask, detail in (
            ("predictions", found["label"], truth.labels, close, f"right: {right}; {note}"),
            ("paths", found["path"], truth.paths, close[:, None], note),
        )
    ]
    # dlog p = ds - sum p ds: at most twice the largest error of a score, at each node of the path
    tree, rule = theirs.tree, theirs.stopping
    coldest = min(rule.temperature(tree.names[node]) for node in tree.nodes)
    allowed = 2 * truth.error[0] / coldest * tree.depth + PROBABILITY * tolerance.UNIT
    away = np.abs(found["probabilities"] - truth.probabilities)[~close].max(initial=0.0)
    taken = truth.probabilities[np.arange(len(images)), truth.labels]
    away = max(float(away), float(np.abs(found["probability"] - taken)[~close].max(initial=0.0)))
    return [
        *decisions,
        error_of_scores(name, truth.error, theirs, "onnxruntime"),
        Check(
            name,
            "normalised pixels, onnxruntime",
            "float32",
            truth.pixels,
            truth.pixels,
            f"{tolerance.CONSTANT * tolerance.UNIT:.0e} of scale",
            truth.pixels <= tolerance.CONSTANT * tolerance.UNIT,
        ),
        Check(
            name,
            "probabilities, onnxruntime",
            "float32",
            away,
            away,
            f"{allowed:.0e}: twice the error of scores a node",
            bool(away <= allowed),
        ),
    ]


def _both(theirs: Model, model: onnx.ModelProto) -> tuple[dict[Node, Any], dict[Node, Any]]:
    """By node, its network in float64, and a session of what the file has of it."""
    names = theirs.tree.names
    exact = {node: copy.deepcopy(net).double().eval() for node, net in theirs.networks.items()}
    return exact, {node: runtime.session(parts.node_part(model, names[node])) for node in exact}


def _batches(
    theirs: Model, model: onnx.ModelProto, images: Images
) -> Iterator[tuple[np.ndarray, torch.Tensor, np.ndarray]]:
    """Of a batch its places, and the root's input: in float64, and as the file makes it."""
    recipe, start = theirs.recipe, runtime.session(parts.preparation(model))
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        pixels = torch.tensor(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))
        x64 = prepare(pixels, {}, Augmentation(), recipe.mean, recipe.std, torch.float64)
        (x,) = start.run(None, {"image": part})
        yield np.arange(first, first + len(part)), x64, x


def truth_of(theirs: Model, model: onnx.ModelProto, images: Images) -> Truth:
    """Follow the images in float64, and beside it in the file's own nodes, one by one."""
    if theirs.tree.exits:
        return _truth_with_exits(theirs, model, images)
    tree = theirs.tree
    exact, sessions = _both(theirs, model)
    leaves = {path: label for label, path in enumerate(tree.paths)}
    labels, close = np.full(len(images), -1), np.zeros(len(images), bool)
    paths = np.full((len(images), tree.depth), -1)
    probabilities = np.zeros((len(images), len(tree.paths)))
    largest = [0.0, 0.0, 0.0]

    def visit(node: Node, x64: torch.Tensor, x: np.ndarray, places: np.ndarray, prior) -> None:
        with torch.no_grad():
            f64, s64 = (value.numpy() for value in exact[node](x64))
        features, scores = sessions[node].run(None, {f"{tree.names[node]}/x": x})
        error = np.abs(scores - s64).max(1)
        best = np.sort(s64, 1)
        close[places] |= best[:, -1] - best[:, -2] <= 2 * error
        largest[0] = max(largest[0], float(error.max()))
        largest[1] = max(largest[1], float(error.max()) / float(np.abs(s64).max()))
        joint = prior[:, None] * torch.tensor(s64).softmax(1).numpy()
        probabilities[places] = joint @ _shares(tree, node)
        chosen = s64.argmax(1)
        paths[places, len(node)] = chosen
        for output in np.unique(chosen):
            mine = np.flatnonzero(chosen == output)
            child = (*node, int(output))
            if child in leaves:
                labels[places[mine]] = leaves[child]
            else:
                visit(
                    child,
                    torch.tensor(f64[mine]),
                    features[mine],
                    places[mine],
                    joint[mine, output],
                )

    for places, x64, x in _batches(theirs, model, images):
        away = float(np.abs(x - x64.numpy()).max()) / float(x64.abs().max())
        largest[2] = max(largest[2], away)
        visit(ROOT, x64, x, places, np.ones(len(places)))
    return Truth(labels, paths, probabilities, close, (largest[0], largest[1]), largest[2])


def _truth_with_exits(theirs: Model, model: onnx.ModelProto, images: Images) -> Truth:
    """As `truth_of`; every node is asked about every image, and the rule followed on its scores."""
    tree, rule = theirs.tree, theirs.stopping
    exact, sessions = _both(theirs, model)
    found: list[tuple[np.ndarray, ...]] = []
    largest = [0.0, 0.0, 0.0]
    for places, x64, x in _batches(theirs, model, images):
        away = float(np.abs(x - x64.numpy()).max()) / float(x64.abs().max())
        largest[2] = max(largest[2], away)
        inputs, scores, error = {ROOT: (x64, x)}, {}, {}
        for node in tree.nodes:
            given64, given = inputs[node]
            with torch.no_grad():
                features64, s64 = exact[node](given64)
            features, mine = sessions[node].run(None, {f"{tree.names[node]}/x": given})
            scores[node] = s64.numpy()
            error[node] = np.abs(mine - scores[node]).max(1)
            largest[0] = max(largest[0], float(error[node].max()))
            share = float(error[node].max() / np.abs(scores[node]).max())
            largest[1] = max(largest[1], share)
            inputs |= dict.fromkeys(tree.children(node), (features64, features))
        count = len(places)
        visits = list(curve.visits(tree, scores, rule))
        met = predictions(tree, visits, count).met
        shares = distribution(tree, visits, count)
        close = too_close(tree, rule, scores, error, met)
        found.append((shares.argmax(1), paths_met(tree, met), shares, close))
    labels, paths, probabilities, close = map(np.concatenate, zip(*found, strict=True))
    return Truth(labels, paths, probabilities, close, (largest[0], largest[1]), largest[2])


def _shares(tree: Tree, node: Node) -> np.ndarray:
    """[outputs, classes]: a class's share of an output's probability (docs/export.md)."""
    outputs = [tree.members((*node, output)) for output in range(tree.width(node))]
    result = np.zeros((len(outputs), len(tree.paths)))
    for row, members in zip(result, outputs, strict=True):
        row[list(members)] = 1 / len(members)
    return result


def stated_int8(
    name: str,
    model: onnx.ModelProto,
    small: onnx.ModelProto,
    images: Images,
    labels: np.ndarray,
) -> Check:
    """What int8 costs, which no tolerance judges: how many are right, and decided as in float32."""
    before, after = (
        runtime.predict(runtime.session(each), images)["label"] for each in (model, small)
    )
    differ, total = int((before != after).sum()), len(images)
    right = [int((found == labels).sum()) for found in (before, after)]
    detail = f"right: float32 {right[0]}, int8 {right[1]}; equal: {total - differ} of {total}"
    return Check(
        name,
        "predictions, onnxruntime in int8",
        "int8",
        differ,
        differ,
        "stated only",
        True,
        detail,
    )
