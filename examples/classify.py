"""Classify an image with an exported tree: NumPy and onnxruntime, nothing else of ours.

python -m trunk_jax.export RUN --format onnx --out tree.onnx
python examples/classify.py tree.onnx image.npy        # uint8 [height, width, channels]
"""

import json
import sys

import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = model.get_modelmeta().custom_metadata_map
classes = json.loads(about["classes"])
image = np.load(sys.argv[2])
label, probability, path = model.run(["label", "probability", "path"], {"image": image[None]})
way = [int(step) for step in path[0] if step >= 0]
print(f"{classes[label[0]]} {probability[0]:.4f} path {way}")
