"""`python -m data.prepare DATASET`: download a dataset into a TFDS folder, without TensorFlow."""

import sys

from data.base.errors import run_command
from data.base.parser import Parser
from data.images.datasets import PREFIX, check, unknown
from data.images.folders import data_root, prepared_folder
from data.images.originals import PREPARED, prepare
from data.images.specs import SPECS


def main(arguments: list[str] | None = None) -> None:
    """The command: prepare one dataset, or say where it is already."""
    parser = Parser(
        prog="python -m data.prepare",
        description="Download a dataset into a TFDS folder. A download that was interrupted goes "
        "on where it stopped.",
    )
    known = {name: entry for name, entry in SPECS.items() if entry.tfds_name}
    known |= {f"{PREFIX}{name}": unknown(name) for name in PREPARED}
    parser.add_argument("dataset", choices=list(known))
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="TFDS data folder, made if it is not there (default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    options = parser.parse_args(arguments)
    chosen, root = known[options.dataset], data_root(options.data_dir)
    folder = prepared_folder(chosen, root)
    if folder is not None:
        check(chosen, folder)
        print(f"already prepared: {folder}")
    else:
        print(f"prepared: {prepare(chosen, root)}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
