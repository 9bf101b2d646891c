"""int8 forms of the nodes' models, by onnxruntime's own tools.

Static: the range of each tensor is that of calibration images. Weights are int8 with a scale an
output channel, activations uint8, in the form QDQ, which any runtime of ONNX computes and
onnxruntime fuses into its integer kernels. The classifier stays float32: it is a thousandth of the
work, and scores of 256 steps would tie.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import UInt8

from data.images.on_disk import Images
from data.inference import curve
from data.tree import metrics
from data.tree.hierarchy import ROOT, Node
from trunk_jax.interchange import parts, runtime
from trunk_jax.interchange.onnx_model import Models, checked, whole_model
from trunk_jax.interchange.trained import Trained

KINDS = ("Conv", "Relu", "Clip", "Add", "MaxPool")
IMAGES = 512  # for calibration; a node below the root has those that come to it
_BATCH = 32


def calibration(images: Images, seed: int) -> UInt8[np.ndarray, "m h w c"]:
    """`IMAGES` of the training images, drawn by a seed."""
    drawn = np.random.default_rng(seed).permutation(len(images))[:IMAGES]
    return images[np.sort(drawn)]


def quantized(
    trained: Trained, nodes: Mapping[str, onnx.ModelProto], images: UInt8[np.ndarray, "n h w c"]
) -> Models:
    """The nodes' models with int8 convolutions, calibrated on training images.

    A node that none of the images meet is left as it is (`left_alone`).
    """
    inputs = node_inputs(trained, nodes, images)
    return {name: _quantized(model, f"{name}/x", inputs.get(name)) for name, model in nodes.items()}


def left_alone(before: Mapping[str, onnx.ModelProto], after: Models) -> list[str]:
    """The names of the nodes that `quantized` left in float32."""
    return [name for name in after if after[name] is before[name]]


def node_inputs(
    trained: Trained, nodes: Mapping[str, onnx.ModelProto], images: UInt8[np.ndarray, "n h w c"]
) -> dict[str, np.ndarray]:
    """What each node is given of the images, [n, c, h, w], by name; none for one that none meet."""
    tree, found = trained.tree, {}
    prepare = runtime.session(parts.preparation(whole_model(trained, nodes)))

    def visit(node: Node, x: np.ndarray) -> None:
        name = tree.names[node]
        found[name] = x
        features, scores = runtime.session(nodes[name]).run(None, {f"{name}/x": x})
        # of a tree with exits also the images that would have stopped: they are more, and no worse
        chosen = curve.branch_shares(tree, node, metrics.softmax(scores)).argmax(1)
        for child in tree.children(node):
            mine = chosen == child[-1]
            if mine.any():
                visit(child, features[mine])

    visit(ROOT, prepare.run(None, {"image": images})[0])
    return found


def _quantized(model: onnx.ModelProto, given: str, x: np.ndarray | None) -> onnx.ModelProto:
    """A node's model in int8; as it is if no calibration image comes to it."""
    if x is None:
        return model
    batches = [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """The node's inputs, a batch at a time."""

        def __init__(self):
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {given: batch}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        with _no_advice():
            quantization.quantize_static(
                model,
                file,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(KINDS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                # Weights of 7 bits: x86 processors without VNNI add two products in 16 bits, which
                # those of 8 bits overflow without a word (docs/export.md has what that costs).
                reduce_range=True,
            )
        return checked(onnx.load(file))


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without its advice to run a preprocessing first, which has nothing to do in our graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
