"""What the command does: compute the pieces, then write all that follows from them."""

from data import datasets, runfolder
from parity.study import pieces
from parity.study.options import config, options_of


def main(arguments: list[str], inline: bool = False) -> int:
    """Run a study, or go on with it. UserError for anything a user can put right.

    `inline`: without worker processes.
    """
    options = options_of(arguments)
    settings, out = options.settings, options.out
    dataset = datasets.load(settings.recipe.dataset, options.data_dir)
    with runfolder.lock(out):
        runfolder.create(
            out,
            {"format": runfolder.FORMAT, "study": config(settings, dataset.fingerprint)},
            resume=True,
        )
        found = pieces.compute(settings, options.data_dir, out, options.jobs, inline)
    print(len(found))
    return 0
