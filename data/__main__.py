"""`python -m data`: list the commands that prepare datasets and compare runs."""

from pathlib import Path

from data.base.commands import listing
from data.base.errors import run_command

GROUPS = {
    "Datasets": ("data.prepare",),
    "Finished runs": ("data.grown", "data.table", "data.versus"),
}


def main() -> None:
    """Print the list."""
    print(f"python -m COMMAND --help explains one.\n\n{listing(Path(__file__).parents[1], GROUPS)}")


if __name__ == "__main__":
    run_command(main)
