"""A process that holds one framework, and runs a round whenever it is told to."""

import importlib
import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data.base import machine


def start(framework: str, folder: str) -> Callable[..., Any]:
    """A function that asks a new process of one framework; RuntimeError if it could not answer."""
    here, there = get_context("spawn").Pipe()
    get_context("spawn").Process(
        target=_serve, args=(there, framework, folder), daemon=True
    ).start()
    there.close()

    def ask(*request: Any) -> Any:
        here.send(request)
        answer, error = here.recv()
        if error is not None:
            raise RuntimeError(error)
        return answer

    return ask


def _serve(connection: Connection, framework: str, folder: str) -> None:
    """Answer requests: (case, form) with seconds a unit, or a function's name and arguments.

    The first request for a case and form prepares it; only the latest case is kept.
    """
    os.chdir(folder)  # compilers leave files behind
    if framework == "jax":
        importlib.import_module("trunk_jax.machine.backend").start()
        side = importlib.import_module("benchmarks.ours")
    else:
        importlib.import_module("trunk_torch_ref.machine.settings").apply()
        import torch

        side = importlib.import_module("benchmarks.theirs")
        torch.set_num_threads(machine.cores())
    ready: dict[Any, Callable[[], float]] = {}
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(request[0], str):
                answer = getattr(side, request[0])(*request[1:])
            else:
                ready = {key: run for key, run in ready.items() if key[0] == request[0]}
                if request not in ready:
                    ready[request] = side.prepare(*request, Path(folder))
                    if request[0].kind != "grow":  # whose first call is what is measured
                        ready[request]()
                answer = ready[request]()
            connection.send((answer, None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))
