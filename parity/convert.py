"""`python -m parity.convert RUN --to torch|jax`: a finished run as one of the other framework.

Weights travel as a PyTorch state_dict. Which array of a layer is which tensor, and how it is
laid out, follows from the layer's class alone (its `LAYOUT`), so the same few lines convert every
model.

A converted run has the tree, ASL, metrics, predictions, summary and rule of early stopping of the
original, its weights bit for bit, and the other framework's name; `manifest.json` goes on
describing the training and gains a list `converted`. Training checkpoints are not carried over:
their form is each framework's own, and a finished run needs none.

With a file of weights (.pth, .pt) in place of RUN it writes them as safetensors, for `--weights`.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_place
from data.base.progress import working
from data.base.writing import check_target, is_regular, is_stdout, need_new, save_bytes
from data.run import derived
from parity.pairs import published_files
from parity.pairs.conversion import convert_run
from trunk_jax.machine import backend
from trunk_torch_ref.machine import settings as torch_settings


def convert_file(file: Path, out: Path) -> int:
    """Write the state_dict of a PyTorch file as safetensors, with its plain names. How many.

    UserError if the file holds no state_dict, if `out` exists, or if it cannot be written.
    """
    if is_regular(out) or out.is_dir():  # others, such as a pipe, are written to
        need_new(out)
    check_target(out)
    weights = published_files.read_state_dict(file)
    contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
    save_bytes(out, save_safetensors(contiguous))
    return len(weights)


def main(arguments: list[str] | None = None) -> None:
    """Convert as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m parity.convert",
        description="Turn a finished run over to the other framework, weights bit for bit.",
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="the run folder, or a file of weights (.pth, .pt) that is to become safetensors",
    )
    add("--to", choices=("jax", "torch"), help="the framework to convert a run to (default: none)")
    add(
        "--out",
        type=out_place,
        metavar="DIR",
        help="the new run folder, or file (default: runs/<name>-torch or -jax; FILE.safetensors)",
    )
    options = parser.parse_args(arguments)
    backend.start()
    torch_settings.apply()
    folder = Path(options.run)
    if folder.is_file():
        if options.to is not None:
            raise UserError(f"{folder} is a file, and --to is for run folders; leave it out")
        out = Path(options.out) if options.out else folder.with_suffix(".safetensors")
        count = convert_file(folder, out)
        print(f"{out}: {count} tensors", file=sys.stderr if is_stdout(out) else sys.stdout)
        return
    if not folder.exists():
        raise UserError(f"{folder} is missing: name a run folder, or a file of weights")
    if options.to is None:
        raise UserError("--to is missing: convert the run to torch or to jax?")
    out = Path(options.out) if options.out else derived.named(folder, f"-{options.to}")
    with working(f"converting {folder} to {options.to}"):
        counts = convert_run(folder, options.to, out)
    print(
        f"{out}: {counts['nodes']} nodes, {counts['values']:,} numbers, bit for bit the same in "
        "both frameworks"
    )
    print("training checkpoints are not carried over")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
