"""`python -m parity.interrupt`: trainings killed at random moments end as if nothing had been.

A command is run once undisturbed. Then it is run again and again: at a random moment it is sent
SIGKILL, SIGTERM or SIGINT, or the disk or the memory that it may use is taken away, and it is
started anew with the same words, until it ends by itself. Whatever it then leaves must be the
same, bit for bit, times aside. Of a training the folder is also evaluated after every kill.
Exit code 1 if anything differs, or if a process did not end as it should have.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_folder, target
from data.base.writing import naming, save_json
from data.run import runfolder
from data.run.options import EvaluateOptions

KINDS = ("kill", "term", "int", "disk", "memory")
FRAMEWORKS = {"jax": "trunk_jax", "torch": "trunk_torch_ref"}
TRAINING = "--backbone vgg --limit 300 --batch-size 32 --volatility 1.2"
OUT = "{out}"  # in a command: the folder
MARK = ".interrupt"  # in a folder that is ours to empty

_SIGNALS = {"kill": "SIGKILL", "term": "SIGTERM", "int": "SIGINT"}  # not every system has all
_CODES = {"term": 143, "int": 130}
_TIMES = ("seconds", "started", "resumed", "time")  # keys of JSON files that no two runs share
_HANGS_S = 120.0  # a process that has not ended so long after it was disturbed hangs
_EARLY = 0.2  # the share of moments that may come before a process has begun to work
_DEAF_S = 10.0  # a process that works on for so long after a signal has not heard it
_TRIES = 20  # for a moment: a process may end before it comes
# With state saved after every epoch, so that moments fall into the saving as well.
_START = """
import runpy, sys
from {package}.training import checkpoint
checkpoint.SECONDS_BETWEEN = {seconds}
sys.argv[0] = "{package}.train"
runpy.run_module("{package}.train", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Subject:
    """A command to disturb, in the environment as it is now.

    `evaluate` is called with its folder after every kill.
    """

    name: str
    command: tuple[str, ...]
    evaluate: Callable[[Path], str] | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Moment:
    """What was done to a process, after how many seconds, and how it took it.

    Attributes:
      kind: one of `KINDS`.
      after: seconds from its first write, or from its start.
      listened: whether it had begun to handle SIGTERM by then.
      code: its exit code; minus the signal's number if that ended it.
      ended: seconds from the signal to its end.
      said: the last line of its standard error, or all of it where there is a problem.
      evaluated: what the folder evaluates to, or why it does not; None if it was not tried.
      problem: what is wrong with that; None if all is well.

    """

    kind: str
    after: float
    listened: bool
    code: int
    ended: float
    said: str
    evaluated: str | None
    problem: str | None


def training(framework: str, flags: str, seconds: float) -> Subject:
    """The train command of a framework, its state saved at most every so many `seconds`."""
    code = _START.format(package=FRAMEWORKS[framework], seconds=seconds)
    words = [*flags.split(), "--out", OUT, "--resume"]
    return Subject(
        framework, (sys.executable, "-c", code, *words), lambda run: evaluated(framework, run)
    )


def evaluated(framework: str, run: Path) -> str:
    """What `evaluate` says of a run folder, one line whether it is finished or not."""
    from data.training.evaluate import evaluate

    work: Callable[[EvaluateOptions], None]
    if framework == "jax":
        from trunk_jax import framework as ours

        work = partial(evaluate, ours.FRAMEWORK)
    else:
        from trunk_torch_ref import framework as theirs

        work = partial(evaluate, theirs.FRAMEWORK)
    found = run.with_name("evaluated.json")
    try:
        # quietly: only the JSON is looked at
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            work(EvaluateOptions(run, "test", None, found))
    except UserError as error:
        return str(error)
    value = runfolder.read_json(found)
    return f"{value['correct']} of {value['total']}"


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file that a command has left, times aside, by name.

    Of an Orbax checkpoint its arrays, for its own files tell the time.
    """
    seals = sorted(folder.rglob("seal.json"))
    result = {str(seal.parent.relative_to(folder)): _arrays(seal) for seal in seals}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name == ".lock" or any(seal.parent in file.parents for seal in seals):
            continue
        result[str(file.relative_to(folder))] = hashlib.sha256(_timeless(file)).hexdigest()
    return result


def _timeless(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix not in (".json", ".jsonl"):
        return content
    values = (
        [json.loads(line) for line in content.splitlines()]
        if file.suffix == ".jsonl"
        else (json.loads(content))
    )
    return json.dumps(_without_times(values), sort_keys=True).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def _arrays(seal: Path) -> str:
    """A digest of the arrays that an Orbax checkpoint restores."""
    import jax
    import orbax.checkpoint as ocp

    step, total = seal.parent / str(runfolder.read_json(seal)["epoch"]), hashlib.sha256()
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("last", "best"):
            state = checkpointer.restore(step.absolute() / item)
            for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
                array = np.asarray(leaf)
                total.update(
                    f"{item}{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode()
                )
                total.update(array.tobytes())
    return total.hexdigest()


def need_ours(folder: Path) -> None:
    """UserError if there is something that `disturb`, which empties its folder, did not make."""
    if not os.path.lexists(folder):
        return
    ours = folder.is_dir() and not folder.is_symlink()
    if not ours or not ((folder / MARK).is_file() or not any(folder.iterdir())):
        raise UserError(
            f"{folder} exists, and this command empties its folder: nothing in it says that "
            "parity.interrupt made it (older versions left no mark); remove it if you need "
            "nothing of it, or choose another --out"
        )


def disturb(
    subject: Subject,
    moments: int,
    seed: int,
    folder: Path,
    tell: Callable[[str], None],
    kinds: tuple[str, ...] = KINDS,
) -> dict[str, Any]:
    """Run a command undisturbed, then disturbed at so many moments; what was found.

    `passed`, `moments`, `runs` that ended, and `differing` files of each.
    """
    run, aside = folder / "run", folder / "undisturbed"
    need_ours(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with naming(folder):
        folder.mkdir(parents=True)
        (folder / MARK).touch()
    began = time.time()
    with _started(subject, run) as process:
        _await_write(process, run, began)
        start = time.time()
        code, said = _ended(process)
    if code != 0:
        raise UserError(f"{subject.name}: undisturbed it ends with exit code {code}: {said}")
    length, work = time.time() - began, time.time() - start
    wanted, largest = contents(run), max(f.stat().st_size for f in run.rglob("*") if f.is_file())
    run.rename(aside)
    tell(
        f"{subject.name}: undisturbed {length:.1f} s, {work:.1f} s of it after the first write; "
        f"{len(wanted)} files and checkpoints"
    )

    rng = np.random.Generator(np.random.Philox(seed))
    found: list[Moment] = []
    differing: list[list[str]] = []

    def ended() -> None:
        mine = contents(run)
        differing.append(sorted(n for n in wanted | mine if wanted.get(n) != mine.get(n)))
        if differing[-1]:
            run.rename(folder / f"differs-{len(differing)}")  # to be looked at
        else:
            shutil.rmtree(run)
        same = f"DIFFERS: {', '.join(differing[-1])}" if differing[-1] else "the same bits"
        tell(f"{subject.name}: run {len(differing)} ended, {same}")

    for count in range(moments):
        kind, early = kinds[count % len(kinds)], rng.uniform() < _EARLY
        for _ in range(_TRIES):
            after = rng.uniform(0, length if early else work)
            moment = _live(subject, run, kind, after, early, rng.uniform(), largest, length)
            if moment is not None:
                break
            ended()
        else:
            raise UserError(f"{subject.name}: it is over each time before {kind} comes")
        found.append(moment)
        tell(f"{subject.name}: {count + 1}/{moments} {_line(moment)}")
    with _started(subject, run) as process:
        code, said = _ended(process)
    if code != 0:
        found.append(Moment("none", 0.0, True, code, 0.0, said, None, f"exit code {code}"))
        differing.append(["it did not end"])
    else:
        ended()
    good = not any(differing) and not any(moment.problem for moment in found)
    return {
        "passed": good,
        "seconds_undisturbed": round(length, 1),
        "files": len(wanted),
        "runs": len(differing),
        "differing": differing,
        "moments": [asdict(moment) for moment in found],
    }


def _live(
    subject: Subject,
    run: Path,
    kind: str,
    after: float,
    early: bool,
    share: float,
    largest: int,
    length: float,
) -> Moment | None:
    """Start or go on, disturb after so many seconds; None if it ended by itself.

    The seconds count from its first write into the folder; `early`: from its start. `share`, 0
    to 1, decides how much disk or memory is left to it: of the `largest` file, or of 64 MiB
    more than it has. `length`: seconds of an undisturbed run; it may end as one, within
    `_DEAF_S` of a signal.
    """
    began = time.time()
    with _started(subject, run) as process:
        if not early:
            _await_write(process, run, began)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            listens = _listens(process.pid)
            at = time.monotonic()
            _take_away(process.pid, kind, share, largest)
        else:
            at, listens = time.monotonic(), False
        code, said = _ended(process, length + _HANGS_S)
        took = time.monotonic() - at
    ignored = kind in _CODES and listens and took > _DEAF_S
    if code == 0 and not ignored:
        return None  # it was over before it could know
    problem = _problem(kind, code, said, listens)
    verdict = None
    if subject.evaluate is not None and run.exists():
        try:
            verdict = subject.evaluate(run)
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
            problem = problem or "the folder does not evaluate"
    kept = said if problem else "".join(said.splitlines()[-1:])
    return Moment(kind, round(after, 2), listens, code, round(took, 2), kept, verdict, problem)


def _started(subject: Subject, run: Path) -> subprocess.Popen:
    words = [word.replace(OUT, str(run)) for word in subject.command]
    return subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=subject.environment,  # evaluating here may have changed our own
    )


def _await_write(process: subprocess.Popen, run: Path, since: float) -> None:
    """Return once the process has written into its folder, or has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # a file that is written aside and renamed
            if any(file.stat().st_mtime >= since for file in run.rglob("*")):
                return
        time.sleep(0.01)


def _ended(process: subprocess.Popen, within: float | None = None) -> tuple[int, str]:
    """(exit code, standard error) of a process; 124 if it had to be killed."""
    try:
        _, said = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        return 124, f"{said}\nit hung"
    return process.returncode, said.strip()


def _listens(pid: int) -> bool:
    """Whether the process handles SIGTERM by now: an interpreter that is starting does not."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _take_away(pid: int, kind: str, share: float, largest: int) -> None:
    if kind in _SIGNALS:
        os.kill(pid, getattr(signal, _SIGNALS[kind]))
        return
    import resource  # not on Windows

    for each in _family(pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            if kind == "disk":  # every file that grows beyond it is as on a full disk
                resource.prlimit(each, resource.RLIMIT_FSIZE, (int(share**3 * largest),) * 2)
            else:
                pages = int(Path(f"/proc/{each}/statm").read_text().split()[0])
                room = pages * resource.getpagesize() + int(share**2 * 2**26)
                resource.prlimit(each, resource.RLIMIT_AS, (room, room))


def _family(pid: int) -> list[int]:
    """A process and all that it has started, and these."""
    found = [pid]
    for each in found:  # grows meanwhile
        with contextlib.suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


def _problem(kind: str, code: int, said: str, listens: bool) -> str | None:
    """What is wrong with how a process ended."""
    if kind == "memory" and code == 124:
        return None  # Python waits for ever for a thread that had no memory to begin
    if code == 124:
        return "it hung"
    if kind == "memory" and (code < 0 or code == 127 or not listens):
        return None  # C and C++ code may have no other answer to an allocation that fails
    if kind == "int" and not listens:
        # Python's own handler raises in whatever is being imported, and a library may catch that
        return None if code in (-2, 1, 130) else f"exit code {code}"
    if kind == "kill" or not listens:
        wanted = {"kill": -9, "term": -15}.get(kind, 2)
        return None if code == wanted else f"exit code {code}"
    last = said.splitlines()[-1] if said else ""
    if kind == "memory" and last.startswith("SystemError"):
        return None  # Python's own, of a C function that failed and did not say why
    if kind == "memory" and code == 2 and re.search("error: +(out of|cannot)", said):
        return None  # around it may stand what Orbax's threads have to say
    if "Traceback" in said:
        return "a traceback"
    if kind in _CODES:
        word = {"term": "terminated", "int": "interrupted"}[kind]
        good = code == _CODES[kind] and last.partition("; go on with: ")[0] == word
        return None if good else f"exit code {code}"
    start = "error: cannot write" if kind == "disk" else "error: "
    return None if code == 2 and last.startswith(start) else f"exit code {code}"


def _line(moment: Moment) -> str:
    how = f"{moment.kind} after {moment.after:.1f} s: exit code {moment.code}"
    verdict = "" if moment.evaluated is None else f"; evaluate: {moment.evaluated[:100]}"
    return how + verdict + (f"; PROBLEM: {moment.problem}" if moment.problem else "")


def main(arguments: list[str] | None = None) -> int:
    """Disturb as the flags say: 0 if all is well, 1 if not."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command: list[str] = []
    if "--" in words:
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = Parser(
        prog="python -m parity.interrupt",
        usage="%(prog)s [flags] [-- COMMAND...]",
        description="Kill trainings at random moments and go on with them: each must end with "
        "the same bits as one that was left alone. COMMAND is another command to do this to: "
        "started anew with the same words it must go on, and in them {out} is its folder.",
    )
    add = parser.add_argument
    add("--moments", type=int, default=50, help="of each command (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        help="kill, term, int: signals; disk, "
        "memory: no more of it from then on (default: all, in turns)",
    )
    add(
        "--framework",
        nargs="+",
        choices=tuple(FRAMEWORKS),
        default=tuple(FRAMEWORKS),
        help="whose train command is disturbed (default: both)",
    )
    add(
        "--flags",
        default=f"{TRAINING} --epochs 3",
        help="of train, as one word (default: %(default)s)",
    )
    add(
        "--save-every",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="between saves of "
        "training state; train takes 10 (default: %(default)g, after every epoch)",
    )
    add("--out", type=out_folder, default="runs/interrupt", help="(default: %(default)s)")
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(words)
    if not sys.platform.startswith("linux"):
        raise UserError("this needs Linux, whose /proc tells when a process listens to signals")
    if options.moments < 1 or options.seed < 0:
        raise UserError("--moments must be above 0, --seed 0 or more")
    subjects = [training(name, options.flags, options.save_every) for name in options.framework]
    if command:
        if not any(OUT in word for word in command):
            raise UserError(f"COMMAND must name its folder {OUT}")
        subjects = [Subject("command", tuple(command))]
    for subject in subjects:
        need_ours(Path(options.out) / subject.name)
    # a shell's background job has SIGINT switched off, and its children would have so as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False)
    result = {}
    for subject in subjects:
        folder = Path(options.out) / subject.name
        result[subject.name] = disturb(
            subject, options.moments, options.seed, folder, console.print, tuple(options.kinds)
        )
    for name, value in result.items():
        codes = Counter((moment["kind"], moment["code"]) for moment in value["moments"])
        ends = ", ".join(f"{kind} {code}: {n}" for (kind, code), n in sorted(codes.items()))
        same = sum(not each for each in value["differing"])
        slowest = max((m["ended"] for m in value["moments"] if m["kind"] in _CODES), default=0.0)
        bad = [moment for moment in value["moments"] if moment["problem"]]
        print(
            f"{name}: {len(value['moments'])} moments, {same} of {value['runs']} runs the same "
            f"bits, {len(bad)} problems; exit codes {ends}; slowest end after a signal "
            f"{slowest:.1f} s"
        )
        for moment in bad:
            print(
                f"  {moment['kind']} after {moment['after']} s: {moment['problem']}: "
                f"{''.join(moment['said'].splitlines()[-1:])}"
            )
    passed = all(value["passed"] for value in result.values())
    if options.json:
        about = {"passed": passed, "seed": options.seed, "command": command or options.flags}
        save_json(options.json, about | {"subjects": result})
    return 0 if passed else 1


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
