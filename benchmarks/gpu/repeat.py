"""`python -m benchmarks.gpu.repeat FRAMEWORK HOW`: does the same training give the same bits twice?

The training command is run twice, each in a process and a folder of its own and without a cache of
programs, and the weights are compared byte by byte. Its seconds tell what a way costs.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import answer
from data.base.errors import UserError, run_command
from data.base.parser import out_folder
from data.run import runfolder

MODULES = {"jax": "trunk_jax.train", "torch": "trunk_torch_ref.train"}
# What is added to the command, and to XLA's flags. PyTorch has the first two alone.
WAYS = {
    "plain": ((), ""),
    "deterministic": (("--deterministic",), ""),
    "tune-0": ((), "--xla_gpu_autotune_level=0"),
    "exclude": ((), "--xla_gpu_exclude_nondeterministic_ops=true"),
}


def trained(framework: str, how: str, arguments: list[str], folder: Path) -> tuple[str, float]:
    """(SHA-256 of all weights, seconds) of a training into an empty folder.

    UserError, with the command's last line, if it fails.
    """
    extra, flags = WAYS[how]
    if (folder / "config.json").exists():  # a training of before; train refuses what is none
        runfolder.read_config(folder)
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", MODULES[framework], *arguments, *extra, "--out", str(folder)]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"{' '.join(command)} failed: {last}")
    total = hashlib.sha256()
    for file in sorted(folder.glob("weights/*.safetensors")):
        total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest(), seconds


def main(arguments: list[str] | None = None) -> None:
    """Train twice as the flags say."""
    parser = answer.parser("repeat", "Does the same training give the same bits twice?")
    add = parser.add_argument
    add("framework", choices=sorted(MODULES))
    add("how", choices=list(WAYS))
    add("--dataset", default="digits", help="(default: %(default)s)")
    add("--backbone", help="(default: the recipe's first)")
    add("--data-dir", help="folder of datasets (default: TFDS's own)")
    add("--epochs", type=int, default=2, help="of every phase (default: %(default)s)")
    add("--limit", type=int, default=10_000, help="images of each split (default: %(default)s)")
    add("--folder", type=out_folder, required=True, help="for the two runs")
    options = parser.parse_args(arguments)
    if options.framework == "torch" and options.how not in ("plain", "deterministic"):
        raise UserError(f"{options.how} is a way of XLA's; PyTorch has plain and deterministic")
    words = ["--dataset", options.dataset, "--epochs", str(options.epochs)]
    words += ["--limit", str(options.limit)]
    if options.backbone:
        words += ["--backbone", options.backbone]
    if options.data_dir:
        words += ["--data-dir", options.data_dir]
    folder = Path(options.folder)
    runs = [
        trained(options.framework, options.how, words, folder / f"run-{number}")
        for number in (1, 2)
    ]
    same = runs[0][0] == runs[1][0]
    value = {
        "framework": options.framework,
        "how": options.how,
        "same": same,
        "weights_sha256": [weights for weights, _ in runs],
        "seconds": [round(seconds, 2) for _, seconds in runs],
    }
    text = f"{options.framework}, {options.how}: {'the same bits' if same else 'other bits'}"
    answer.give(value, options.json, f"{text}, {runs[0][1]:.1f} and {runs[1][1]:.1f} s")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
