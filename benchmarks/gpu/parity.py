"""`python -m benchmarks.gpu.parity`: the checks of `parity.check`, as many as fit into a time.

In one process, one after the other, the quickest kinds first and without TF32: several processes on
one GPU wait for each other's compiling, and the whole of it had not ended after 200 s.
"""

import sys
import time
from dataclasses import asdict

from benchmarks.gpu import answer
from data.base.errors import run_command
from parity import check
from parity.checks import processes


def main(arguments: list[str] | None = None) -> int:
    """Check as the flags say: 0 if all that was checked is well, 1 if not."""
    parser = answer.parser("parity", "Parity's checks, until a time is up.")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="after which no other kind of check is begun; one always is (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    processes.prepare_process()
    work = list(reversed(check.tasks(0)))  # that list has the longest first
    began, checks = time.monotonic(), []
    done: list[str] = []
    for task in work:
        if done and time.monotonic() - began > options.seconds:
            break
        checks += check.perform(task)
        done.append(task.name)
    failed = [asdict(each) for each in checks if not each.passed]
    value = {
        "checks": len(checks),
        "passed": len(checks) - len(failed),
        "failed": failed,
        "kinds_done": done,
        "kinds_left": [task.name for task in work if task.name not in done],
        "seconds": round(time.monotonic() - began, 1),
    }
    text = f"{value['passed']} of {len(checks)} checks pass, {len(done)} of {len(work)} kinds"
    answer.give(value, options.json, text)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
