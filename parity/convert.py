"""`python -m parity.convert RUN --to torch|jax`: a finished run as one of the other framework.

Weights travel as a PyTorch state_dict. Which array of a layer is which tensor, and how it is
laid out, follows from the layer's class alone (its `LAYOUT`), so the same few lines convert every
model.

A converted run has the tree, ASL, metrics, predictions and summary of the original, its
weights bit for bit, and the other framework's name; `manifest.json` goes on describing the
training and gains a list `converted`. Training checkpoints are not carried over: their form is
each framework's own, and a finished run needs none.
"""

import sys
from pathlib import Path

from data.base.errors import run_command
from data.base.parser import Parser
from parity.pairs.conversion import convert_run


def main(arguments: list[str] | None = None) -> None:
    """Convert as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m parity.convert",
        description="Turn a finished run over to the other framework, weights bit for bit.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--to", choices=("jax", "torch"), required=True, help="the framework to convert to")
    add("--out", metavar="DIR", help="the new run folder (default: RUN-torch or RUN-jax)")
    options = parser.parse_args(arguments)
    folder = Path(options.run)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    out = Path(options.out) if options.out else named.with_name(f"{named.name}-{options.to}")
    counts = convert_run(folder, options.to, out)
    print(
        f"{out}: {counts['nodes']} nodes, {counts['values']:,} numbers, bit for bit the same in "
        "both frameworks"
    )
    print("training checkpoints are not carried over")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
