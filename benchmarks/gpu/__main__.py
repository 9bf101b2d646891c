"""`python -m benchmarks.gpu`: all that is to be measured on a GPU, in order of worth.

It stops within its minutes, goes on where it stopped when it is called again, and leaves one
archive with everything that it has.
"""

import sys
import time
from pathlib import Path

from benchmarks.gpu import archive, packing, plan, rehearsal, runner
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target

CLOSING_S = 10.0  # for the last archive


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say."""
    began = time.monotonic()
    parser = Parser(
        prog="python -m benchmarks.gpu",
        description="Do the stages of docs/gpu.md on this machine's GPU, each for its share of "
        "the time, and write each result as soon as it is there.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="for everything (default: %(default)s)")
    add(
        "--stages",
        nargs="+",
        metavar="N[:SECONDS]",
        help="which, in this order, the first ones "
        "perhaps for so many seconds at most, e.g. 1:30 2 (default: all)",
    )
    add(
        "--jobs",
        nargs="+",
        metavar="NAME",
        help="only these of them, in this order; a name may hold *, e.g. 'step-cifar10-*' "
        "(default: all, in the order of --list)",
    )
    add(
        "--parallel",
        type=int,
        default=1,
        metavar="N",
        help="so many jobs at a time in the stages whose jobs are not timed (default: "
        "%(default)s; most of a short job is compiling, for which the card is not needed)",
    )
    add(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="folder of results and runs; what is in it is gone on with",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="folder of datasets (default: data in --out, where "
        "python -m benchmarks.gpu.packing puts them)",
    )
    add(
        "--archive",
        type=target,
        metavar="FILE",
        help="one zip of under 16 MiB with what is in "
        "--out, written anew after each job (default: none)",
    )
    add("--from", dest="before", metavar="FILE", help="go on from such a zip (default: none)")
    add("--list", action="store_true", help="name stages and jobs and do no more (default: off)")
    add(
        "--dry-run",
        action="store_true",
        help="a rehearsal on any machine: random images, "
        "sizes that take seconds, nothing to be believed (default: off)",
    )
    options = parser.parse_args(arguments)
    if not 0.1 <= options.minutes <= 600:
        raise UserError("--minutes must be 0.1 to 600")
    if not 1 <= options.parallel <= 16:
        raise UserError("--parallel must be 1 to 16")
    stages = plan.chosen(plan.stages(), options.jobs or ["*"])
    if options.list:
        for stage in stages:
            print(f"stage {stage.number}, {stage.title}, share {stage.share:g}")
            print(*(f"  {job.name}: {job.what}" for job in stage.jobs), sep="\n")
        return
    if not options.out:
        raise UserError("--out DIR is needed: a folder of results and runs")
    wanted = runner.wishes(options.stages or [str(stage.number) for stage in stages], stages)
    out = Path(options.out).absolute()
    if options.before:
        archive.unpack(Path(options.before), out)
    data = Path(options.data_dir).absolute() if options.data_dir else out / "data"
    if options.dry_run:
        rehearsal.write(data)
    file = options.archive

    def after() -> None:
        if file is not None:
            archive.write(out, file)

    try:
        runner.run(
            stages,
            wanted,
            60 * options.minutes - CLOSING_S - (time.monotonic() - began),
            runner.Places(out, data),
            dry=options.dry_run,
            tell=lambda line: print(line, flush=True),
            after=after,
            parallel=options.parallel,
        )
    finally:
        after()
    if missing := packing.missing(data):
        print(f"not there, so jobs on it failed: {', '.join(missing)} in {data}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
