"""`python -m parity`: list the commands that compare JAX and PyTorch."""

from pathlib import Path

from data.base.commands import listing
from data.base.errors import run_command

GROUPS = {
    "Do both frameworks compute the same?": (
        "parity.check",
        "parity.published",
        "parity.pretrained",
        "parity.study",
    ),
    "Do your two models?": ("parity.compare",),
    "Runs": ("parity.convert", "parity.interrupt"),
}


def main() -> None:
    """Print the list."""
    print(f"python -m COMMAND --help explains one.\n\n{listing(Path(__file__).parents[1], GROUPS)}")


if __name__ == "__main__":
    run_command(main)
