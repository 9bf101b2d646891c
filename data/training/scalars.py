"""Each epoch's numbers for TensorBoard, beside `metrics.jsonl`.

Written by TensorBoard's own records: the writers in front of them load PyTorch or TensorFlow.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.base.writing import naming

FOLDER = "tensorboard"  # in the run folder
_ABOUT = ("node", "phase", "epoch")  # what a row is about; the others are numbers


@contextmanager
def writing(run: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields what is called with each epoch's numbers, as `stages.reporter` keeps them.

    A curve is called `root/class/train_loss`; its steps are epochs. An interrupted run that goes on
    adds a file, which TensorBoard reads with the others. UserError if the package tensorboard is
    not installed, or the folder cannot be written.
    """
    need_package()
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # a name as TensorBoard gives, which finds files by it
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    file = run / FOLDER / name
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = open(file, "wb")  # noqa: SIM115 (closed below, by its writer)
    records = RecordWriter(stream)
    records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(row: dict[str, Any]) -> None:
        stage = f"{row['node']}/{row['phase']}"
        values = [
            Summary.Value(tag=f"{stage}/{name}", simple_value=value)
            for name, value in row.items()
            if name not in _ABOUT and value is not None
        ]
        event = Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values))
        with naming(file):
            records.write(event.SerializeToString())
            records.flush()

    try:
        yield write
    finally:
        records.close()


def need_package() -> None:
    """UserError if there is nothing to write with."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
