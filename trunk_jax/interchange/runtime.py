"""Models of ONNX computed by onnxruntime, on the CPU."""

from typing import Any

import numpy as np
import onnx

from data.base import machine
from data.images.on_disk import Images

BATCH = 256


def session(model: onnx.ModelProto, threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` of the model; `threads`: 0 for one a core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or machine.cores()
    options.log_severity_level = 3  # errors
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers)


def predict(running: Any, images: Images, batch: int = BATCH) -> dict[str, np.ndarray]:
    """The outputs of a whole tree's session for all images, by name, a row an image."""
    names = [output.name for output in running.get_outputs()]
    parts = [
        running.run(names, {"image": images[start : start + batch]})
        for start in range(0, max(len(images), 1), batch)
    ]
    return {name: np.concatenate(rows) for name, *rows in zip(names, *parts, strict=True)}
