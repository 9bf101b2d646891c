"""`python -m trunk_jax`: list the commands, or run one: `trunk train --dataset digits`."""

import runpy
import sys
from pathlib import Path

from data.base.commands import commands, listing
from data.base.errors import UserError, run_command

PACKAGES = ("trunk_jax", "trunk_torch_ref", "parity", "data")
GROUPS = {
    "Datasets": ("data.prepare",),
    "Train": ("trunk_jax.train", "trunk_jax.evaluate", "trunk_jax.ablation"),
    "Use": ("trunk_jax.predict", "trunk_jax.export", "trunk_jax.compress"),
    "Look": ("trunk_jax.report", "trunk_jax.pictures", "trunk_jax.metrics", "trunk_jax.lowpower"),
    "Compare runs": ("trunk_jax.compare", "data.table", "data.versus", "data.grown"),
    "The PyTorch reference": (
        "trunk_torch_ref.train",
        "trunk_torch_ref.evaluate",
        "trunk_torch_ref.lowpower",
    ),
    "Do both frameworks compute the same?": (
        "parity.check",
        "parity.published",
        "parity.pretrained",
        "parity.study",
        "parity.compare",
        "parity.convert",
        "parity.interrupt",
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """List all commands; with arguments, run the command that the first one names.

    UserError if there is no such command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] not in ("-h", "--help", "help"):
        _run(*arguments)
        return
    print("Every command: python -m COMMAND ..., or trunk COMMAND ... (trunk train is")
    print("trunk_jax.train). --help explains its flags.\n")
    print(listing(Path(__file__).parents[1], GROUPS))


def _run(name: str, *arguments: str) -> None:
    package, _, command = name.rpartition(".")
    package = package or "trunk_jax"
    house = Path(__file__).parents[1]
    if package not in PACKAGES or command not in commands(house / package):
        raise UserError(f"no command {name!r}; trunk without one lists them")
    module = f"{package}.{command}"
    if (house / package / command).is_dir():
        module += ".__main__"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def script() -> None:
    """The console script `trunk`."""
    run_command(main)


if __name__ == "__main__":
    script()
