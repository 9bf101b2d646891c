"""One trained root in every precision that the devices offer, against float64 on the CPU."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from data.images.augmentation import Augmentation
from data.images.splits import Splits
from data.recipes import recipe
from data.recipes.recipe import Recipe
from data.tree import hierarchy
from parity.checks import modes
from parity.pairs.conversion import to_jax
from parity.pairs.passes import DEVICE, Pair
from parity.study.independent import UNSPLIT
from parity.study.trace import digits
from trunk_jax.training import grow as jax_grow
from trunk_torch_ref.network.augment import prepare
from trunk_torch_ref.training import grow

BATCH = 256


def devices(
    chosen: Recipe, parts: Splits, classes: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train the root once, in PyTorch; then score the test images in each precision.

    Each framework's scores are held against the same weights in float64 on the CPU: error (root
    mean square, as a share of the largest score), right answers, and decisions that are others.
    Without a GPU, TF32 and everything on a GPU is left out, and the result says so.
    """
    alone = recipe.override(
        replace(chosen, joint=None, balanced=False), volatility=UNSPLIT, grouping="threshold"
    )
    run = folder / "runs" / "devices"
    grown = grow.grow(alone, parts, classes, run, lambda **progress: None)
    module = grown.networks[hierarchy.ROOT]
    template = jax_grow.initial_network(
        alone, grown.tree, hierarchy.ROOT, "class", {}, parts.test.image_shape
    )
    both = Pair(to_jax(module, template), module)
    exact = copy.deepcopy(module).double().eval()
    on_gpu = DEVICE.type == "cuda"
    offered = [mode for mode in modes.MODES if on_gpu or mode != "tf32"]
    runs = {"jax": modes.jax_scores, "torch": modes.torch_scores}
    truth: list[np.ndarray] = []
    found: dict[tuple[str, str], list[np.ndarray]] = {
        (name, mode): [] for mode in offered for name in runs
    }
    for start in range(0, len(parts.test.images), BATCH):
        part = grow.as_images(parts.test.images[start : start + BATCH])
        x = prepare(part, {}, Augmentation(), chosen.mean, chosen.std, torch.float32)
        with torch.no_grad():
            truth.append(exact(x.double())[1].numpy())
        for (name, mode), rows in found.items():
            rows.append(runs[name](both, x.numpy(), mode))
    scores = np.concatenate(truth)
    scale, best = float(np.abs(scores).max()), scores.argmax(1)
    labels = parts.test.labels
    table = []
    for (name, mode), parts_ in found.items():
        mine = np.concatenate(parts_)
        table.append(
            {
                "framework": name,
                "mode": mode,
                "error": digits(float(np.sqrt(np.mean((mine - scores) ** 2))) / scale),
                "changed": int((mine.argmax(1) != best).sum()),
                "right": int((mine.argmax(1) == labels).sum()),
            }
        )
    note = "" if on_gpu else "no GPU here: GPU float32, TF32 and bfloat16 are left out"
    if note:
        say(note)
    return {
        "device": {"jax": jax.devices()[0].device_kind, "torch": DEVICE.type},
        "images": len(labels),
        "truth": int((best == labels).sum()),
        "rows": table,
        "note": note,
    }
