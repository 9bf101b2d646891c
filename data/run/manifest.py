"""What a result must carry to be reproduced: versions, machine, flags, commit, data."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from data.base import machine
from data.images import folders
from data.images.datasets import Dataset
from data.run.options import TrainOptions

PACKAGES = (
    "trunk-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "tensorflow-datasets",
    "array_record",
    "torch",
    "numpy",
    "scipy",
    "safetensors",
)

# The first letters of variables that change how numbers are computed; TF_ is for XLA on a GPU.
VARIABLES = (
    "JAX_",
    "XLA_",
    "FLAX_",
    "NNX_",
    "LIBTPU_",
    "TF_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "PYTORCH_",
    "ATEN_",
    "CUBLAS_",
    "CUDNN_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "HIP_",
    "ROCM_",
    "MIOPEN_",
    "ONEDNN_",
    "DNNL_",
    "MKL_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "OPENBLAS_",
    "VECLIB_",
    "NPY_",
)
# scikit-learn sets the first two once imported, and a dataset from the cache never imports it;
# the third is Terraform's.
_FOREIGN = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TF_CLI_CONFIG_FILE")
# Where a process runs, and what it tells of itself: no number depends on these.
_ELSEWHERE = (
    "system",
    "VISIBLE_DEVICES",
    "_ADDRESS",
    "_PORT",
    "_DIR",
    "_LEVEL",
    "_IDS",
    "PLATFORMS",
)


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
            "processor": machine.processor(),
            "cores": machine.cores(),
        },
        "environment": environment(),
        "git": git(Path(__file__)),
        "dataset": {
            "name": dataset.spec.name,
            "version": dataset.version,
            "title": dataset.title,
            "data_dir": str(folders.data_root(options.data_dir).absolute())
            if dataset.spec.tfds_name is not None
            else None,
            "sha256": dataset.fingerprint,
            "images": {
                part: len(getattr(splits, part).labels) for part in ("train", "validation", "test")
            },
        },
    }


def environment() -> dict[str, str]:
    """The variables that may change a result, if only its last bits (docs/determinism.md)."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES) and name not in _FOREIGN
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two manifests of one run differs that may change the last bits of a result."""
    found = []
    for part in ("device", "machine", "environment", "packages"):
        old, new = before.get(part), now[part]
        if not isinstance(old, dict):
            continue
        names = sorted(name for name in old.keys() | new.keys() if not name.endswith(_ELSEWHERE))
        found += [f"{n}: {old.get(n)}, now {new.get(n)}" for n in names if old.get(n) != new.get(n)]
    if before.get("python") != now["python"]:
        found.append(f"python: {before.get('python')}, now {now['python']}")
    return found


def git(file: Path) -> dict[str, Any] | None:
    """The commit of the repository that tracks a file of ours, and whether others differ from it.

    None if there is none: a repository that merely lies around an installed package says
    nothing about it.
    """
    # GIT_DIR and others, which git sets for a hook, would name another repository
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
        return done.stdout.strip()

    try:
        run("ls-files", "--error-unmatch", "--", file.name)
        return {"commit": run("rev-parse", "HEAD"), "modified": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
