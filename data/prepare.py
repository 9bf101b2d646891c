"""`python -m data.prepare DATASET`: download a dataset into a TFDS folder, without TensorFlow."""

from data.base.errors import run_command
from data.images.datasets import SPECS, data_root, prepared_folder
from data.images.originals import prepare
from data.run.options import Parser


def main() -> None:
    """The command: prepare one dataset, or say where it is already."""
    parser = Parser(
        prog="python -m data.prepare", description="Download a dataset into a TFDS folder."
    )
    choices = [name for name, entry in SPECS.items() if entry.tfds_name]
    parser.add_argument("dataset", choices=choices)
    parser.add_argument(
        "--data-dir", help="TFDS data folder (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    arguments = parser.parse_args()
    chosen, root = SPECS[arguments.dataset], data_root(arguments.data_dir)
    folder = prepared_folder(chosen, root)
    if folder is not None:
        print(f"already prepared: {folder}")
    else:
        print(f"prepared: {prepare(chosen, root)}")


if __name__ == "__main__":
    run_command(main)
