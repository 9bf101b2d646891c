"""Doing a plan within its time: a process a job, each result on disk as soon as it is there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Job, Stage
from data.base import reading, writing
from data.base.errors import UserError
from data.run.manifest import git

REPOSITORY = Path(__file__).parents[2]
SAVING_S = 20.0  # for a training that is told to stop, to save its last epoch
NOISE = ("cuda_timer.cc", "Delay kernel timed out")  # lines of XLA's that no user should see
RESULT: reading.Form = {"job": str, "stage": int, "status": str, "seconds": float}
_LIVE: set[subprocess.Popen] = set()  # jobs that are running
DONE, UNFINISHED, FAILED, CUT = "done", "unfinished", "failed", "cut off"


@dataclass(frozen=True)
class Wish:
    """A stage that is asked for, and for how many seconds at most; None: its share."""

    number: int
    most_s: float | None = None


@dataclass(frozen=True)
class Places:
    """The command's folder, and that of datasets."""

    out: Path
    data: Path

    def result(self, job: Job) -> Path:
        """The file of a job's result."""
        return self.out / "results" / f"{job.name}.json"

    def filled(self, text: str, job: Job) -> str:
        """A word of a job's command with its folders in it."""
        folders = {
            "data": self.data,
            "runs": self.out / "runs",
            "folder": self.out / "jobs" / job.name,
        }
        for key, path in folders.items():
            text = text.replace("{" + key + "}", str(path))
        return text


def status(places: Places, job: Job) -> str | None:
    """How a job ended the last time; None if it has not been begun."""
    file = places.result(job)
    return reading.json_of_form(file, RESULT, "a job's result")["status"] if file.exists() else None


def run(
    plan: Sequence[Stage],
    wishes: Sequence[Wish],
    seconds: float,
    places: Places,
    *,
    dry: bool,
    tell: Callable[[str], None],
    after: Callable[[], None],
    parallel: int = 1,
) -> None:
    """Do the stages that are wished for in `seconds`; `after` is called after each job.

    What is done already is left out, and its time is the other stages'. In a rehearsal (`dry`)
    jobs without one are left out. `parallel`: so many jobs at a time in stages that need not
    have the card alone.
    """
    stages = {stage.number: stage for stage in plan}
    end = time.monotonic() + seconds

    def to_do(wish: Wish) -> list[Job]:
        jobs = [job for job in stages[wish.number].jobs if status(places, job) != DONE]
        return [job for job in jobs if job.dry is not None] if dry else jobs

    for place, wish in enumerate(wishes):
        stage, jobs = stages[wish.number], to_do(wish)
        if not jobs:
            continue
        mine = end - time.monotonic()
        if not dry:  # a rehearsal is of everything, on however slow a machine
            mine *= stage.share / sum(stages[w.number].share for w in wishes[place:] if to_do(w))
        mine = min(mine, wish.most_s) if wish.most_s is not None else mine
        tell(f"stage {stage.number}, {stage.title}: {len(jobs)} jobs, {mine:.0f} s")
        at_a_time = 1 if stage.alone else parallel
        _stage(stage, jobs, time.monotonic() + mine, places, dry, tell, after, at_a_time)


def _stage(
    stage: Stage,
    jobs: Sequence[Job],
    end: float,
    places: Places,
    dry: bool,
    tell: Callable[[str], None],
    after: Callable[[], None],
    parallel: int,
) -> None:
    waiting, running = list(jobs), dict[Future, Job]()

    def do(job: Job, left: float) -> dict[str, Any]:
        return _together(_unfinished(places, job), perform(stage, job, left, places, dry))

    with ThreadPoolExecutor(parallel) as pool:
        try:
            while running or _startable(waiting, ()):
                for job in _startable(waiting, running.values()):
                    if len(running) == parallel:
                        break
                    waiting.remove(job)
                    left = end - time.monotonic()
                    if left >= (SAVING_S if job.resumes or dry else job.needs_s):
                        running[pool.submit(do, job, left)] = job
                    # else it is left out; a shorter one may fit still
                finished = wait(running, return_when=FIRST_COMPLETED).done if running else ()
                for future in finished:
                    job, result = running.pop(future), future.result()
                    writing.write_json(places.result(job), result)
                    tell(f"  {job.name}: {result['status']} in {result['seconds']:.0f} s")
                    after()
        except BaseException:  # stopped: the jobs' processes are sessions of their own
            for process in list(_LIVE):
                _end(process)
            raise


def _startable(waiting: Sequence[Job], running: Iterable[Job]) -> list[Job]:
    """The jobs that no other one, which they need, is still to come before."""
    to_come = {job.name for job in (*waiting, *running)}
    return [job for job in waiting if job.after not in to_come]


def _unfinished(places: Places, job: Job) -> dict[str, Any] | None:
    """The result of a job that was stopped and goes on where it was."""
    file = places.result(job)
    if not file.exists():
        return None
    before = reading.json_of_form(file, RESULT, "a job's result")
    return before if before["status"] == UNFINISHED else None


def _together(before: dict[str, Any] | None, result: dict[str, Any]) -> dict[str, Any]:
    """A result whose `seconds` are those of all its parts, which `parts` has one by one."""
    parts = [*(before.get("parts", [before["seconds"]]) if before else []), result["seconds"]]
    return result | {"seconds": round(sum(parts), 2), "parts": parts}


def perform(stage: Stage, job: Job, limit_s: float, places: Places, dry: bool) -> dict[str, Any]:
    """Run one job, stop it at its limit, and return its result."""
    folder = places.out / "jobs" / job.name
    if not job.resumes and (folder / "log.txt").exists():  # what was cut off is begun anew
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (places.out / "runs").mkdir(exist_ok=True)
    answer, log = folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    module, *arguments = (places.filled(word, job) for word in job.command)
    arguments += [*(job.dry or () if dry else ()), "--json", str(answer)]
    began = time.monotonic()
    with open(log, "wb") as output:
        # a session of its own, so that all of its processes can be ended
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=_environment(job, places),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        _LIVE.add(process)
        try:
            code = _wait(process, limit_s, SAVING_S if job.resumes else 1.0)
        finally:
            _end(process)
            _LIVE.discard(process)
    text = log.read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    good = answer.exists() and code in (0, 1)  # 1: a check that says what it found
    stopped = UNFINISHED if job.resumes else CUT
    return {
        "job": job.name,
        "stage": stage.number,
        "what": job.what,
        "bar": job.bar,
        "status": DONE if good else stopped if code is None or code == 143 else FAILED,
        "code": code,
        "seconds": round(time.monotonic() - began, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rehearsal": dry,
        "command": [module, *arguments],
        "environment": dict(job.environment),
        "noise": sum(any(word in line for word in NOISE) for line in text.splitlines()),
        "last_line": last[:400],
        "git": git(REPOSITORY),
        "result": json.loads(answer.read_text()) if good else None,
    }


def _environment(job: Job, places: Places) -> dict[str, str]:
    own = {key: places.filled(value, job) for key, value in job.environment}
    # both frameworks on one card: JAX must not take three quarters of its memory at once
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
    shared["TRUNK_CACHE_DIR"] = str(places.out / "cache")
    return os.environ | shared | {"PYTHONPATH": str(REPOSITORY)} | own


def _wait(process: subprocess.Popen, limit_s: float, saving_s: float) -> int | None:
    """The exit code; None if it was stopped at its limit, in time to save what it has."""
    try:
        return process.wait(max(1.0, limit_s - saving_s))
    except subprocess.TimeoutExpired:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(saving_s)
    return None


def _end(process: subprocess.Popen) -> None:
    """End what is left of a job, its own processes included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wishes(words: Sequence[str], plan: Sequence[Stage]) -> list[Wish]:
    """`["1:30", "2"]`: stage 1 for 30 seconds at most, then stage 2. UserError for other words."""
    known = {str(stage.number) for stage in plan}
    result = []
    for word in words:
        number, _, most = word.partition(":")
        if number not in known or (most and not most.isdecimal()):
            raise UserError(
                f"--stages {word}: it must be one of {', '.join(sorted(known))}, or one with its "
                "seconds, such as 1:30"
            )
        result.append(Wish(int(number), float(most) if most else None))
    return result
