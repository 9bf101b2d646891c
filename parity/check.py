"""`python -m parity.check`: show, with numbers, that both frameworks compute the same TRUNK."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from data.base import machine
from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.base.progress import watching, working
from data.base.writing import save_json
from data.recipes import recipe as recipes
from data.run import derived
from parity.checks import baselines, faults, modes, optimisers, processes, report
from parity.checks.checkpoint import check_checkpoint
from parity.checks.lowpower import check_lowpower
from parity.checks.nodes import check_node
from parity.checks.program import check_program
from parity.checks.stopping import check_exits
from parity.checks.tolerance import Check
from parity.checks.training import (
    check_likelihood,
    check_steps,
    check_tree,
    joint_recipe,
    small_recipe,
)
from parity.pairs.families import FAMILIES
from parity.pairs.passes import DEVICE
from trunk_jax.interchange.extra import need
from trunk_jax.machine import backend
from trunk_torch_ref.machine import settings as torch_settings


@dataclass(frozen=True)
class Task:
    """A piece of work for one process: `run(*arguments)` gives checks."""

    name: str
    run: Callable[..., list[Check]]
    arguments: tuple[Any, ...]


def tasks(seed: int) -> list[Task]:
    """All checks, the longest first."""
    families = {family.name: family for family in FAMILIES}
    ours, published = (small_recipe(faults=faults) for faults in (False, True))
    result = [
        Task(
            "a whole tree, the release's faults on",
            check_tree,
            (published, "digits tree, the release's faults on"),
        ),
        Task("a whole tree", check_tree, (ours, "digits tree")),
        Task("a whole tree, joint", check_tree, (joint_recipe(), "digits tree, trained jointly")),
    ]
    result += [
        Task(f"{framework}'s program, {case}", check_program, (framework, case))
        for framework in ("jax", "torch")
        for case in ("grown", "faulty", "joint")
    ]
    result += [Task(family.name, check_node, (family, seed)) for family in FAMILIES]
    for family, dataset, backbone in (
        ("cifar10 vgg root", "cifar10", "vgg"),
        ("digits mobilenet root", "cifar10", "mobilenet"),
    ):
        recipe = recipes.load("published", dataset, backbone)
        result.append(Task(f"steps, {family}", check_steps, (families[family], recipe, seed)))
    result.append(Task("likelihood", check_likelihood, (seed,)))
    result.append(Task("early stopping", check_exits, (seed,)))
    result.append(Task("low-power background", check_lowpower, (seed,)))
    result += [
        Task(name, optimisers.check_phase, (name, phase, seed))
        for phase, name in optimisers.phases().items()
    ]
    return result


def baseline_tasks(which: str, seed: int) -> list[Task]:
    """The checks of the monolithic models: `full`, or `small` ones of the same kinds."""
    cases = baselines.FULL if which == "full" else baselines.SMALL
    return [Task(case.name, baselines.check_baseline, (case, seed)) for case in cases]


def exported_tasks(seed: int) -> list[Task]:
    """Each kind of node network as ONNX in onnxruntime."""
    from parity.checks import exported_nodes  # it needs packages of an optional extra

    return [Task(f.name, exported_nodes.check_node, (f, seed)) for f in FAMILIES]


def perform(task: Task) -> list[Check]:
    """A task's checks."""
    return task.run(*task.arguments)


def run(work: Sequence[Task], jobs: int, *, fresh: bool = False) -> list[Check]:
    """The checks of all tasks, in the order of the tasks, on `jobs` processes.

    A task that breaks is a line on standard error and a check that failed. With `fresh` each task
    has a process of its own, so that its memory can be told.
    """
    results: dict[int, list[Check]] = {}
    console = Console(file=sys.stderr)

    def state() -> str:
        found = sum(len(checks) for checks in list(results.values()))
        return f"checking: {len(results)} of {len(work)} tasks done, {found:,} checks"

    live = Progress(console=console, disable=not console.is_terminal, transient=True)
    with live as progress, watching(state):
        bar = progress.add_task("checking", total=len(work))
        for place, found in processes.outcomes(perform, work, jobs, fresh=fresh):
            name = work[place].name
            if isinstance(found, processes.Broken):
                line = f"{name}: the check broke: {found.why}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                found = [broken(name, found.why)]
            results[place] = found
            progress.update(bar, advance=1, description=name)
    return [check for place in range(len(work)) for check in results[place]]


def broken(name: str, why: str) -> Check:
    """The check that stands for those of a task that broke: failed, with the reason."""
    return Check(name, "the check broke", "-", math.inf, math.inf, "-", False, why)


def main(arguments: list[str] | None = None) -> int:
    """Check as the flags say: 0 if all is well, 1 if not."""
    parser = Parser(
        prog="python -m parity.check",
        description="Compare the JAX and the PyTorch TRUNK: networks, training, decisions.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="RUN",
        help="check a trained tree on its dataset's test split instead (default: none)",
    )
    add(
        "--runtime",
        choices=("onnxruntime",),
        help="check it as ONNX in this runtime too: the "
        "tree of --checkpoint; without one, each kind of node network (default: none)",
    )
    add(
        "--self-test",
        action="store_true",
        help="plant faults one at a time and see that each is caught (default: off)",
    )
    add(
        "--modes",
        action="store_true",
        help="add a table of what TF32 (on a GPU) and bfloat16 cost (default: on a GPU only)",
    )
    add(
        "--baselines",
        nargs="?",
        const="full",
        choices=("full", "small"),
        help="check the "
        "monolithic models instead: at their published sizes, or, in a minute or two, small "
        "ones of the same kinds (default: off)",
    )
    add(
        "--only",
        metavar="NAME",
        action="append",
        help="only the tasks of this name or with this "
        "in their names; again for more (default: all)",
    )
    add("--list", action="store_true", help="print the tasks' names and do nothing (default: off)")
    add(
        "--quick",
        action="store_true",
        help="the nodes for digits, which are of each kind, "
        "the optimisers and the likelihood; no training (default: off)",
    )
    add("--seed", type=int, default=0, help="of weights and inputs (default: %(default)s)")
    add(
        "--jobs",
        type=int,
        default=machine.cores(),
        help="processes (default: the number of cores, %(default)s)",
    )
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets, for --checkpoint (default: the run's own)",
    )
    add(
        "--out",
        type=out_folder,
        help="folder for report.json and report.html (default: runs/parity; of "
        "--checkpoint runs/<the run's name>/parity, where report looks for it)",
    )
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    if options.runtime and (options.self_test or options.baselines):
        raise UserError("--runtime goes with --checkpoint, or alone")
    if options.runtime:
        need("onnx", "onnxruntime")
    if not 1 <= options.jobs <= 256 or options.seed < 0:
        raise UserError("--jobs must be 1 to 256 and --seed 0 or more")
    work = _work(options)
    if options.list:
        print("\n".join(task.name for task in work))
        return 0
    backend.start()
    torch_settings.apply()
    if options.self_test:
        outcome = faults.self_test(options.jobs)
        if options.json:
            save_json(options.json, {"faults": outcome})
        return 0 if all(fault["caught_by"] for fault in outcome) else 1
    out = Path(options.out or "runs/parity")
    if options.checkpoint and not options.out:
        out = derived.place(Path(options.checkpoint)) / "parity"
    if options.checkpoint:
        processes.prepare_process()
        torch.set_num_threads(options.jobs)
        with working(f"checking {options.checkpoint}"):
            checks = check_checkpoint(
                Path(options.checkpoint), options.data_dir, onnxruntime=options.runtime is not None
            )
    else:
        checks = run(work, options.jobs, fresh=options.baselines is not None)
    report.print_table(checks)
    costs = _costs(options)
    report.print_costs(costs)
    if options.checkpoint and not options.out:
        derived.claim(Path(options.checkpoint))
    report.write(out, checks, options.seed, costs)
    print(f"{report.verdict(checks)}; report in {out}")
    if options.json:
        save_json(options.json, report.as_json(checks, options.seed, costs))
    return 0 if all(check.passed for check in checks) else 1


def _work(options: argparse.Namespace) -> list[Task]:
    """The tasks that the flags ask for.

    UserError if there is none of a name, or if the flags choose among tasks where none are.
    """
    if (options.checkpoint or options.self_test) and (
        options.only or options.list or options.quick
    ):
        raise UserError(
            "--only, --list and --quick choose among tasks; --checkpoint and --self-test have none"
        )
    if options.baselines and options.quick:
        raise UserError("--quick is of the TRUNK's checks; of baselines take --baselines small")
    if options.runtime and options.quick:
        raise UserError("--quick is of the TRUNK's checks; with --runtime choose by --only")
    if options.checkpoint or options.self_test:
        return []
    if options.baselines:
        work = baseline_tasks(options.baselines, options.seed)
    else:
        work = (exported_tasks if options.runtime else tasks)(options.seed)
    if options.quick:
        work = quick(work)
    for name in options.only or ():
        if not any(name in task.name for task in work):
            raise UserError(f"--only {name}: no task has that in its name; see --list")
    if options.only:
        exact = {task.name for task in work} & set(options.only)
        work = [
            task
            for task in work
            if task.name in exact or any(n in task.name for n in options.only if n not in exact)
        ]
    return work


def quick(work: Sequence[Task]) -> list[Task]:
    """The nodes for digits, which are of each kind, the optimisers and the likelihood."""
    return [
        task
        for task in work
        if task.run in (optimisers.check_phase, check_likelihood)
        or (task.run is check_node and task.arguments[0].dataset == "digits")
    ]


def _costs(options: argparse.Namespace) -> list[modes.Cost]:
    on_gpu = DEVICE.type == "cuda"
    if options.checkpoint or options.baselines or not (options.modes or on_gpu):
        return []
    offered = [mode for mode in modes.MODES if on_gpu or mode != "tf32"]
    return modes.costs(FAMILIES, options.seed, offered)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
