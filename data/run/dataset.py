"""The dataset that a run was trained on."""

from pathlib import Path

from data.images.datasets import Dataset, load
from data.run import runfolder


def load_of_run(run: Path, name: str, data_dir: str | Path | None = None) -> Dataset:
    """The dataset of a run: in `data_dir`, else where the run was trained with it.

    It is not downloaded: a file says which it is, and where, and nobody has asked for it.
    """
    return load(name, data_dir or runfolder.data_dir(run), fetch=False)
