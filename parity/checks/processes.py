"""Checks in processes of their own: one that breaks is one result, and the others go on."""

import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import torch

from trunk_jax.machine import settings
from trunk_torch_ref.machine import settings as torch_settings
from trunk_torch_ref.machine.devices import float32_products

HOUSE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Broken:
    """What stands where an item's result would, had its work not failed; `why` is one line."""

    why: str


def prepare_process() -> None:
    """Exact arithmetic in this process: no TF32, no fast modes; one thread for PyTorch."""
    settings.apply()
    torch_settings.apply()
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_num_threads(1)
    for place in float32_products():
        place.fp32_precision = "ieee"


def outcomes(
    run: Callable[[Any], Any], items: Sequence[Any], jobs: int, *, fresh: bool = False
) -> Iterator[tuple[int, Any]]:
    """(place of an item, `run(item)` or Broken), as they come, computed in `jobs` processes.

    An exception and a process that dies each break one item. `fresh`: a process for each item.
    Each worker is a pool of one, so that its death is told from that of another. (One pool of
    all fails as a whole when a worker dies; and with `max_tasks_per_child` it hangs when it is
    closed before all is done: python/cpython issue 115634.)

    Example: `for place, result in outcomes(abs, [-1, 2], jobs=2): ...`
    """
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    waiting = deque(enumerate(items))
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future[Any], tuple[int, ProcessPoolExecutor]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                pool = (
                    idle.pop()
                    if idle
                    else ProcessPoolExecutor(1, mp_context=context, initializer=prepare_process)
                )
                place, item = waiting.popleft()
                running[_submit(pool, run, item)] = place, pool
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                place, pool = running.pop(future)
                error = future.exception()
                if fresh or error is not None:
                    pool.shutdown()
                else:
                    idle.append(pool)
                yield place, future.result() if error is None else _told(error)
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise
    finally:
        for pool in (*idle, *(pool for _, pool in running.values())):
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, run: Callable[[Any], Any], item: Any) -> Future[Any]:
    try:
        return pool.submit(_guarded, run, item)
    except BrokenProcessPool as error:  # its worker was killed while it had nothing to do
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def _guarded(run: Callable[[Any], Any], item: Any) -> Any:
    """`run(item)`; an exception is told here, for not every one can be sent to another process."""
    try:
        return run(item)
    except Exception as error:
        return _told(error)


def _told(error: BaseException) -> Broken:
    """One line: what, and where in our own files it came from."""
    if isinstance(error, BrokenProcessPool):
        return Broken("its process died, perhaps killed for want of memory; try fewer --jobs")
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(HOUSE)] or frames
    # a worker's own frames are the last but one of any exception; those of this file say nothing
    where = [f"{Path(f.filename).name}:{f.lineno}" for f in ours if f.filename != __file__][-1:]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Broken(" at ".join([text, *where]))
