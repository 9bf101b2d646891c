"""Classify an image with a tree of a file a node: only what is on its path is ever loaded.

python -m trunk_jax.export RUN --format onnx --per-node --out tree
python examples/on_demand.py tree image.npy            # uint8 [height, width, channels]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, x = Path(sys.argv[1]), np.load(sys.argv[2])[None]
tree = json.loads((folder / "tree.json").read_text())
end, loaded, shares = {"node": tree["root"]}, [], {}
while "node" in end:
    node = tree["nodes"][end["node"]]
    model = onnxruntime.InferenceSession(folder / node["file"], providers=["CPUExecutionProvider"])
    loaded.append(node["file"])
    x, scores = model.run(None, {node["input"]: x})  # the features go to the next node
    end = node["outputs"][int(scores.argmax())]
    if "branches" in node:  # it scores classes: a sure one is the answer
        share = np.exp((scores[0] - scores.max()) / node["temperature"])
        share /= share.sum()
        labels = [output["label"] for output in node["outputs"]]
        reached = sum(shares.get(label, 0) for label in labels) if shares else 1
        shares |= dict(zip(labels, reached * share, strict=True))
        branch = max(node["branches"], key=lambda each: share[each["outputs"]].sum())
        stays = share.max() >= node["threshold"] or "node" not in branch
        end = {"label": max(shares, key=shares.get)} if stays else branch
print(f"{tree['classes'][end['label']]} loaded {' '.join(loaded)}")
