"""The trained trees that come with this software, by name."""

from os import PathLike
from pathlib import Path

from data.base import reading
from data.base.errors import UserError
from data.inference import hub

FOLDER = Path(__file__).parents[2] / "checkpoints"  # beside our packages, in a clone and installed
SHIPPED = {
    "cifar10": "cifar10-efficient",
    "cifar100": "cifar100-auto",
    "emnist": "emnist-efficient",
    "svhn": "svhn-efficient",
}


def run_of(name: str | Path) -> Path:
    """The run folder that a name means: one of `SHIPPED`, one on the hub, or a folder.

    UserError if a tree of that name is not here, or there is no such folder.

    Example:
      >>> run_of("cifar10").name
      'cifar10-efficient'

    """
    if not isinstance(name, str | PathLike):
        raise UserError(
            f"a run is named by a folder, or by a name such as {next(iter(SHIPPED))!r}, and this "
            f"is a {type(name).__name__}"
        )
    if isinstance(name, str) and name in SHIPPED:  # a folder of that name is called ./cifar10
        folder = FOLDER / SHIPPED[name]
        if not folder.is_dir():
            raise UserError(
                f"the tree {name!r} is not in {FOLDER}: this installation is without the shipped "
                "trees; take checkpoints/ of the repository, and name the folder"
            )
        return folder
    if isinstance(name, str) and name.startswith(hub.PREFIX):
        return hub.fetch(name)
    folder = reading.at_home(Path(name))
    if not folder.is_dir():
        raise UserError(
            f"there is no run folder {folder}; the trees that come with this are called "
            f"{', '.join(SHIPPED)}"
        )
    return folder
