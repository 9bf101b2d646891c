"""The tasks of a study: each is computed alone, and kept as a file that is whole or absent."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.base import reading, writing
from data.base.errors import UserError
from data.images.splits import split
from data.run.dataset import load_of_recipe
from data.training.framework import within_memory
from parity.study import plants
from parity.study.options import Settings

MOST = 2**31  # bytes of a task: some 20 for each tensor, step and kind of a coupled training
# A thread each: results then depend neither on the machine's cores nor on --jobs. To be set
# before a worker loads JAX and PyTorch.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


@dataclass(frozen=True)
class Task:
    """`design`: coupled, independent or devices; `variant`: a type or a framework."""

    design: str
    variant: str
    place: int

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"{self.design}-{self.variant}-{self.place}"

    def file(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / "tasks" / f"{self.name}.json"


def tasks_of(settings: Settings) -> list[Task]:
    """All tasks, seed by seed."""
    result = []
    for place in range(settings.seeds):
        if "coupled" in settings.designs:
            result += [Task("coupled", dtype, place) for dtype in settings.dtypes]
        if "independent" in settings.designs:
            result += [Task("independent", framework, place) for framework in ("jax", "torch")]
    if settings.devices:
        result.append(Task("devices", "root", 0))
    return result


def perform(task: Task, settings: Settings, data_dir: str | None, folder: Path) -> None:
    """Compute a task and write its file."""
    from parity.checks.processes import prepare_process
    from parity.study.coupled import coupled
    from parity.study.devices import devices
    from parity.study.independent import independent, seed_of
    from trunk_jax.framework import FRAMEWORK as JAX
    from trunk_torch_ref.framework import FRAMEWORK as TORCH

    prepare_process()
    dataset = load_of_recipe(settings.recipe, data_dir)
    classes = len(dataset.spec.class_names)
    recipe = replace(settings.recipe, seed=task.place)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    advice = "free some, or take a smaller --batch-size or fewer --jobs"
    with plants.planted(settings.fault), within_memory(JAX, advice), within_memory(TORCH, advice):
        if task.design == "coupled":
            parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
            value = coupled(
                recipe, parts, classes, task.variant, settings.nodes, settings.controls, say
            )
        else:
            # the same images for all seeds: what varies is the training
            parts = split(dataset, recipe.protocol, settings.recipe.seed, recipe.limit)
            if task.design == "independent":
                seed = seed_of(task.variant, task.place, settings.seeds)
                out = folder / "runs" / f"{task.variant}-seed{seed}"
                value = independent(recipe, parts, classes, task.variant, seed, settings.nodes, out)
            else:
                value = devices(recipe, parts, classes, folder, say)
    say(f"{task.name}: done")
    writing.write_json(task.file(folder), value)


def compute(
    settings: Settings, data_dir: str | None, folder: Path, jobs: int, inline: bool = False
) -> dict[Task, Any]:
    """All tasks; those whose file is there are not computed again.

    `inline`: in this process (for tests); otherwise in `jobs` processes of one thread each.
    """
    work = tasks_of(settings)
    missing = [task for task in work if not task.file(folder).exists()]
    if inline:
        for task in missing:
            perform(task, settings, data_dir, folder)
    elif missing:
        _in_processes(missing, settings, data_dir, folder, jobs)
    return {task: reading.json_file(task.file(folder), MOST) for task in work}


def _in_processes(
    missing: list[Task], settings: Settings, data_dir: str | None, folder: Path, jobs: int
) -> None:
    with workers(jobs) as pool:
        futures = [pool.submit(perform, task, settings, data_dir, folder) for task in missing]
        for count, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{count} of {len(futures)} tasks", file=sys.stderr, flush=True)


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each. They end with the block, with us, and when it is left early.

    UserError if one is killed.
    """
    context = multiprocessing.get_context("spawn")
    with (
        _environment(),
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as pool,
    ):
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                "a process of the study was killed, most likely for want of memory; start it again "
                "to go on, with fewer --jobs"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()  # a task may take minutes; its file is whole or absent
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _environment() -> Iterator[None]:
    """What workers inherit; a user's own XLA_FLAGS stay in front."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    flags = f"{before['XLA_FLAGS'] or ''} {ENVIRONMENT['XLA_FLAGS']}".strip()
    os.environ.update(ENVIRONMENT | {"XLA_FLAGS": flags})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too: its task would be computed twice."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # a worker has one
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
