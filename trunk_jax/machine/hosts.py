"""Several processes, one or more a host, joined by `jax.distributed`.

All run the same commands on the same data, step by step together. Process 0 alone writes the
run folder and prints; the others work on a copy of it that is thrown away, so no file system
need be shared. What a process finds out for itself and the others must agree on (free memory,
the data) is compared here. In a single process nothing here does anything.
"""

import hashlib
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils as multihost
from orbax.checkpoint.options import MultiprocessingOptions

from data.base.errors import LibraryFailed, UserError

WAIT = 60  # seconds for which processes wait for one that does not answer


def join() -> None:
    """Join the processes of this job, as Slurm, Open MPI, Kubernetes or TPU describe it.

    UserError if none of them does, or if the processes cannot reach each other.
    """
    if jax.distributed.is_initialized():
        return
    # JAX would catch SIGTERM for a service that we do not use, and the process would live on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _told_of_failure():
            jax.distributed.initialize(
                initialization_timeout=WAIT,
                heartbeat_timeout_seconds=WAIT,
                shutdown_timeout_seconds=WAIT,
            )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, RuntimeError) and re.search("bad_cast|DEADLINE", reason):
            raise LibraryFailed(
                f"--distributed: not all processes of the job found each other in {WAIT} s; see "
                "that all were started and that each can reach the host of process 0"
            ) from None
        raise UserError(
            f"--distributed: no job to join ({reason}); start with srun, mpirun or as an Indexed "
            "Job of Kubernetes (see README.md)"
        ) from error


@contextmanager
def _told_of_failure() -> Iterator[None]:
    """Have a connection that fails raise an error (RuntimeError), where it would abort Python.

    JAX's own call leaves out the argument that decides it. Without these internals (another
    version of JAX) nothing changes.
    """
    try:
        from jax._src.lib import _jax

        connect = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):
        yield
        return

    def connect_and_tell(*arguments: Any, **named: Any) -> Any:
        return connect(*arguments, **named, missed_heartbeat_callback=lambda *_: None)

    _jax.get_distributed_runtime_client = connect_and_tell
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = connect


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def alone() -> MultiprocessingOptions:
    """Orbax's options for checkpoints that this process reads and writes without the others."""
    if not several():
        return MultiprocessingOptions()
    me = jax.process_index()
    return MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me)
    )


def least(value: int | None) -> int | None:
    """The least of all processes' values; None only if all are None."""
    if not several():
        return value
    most = np.iinfo(np.int64).max
    found = int(_gather(np.array([most if value is None else value], np.int64)).min())
    return None if found == most else found


def agree(what: str, value: Callable[[], str]) -> None:
    """UserError if `value` differs between processes. Process 0 takes it first, then the others.

    So a dataset is downloaded and decoded by one of the processes that share a disk.
    """
    if not several():
        return
    mine = value() if first() else ""
    multihost.sync_global_devices(what)
    mine = mine if first() else value()
    digest = np.frombuffer(hashlib.sha256(mine.encode()).digest(), np.uint8)
    for process, other in enumerate(_gather(digest)):
        if other.tobytes() != digest.tobytes():
            raise UserError(
                f"{what} of process {process} differs from that of process "
                f"{jax.process_index()}; start all processes alike"
            )


@contextmanager
def share(folder: Path) -> Iterator[Path]:
    """The run folder for process 0; for others a passing copy, and nothing that they print."""
    if not several():
        yield folder
        return
    packed = _broadcast(_pack(folder) if first() else b"")
    if first():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="trunk-") as scratch, open(os.devnull, "w") as nowhere:
        copy = Path(scratch) / folder.name
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(copy if files.getnames() else scratch, filter="data")
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield copy


def gather(part: np.ndarray, rows: list[int]) -> np.ndarray:
    """The parts of all processes, one after the other; process p has `rows[p]` rows."""
    if not several():
        return part
    padded = np.zeros((max(rows), *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    every = _gather(padded)
    return np.concatenate([every[process, :count] for process, count in enumerate(rows)])


def _gather(values: np.ndarray) -> np.ndarray:
    """Of each process: [processes, ...]. Sent as bytes, for JAX would round 64 bits to 32."""
    found = multihost.process_allgather(np.frombuffer(values.tobytes(), np.uint8))
    return found.view(values.dtype).reshape(-1, *values.shape)


def _broadcast(content: bytes) -> bytes:
    """Process 0's bytes."""
    digits = np.frombuffer(len(content).to_bytes(8, "little"), np.uint8)
    size = int.from_bytes(multihost.broadcast_one_to_all(digits).tobytes(), "little")
    array = np.frombuffer(content.ljust(size), np.uint8)
    return multihost.broadcast_one_to_all(array).tobytes()


def _pack(folder: Path) -> bytes:
    """The files of a folder, if it is one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as files:
        if folder.is_dir():
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                files.add(file, file.relative_to(folder))
    return packed.getvalue()
