"""What a result must carry to be reproduced: versions, machine, flags, commit, data."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from data.images import datasets
from data.images.datasets import Dataset
from data.run.options import TrainOptions

PACKAGES = (
    "trunk-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex",
    "tensorflow-datasets", "array_record", "torch", "numpy", "scipy", "safetensors",
)  # fmt: skip


def manifest(
    framework: str, device: dict[str, Any], options: TrainOptions, dataset: Dataset, splits: Any
) -> dict[str, Any]:
    """The content of `manifest.json`. Times are UTC, ISO 8601."""
    return {
        "framework": framework,
        "command": [sys.executable, *sys.argv],
        "flags": options.flags,
        "recipe": options.recipe.name,
        "protocol": options.recipe.protocol,
        "seed": options.recipe.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": device,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in ("XLA_FLAGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
            or name.startswith("JAX_")
        },
        "git": git(Path(__file__).parent),
        "dataset": {
            "name": dataset.spec.name,
            "version": dataset.version,
            "title": dataset.title,
            "data_dir": None
            if dataset.spec.tfds_name is None
            else (str(datasets.data_root(options.data_dir).absolute())),
            "sha256": dataset.fingerprint,
            "images": {
                part: len(getattr(splits, part).labels) for part in ("train", "validation", "test")
            },
        },
    }


def git(folder: Path) -> dict[str, Any] | None:
    """The commit of the code and whether files differ from it; None outside a checkout."""

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "modified": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
