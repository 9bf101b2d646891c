"""Told to stop, out of disk, out of memory: nothing is lost or half-written, and all goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_base_bad_input import torch_state
from test_training_command import network, state

from data.base import interrupts, locking, writing
from data.base.errors import UserError, run_command
from data.base.interrupts import Terminated
from data.run import runfolder
from data.training.epochs import Position
from data.training.framework import within_memory
from parity import interrupt
from trunk_jax import framework as jax_run
from trunk_jax.training.checkpoint import Checkpoints
from trunk_torch_ref import framework as torch_run
from trunk_torch_ref.training.checkpoint import Checkpoints as TorchCheckpoints

ROOT = Path(__file__).parents[1]
DEAD = 2**22 + 1  # Linux has no process of a number that high

# --- signals

CHILD = """
import contextlib, signal, sys, time
from data.base import interrupts
from data.base.errors import run_command
signal.signal(signal.SIGINT, signal.{sigint})
def main():
    try:
        with {inside}:
            print("ready", flush=True)
            time.sleep({sleep})
            print("done", flush=True)
    finally:
        print("left", flush=True)
        time.sleep({after})
run_command(main)
"""


def told(
    numbers, inside="contextlib.nullcontext()", sleep=30, after=0, sigint="default_int_handler"
):
    """(exit code, what was printed, standard error) of a command that is sent signals."""
    code = CHILD.format(inside=inside, sleep=sleep, after=after, sigint=sigint)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            said = ""
            for place, number in enumerate(numbers):
                if place:
                    said += process.stdout.readline()  # the first has been taken
                process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, said + out, err


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")],
)
def test_a_signal_ends_a_command_in_one_line(number, code, line):
    assert told([number], inside="interrupts.held()", sleep=0.5) == (
        code,
        "done\nleft\n",
        line,
    )
    assert told([number], sleep=30) == (code, "left\n", line)


def test_the_second_signal_kills():
    for first in (signal.SIGTERM, signal.SIGINT):
        for second in (signal.SIGTERM, signal.SIGINT):
            found = told([first, second], after=30)
            assert found == (-second, "left\n", "")


def test_what_was_switched_off_stays_off():
    assert told([signal.SIGINT], sleep=0.5, sigint="SIG_IGN") == (0, "done\nleft\n", "")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.listening():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    interrupts.check()


def test_a_signal_that_was_lost_is_raised_at_the_next_report():
    """An exception in a callback is printed and forgotten; the reporter asks again."""
    from data.training import stages
    from data.tree import hierarchy

    report = stages.reporter(Path(), stages.Stage(hierarchy.bare(2), (), "class"), lambda **_: 0)
    with interrupts.listening():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 0)
        except Terminated:
            pass
        with pytest.raises(Terminated):
            report(share=0.5)


# --- training state on the way out


def jax_stage(folder):
    return Checkpoints(folder), (state(seed=1), network(seed=2)), (state(), network())


def torch_stage(folder):
    one, other = torch_state(), torch_state(0)
    return TorchCheckpoints(folder), (one, one.network), (other, other.network)


@pytest.mark.parametrize("stage", [jax_stage, torch_stage])
@pytest.mark.parametrize("stop", [Terminated, KeyboardInterrupt, ValueError])
def test_the_last_epoch_is_saved_when_told_to_stop(tmp_path, stage, stop):
    checkpoints, mine, _ = stage(tmp_path / "c")
    checkpoints.save(*mine, Position(1, 1, 0.25), False)
    checkpoints.save(*mine, Position(2, 1, 0.25), False)  # too soon after the start to be saved
    assert not (tmp_path / "c").exists()
    with pytest.raises(stop), checkpoints:
        raise stop
    again, _, fresh = stage(tmp_path / "c")
    with again:
        found = again.restore(*fresh)
    if stop is ValueError:  # a fault of ours: what it has come to is not to be trusted
        assert found is None
    else:
        assert (found[2] if isinstance(found, tuple) else found) == Position(2, 1, 0.25)


def test_what_is_saved_is_the_epoch_and_not_what_became_of_it(tmp_path):
    """PyTorch trains in place: a step after the epoch must not be in its state."""
    checkpoints, (mine, best), (fresh, _) = torch_stage(tmp_path)
    before = mine.network.state_dict()["features.0.weight"].clone()
    checkpoints.save(mine, best, Position(1, 1, 0.5), False)
    with torch.no_grad():
        mine.network.features[0].weight += 1
    with pytest.raises(Terminated), checkpoints:
        raise Terminated
    TorchCheckpoints(tmp_path).restore(fresh, fresh.network)
    assert bool((fresh.network.features[0].weight == before).all())


# --- one process, one folder


def test_a_run_in_use_is_not_evaluated(tmp_path):
    from data.run.options import EvaluateOptions
    from data.training.evaluate import evaluate

    writing.write_json(tmp_path / "config.json", {"format": runfolder.FORMAT})
    with runfolder.lock(tmp_path), pytest.raises(UserError, match="in use by another process"):
        evaluate(torch_run.FRAMEWORK, EvaluateOptions(tmp_path, "test", None, None))


def test_an_ablation_in_use_is_refused(tmp_path, monkeypatch):
    from trunk_jax import ablation

    monkeypatch.setattr(ablation, "grow_tree", None)
    words = ["--volatility", "1", "1", "1", "--out", str(tmp_path / "a"), "--resume"]
    with locking.hold(tmp_path / "a"), pytest.raises(UserError, match="in use by another"):
        ablation.main(words)


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    writing.write_json(tmp_path / "config.json", {"format": runfolder.FORMAT})
    (tmp_path / "weights").mkdir()
    for name in (f".config.json.{DEAD}.tmp", f"weights/.root.safetensors.{DEAD}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with runfolder.lock(tmp_path):
        left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [".lock", "config.json", "weights"]


@pytest.mark.parametrize("config", [None, {"format": runfolder.FORMAT}, {"model_type": "bert"}])
def test_a_lock_removes_nothing_that_is_not_ours(config, tmp_path):
    others = (
        ".config/.draft.tmp",
        ".work.tmp/notes",
        f".cache/trunk/datasets/.digits.{DEAD}.tmp",
        f".config.json.{os.getppid()}.tmp",  # of a process that is at work
    )
    if config is None:
        others = (*others, f".shopping.{DEAD}.tmp")
    else:
        writing.write_json(tmp_path / "config.json", config)
    if config != {"format": runfolder.FORMAT}:
        others = (*others, f".checkpoints/.root.{DEAD}.tmp")
    if config == {"model_type": "bert"}:  # somebody else's
        others = (*others, f".config.json.{DEAD}.tmp", f"weights/.config.json.{DEAD}.tmp")
    for name in others:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with runfolder.lock(tmp_path):
        assert sorted({*tmp_path.rglob("*")} - {tmp_path / ".lock"}) == before


@pytest.mark.parametrize("there", ["notes.txt", "run/notes.txt"])
def test_a_folder_that_was_not_made_for_it_is_not_emptied(there, tmp_path, capsys):
    file = tmp_path / "command" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    words = ["--out", str(tmp_path), "--moments", "1", "--", "sh", "-c", 'mkdir "$0"; false']
    words = [*words, "{out}"]
    with pytest.raises(UserError, match=r"no mark\); remove it if you need nothing of it"):
        interrupt.main(words)
    assert file.read_text() == "mine"
    subject = interrupt.Subject("command", ("false",))
    with pytest.raises(UserError, match=r"no mark\)"):  # a caller from Python
        interrupt.disturb(subject, 1, 0, tmp_path / "command", print)
    assert file.read_text() == "mine"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "command").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="older versions left no mark"):
        interrupt.main(["--out", str(tmp_path / "link"), *words[2:]])
    assert not (tmp_path / "elsewhere").exists()
    file.unlink()
    if file.parent != tmp_path / "command":
        file.parent.rmdir()
    for _ in range(2):  # an empty one, and then its own, it takes
        with pytest.raises(UserError, match="undisturbed it ends with exit code 1"):
            interrupt.main(words)
        assert (tmp_path / "command" / "run").is_dir()


# --- no disk, no memory


def test_room_is_asked_for_before_a_library_writes(tmp_path):
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/new: .*make room"):
        writing.reserve(tmp_path / "new", 2**60)
    assert list((tmp_path / "new").iterdir()) == []
    writing.reserve(tmp_path / "new", 1000)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), ValueError('Error writing "x"'), RuntimeError()],
)
def test_a_disk_that_fills_up_under_orbax(tmp_path, monkeypatch, error):
    folder = tmp_path / "c"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state(seed=1), network(seed=2), Position(4, 3, 0.5), True)
        before = sorted(path.name for path in folder.iterdir())

        def fail(*_, **__):
            (folder / "5.orbax-checkpoint-tmp").mkdir()
            raise error

        monkeypatch.setattr(checkpoints._open(), "save", fail)
        with pytest.raises(UserError, match=f"cannot write {folder}: .*--resume"):
            checkpoints.save(state(), network(), Position(5, 5, 0.75), True)
    assert sorted(path.name for path in folder.iterdir()) == before
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state(), network())[2] == Position(4, 3, 0.5)


def test_metrics_have_no_half_line(tmp_path, monkeypatch):
    runfolder.append_metrics(tmp_path, {"epoch": 1})
    whole = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # the line is in the file by then
    with pytest.raises(UserError, match="No space left"):
        runfolder.append_metrics(tmp_path, {"epoch": 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("x.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_out_of_memory_is_one_line(capsys, error):
    def fail():
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory; ")
    for framework in (jax_run.FRAMEWORK, torch_run.FRAMEWORK):
        with (
            pytest.raises(UserError, match="out of memory; advice"),
            within_memory(framework, "advice"),
        ):
            fail()
        with pytest.raises(KeyError), within_memory(framework, "advice"):
            raise KeyError


# --- the harness

SUBJECT = """
import json, pathlib, random, sys, time
from data.base.errors import run_command
from data.base import writing
from data.run import runfolder
out = pathlib.Path(sys.argv[1])
def main():
    with runfolder.lock(out):  # which takes away what a killed process left half-written
        for k in range(8):
            file = out / ("config.json" if k == 0 else f"{k}.json")  # what a run folder has
            if not file.exists() or FORGETS:
                time.sleep(0.05)
                draw = random.random() if FORGETS else k
                value = {"format": 1, "step": k, "seconds": time.time(), "draw": draw}
                writing.write_json(file, value)
run_command(main)
"""


def harness(tmp_path, forgets, *more):
    script = tmp_path / "subject.py"
    script.write_text(SUBJECT.replace("FORGETS", str(forgets)))
    report = tmp_path / "report.json"
    code = interrupt.main(
        [
            "--out",
            str(tmp_path / "out"),
            "--json",
            str(report),
            *more,
            "--",
            sys.executable,
            str(script),
            "{out}",
        ]
    )
    return code, json.loads(report.read_text())


# of each kind one; that a second goes on from what the first left takes as long again
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_any_command_can_be_disturbed(times, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    moments = str(4 * times)
    code, report = harness(
        tmp_path, False, "--moments", moments, "--kinds", "kill", "term", "int", "disk"
    )
    assert (code, report["passed"]) == (0, True), report
    found = report["subjects"]["command"]
    kinds = [moment["kind"] for moment in found["moments"]]
    assert kinds == ["kill", "term", "int", "disk"] * times
    assert not any(found["differing"])
    assert f"{moments} moments" in capsys.readouterr().out


def test_a_process_that_goes_on_after_a_signal_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(interrupt, "_DEAF_S", 0.05)
    monkeypatch.setattr(
        sys.modules[__name__],
        "SUBJECT",
        SUBJECT.replace(
            "run_command(main)", "import signal\nsignal.signal(15, lambda *_: None)\nmain()"
        ),
    )
    code, report = harness(tmp_path, False, "--moments", "2", "--kinds", "term", "--seed", "1")
    found = report["subjects"]["command"]["moments"]
    assert code == 1
    assert "exit code 0" in [moment["problem"] for moment in found]


def test_a_run_that_ends_otherwise_is_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code, report = harness(tmp_path, True, "--moments", "1", "--kinds", "kill")
    assert (code, report["passed"]) == (1, False)
    assert report["subjects"]["command"]["differing"][0] == [
        *(f"{k}.json" for k in range(1, 8)),
        "config.json",
    ]


@pytest.mark.parametrize(
    ("kind", "code", "said", "good"),
    [
        ("kill", -9, "", True),
        ("kill", 0, "", False),
        ("term", 143, "x\nterminated", True),
        ("term", -15, "", False),
        ("term", 143, "Traceback\nterminated", False),
        ("term", -11, "terminated", False),
        ("int", 130, "interrupted", True),
        ("int", 130, "interrupted; go on with: python -m x --resume", True),
        ("int", 130, "interrupted; error: x", False),
        ("int", 143, "terminated", False),
        ("disk", 2, "error: cannot write x: full", True),
        ("disk", 2, "error: x", False),
        ("disk", 1, "Traceback\nOSError", False),
        ("memory", 2, "error: out of memory", True),
        ("memory", -6, "", True),
        ("memory", 124, "it hung", True),
        ("memory", 1, "Traceback\nTypeError: x", False),
        ("int", 124, "it hung", False),
    ],
)
def test_how_a_process_should_end(kind, code, said, good):
    assert (interrupt._problem(kind, code, said, listens=True) is None) == good


def test_contents_leave_out_times_alone(tmp_path):
    for name, seconds, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        runfolder.append_metrics(tmp_path / name, {"epoch": 1, "seconds": seconds, "loss": loss})
    one, other, third = (interrupt.contents(tmp_path / name) for name in "abc")
    assert one == other != third
    checkpoints = Checkpoints(tmp_path / "a" / "c")
    with checkpoints:
        checkpoints.save(state(seed=1), network(seed=2), Position(4, 3, 0.5), True)
    before = interrupt.contents(tmp_path / "a")
    with Checkpoints(tmp_path / "a" / "c") as checkpoints:
        checkpoints.save(state(seed=3), network(seed=2), Position(5, 5, 0.5), True)
    after = interrupt.contents(tmp_path / "a")
    assert before.keys() == after.keys() == {"c", "metrics.jsonl"}
    assert before["c"] != after["c"]
    assert before["metrics.jsonl"] == after["metrics.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framework", "moments", "flags"),
    [("torch", 5, "--epochs 2 --volatility 1.2"), ("jax", 3, "--epochs 1 --volatility 0.01")],
)
def test_disturbed_trainings_end_with_the_same_bits(tmp_path, framework, moments, flags, capsys):
    """The short form of the harness: 20 to 30 seconds each."""
    flags = f"--backbone vgg --limit 300 --batch-size 32 {flags}"
    report = tmp_path / "report.json"
    words = ["--framework", framework, "--moments", str(moments), "--flags", flags]
    code = interrupt.main([*words, "--out", str(tmp_path / "out"), "--json", str(report)])
    assert code == 0, report.read_text()
    found = json.loads(report.read_text())["subjects"][framework]
    assert len(found["moments"]) == moments
    assert found["runs"] >= 1
