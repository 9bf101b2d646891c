"""The pieces of a study: each is computed alone, and kept as a file that is whole or absent."""

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
from data.images import datasets
from data.images.splits import split
from data.training.framework import within_memory
from parity.study import plants
from parity.study.options import Settings

MOST = 2**31  # bytes of a piece: some 20 for each tensor, step and kind of a coupled training
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
class Piece:
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
        return folder / "pieces" / f"{self.name}.json"


def pieces_of(settings: Settings) -> list[Piece]:
    """All pieces, seed by seed."""
    result = []
    for place in range(settings.seeds):
        if "coupled" in settings.designs:
            result += [Piece("coupled", dtype, place) for dtype in settings.dtypes]
        if "independent" in settings.designs:
            result += [Piece("independent", framework, place) for framework in ("jax", "torch")]
    if settings.devices:
        result.append(Piece("devices", "root", 0))
    return result


def perform(piece: Piece, settings: Settings, data_dir: str | None, folder: Path) -> None:
    """Compute a piece and write its file."""
    from parity.checks.processes import prepare_process
    from parity.study.coupled import coupled
    from parity.study.devices import devices
    from parity.study.independent import independent, seed_of
    from trunk_jax.framework import FRAMEWORK as JAX
    from trunk_torch_ref.framework import FRAMEWORK as TORCH

    prepare_process()
    dataset = datasets.load(settings.recipe.dataset, data_dir)
    classes = len(dataset.spec.class_names)
    recipe = replace(settings.recipe, seed=piece.place)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    advice = "free some, or take a smaller --batch-size or fewer --jobs"
    with plants.planted(settings.fault), within_memory(JAX, advice), within_memory(TORCH, advice):
        if piece.design == "coupled":
            parts = split(dataset, recipe.protocol, recipe.seed, recipe.limit)
            value = coupled(
                recipe, parts, classes, piece.variant, settings.nodes, settings.controls, say
            )
        else:
            # the same images for all seeds: what varies is the training
            parts = split(dataset, recipe.protocol, settings.recipe.seed, recipe.limit)
            if piece.design == "independent":
                seed = seed_of(piece.variant, piece.place, settings.seeds)
                out = folder / "runs" / f"{piece.variant}-seed{seed}"
                value = independent(
                    recipe, parts, classes, piece.variant, seed, settings.nodes, out
                )
            else:
                value = devices(recipe, parts, classes, folder, say)
    say(f"{piece.name}: done")
    writing.write_json(piece.file(folder), value)


def compute(
    settings: Settings, data_dir: str | None, folder: Path, jobs: int, inline: bool = False
) -> dict[Piece, Any]:
    """All pieces; those whose file is there are not computed again.

    `inline`: in this process (for tests); otherwise in `jobs` processes of one thread each.
    """
    work = pieces_of(settings)
    missing = [piece for piece in work if not piece.file(folder).exists()]
    if inline:
        for piece in missing:
            perform(piece, settings, data_dir, folder)
    elif missing:
        _in_processes(missing, settings, data_dir, folder, jobs)
    return {piece: reading.json_file(piece.file(folder), MOST) for piece in work}


def _in_processes(
    missing: list[Piece], settings: Settings, data_dir: str | None, folder: Path, jobs: int
) -> None:
    with workers(jobs) as pool:
        futures = [pool.submit(perform, piece, settings, data_dir, folder) for piece in missing]
        for count, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{count} of {len(futures)} pieces", file=sys.stderr, flush=True)


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
                worker.kill()  # a piece may take minutes; its file is whole or absent
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
    """A worker whose parent was killed ends too: its piece would be computed twice."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
