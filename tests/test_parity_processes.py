"""Checks in processes: whatever happens to one, the others go on, and nothing hangs."""

import math
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from data.base import progress
from parity import check
from parity.check import Task
from parity.checks import baselines, processes
from parity.checks.processes import Broken
from parity.checks.tolerance import Check


class Unsendable(Exception):
    """It cannot be unpickled: its constructor wants two values."""

    def __init__(self, one, two):
        super().__init__(one)


def works(name):
    """Give a check, or go wrong in the way that the name says."""
    if name == "exception":
        raise KeyError("avgpool")
    if name == "odd exception":
        raise Unsendable("a\nb", 2)
    if name == "exit":
        os._exit(3)
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return [Check(name, "what", "-", 0, 0, "-", True)]


BAD = ("exception", "exit", "odd exception", "kill")
NAMES = ("first", *BAD, "last")


@pytest.mark.parametrize(
    ("names", "jobs", "fresh"),
    [
        (("first", "odd exception", "exception", "kill", "last"), 1, False),
        # the same with a death of the other kind, and in processes of one item, as `--baselines`
        # has them: each takes seconds to start
        pytest.param(NAMES, 1, False, marks=pytest.mark.slow),
        pytest.param(("exception", "kill", "last"), 2, True, marks=pytest.mark.slow),
    ],
)
def test_one_that_breaks_is_a_failed_check_and_the_others_go_on(
    names, jobs, fresh, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "_NEXT_S", 3600.0)  # no line of how far it is
    work = [Task(name, works, (name,)) for name in names]
    checks = check.run(work, jobs, fresh=fresh)
    assert [(c.name, c.passed) for c in checks] == [(name, name not in BAD) for name in names]
    why = {c.name: c.detail for c in checks if not c.passed}
    assert why["exception"].startswith("KeyError: 'avgpool' at test_parity_processes.py:")
    assert "its process died" in why["kill"]
    assert all(c.max_rel == math.inf for c in checks if not c.passed)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(why), "one line each"
    assert any(line.startswith("exception: the check broke: KeyError") for line in said)
    if "odd exception" in names:
        assert why["odd exception"].startswith("Unsendable: a b at test_parity_processes.py:")
    if "exit" in names:
        assert "its process died" in why["exit"]


def test_a_stop_ends_the_workers(monkeypatch):
    """Ctrl-C while results are awaited: nothing is left behind that would be waited for."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        list(processes.outcomes(works, ["first", "second"], 1))


def test_what_broke_fails_the_command(monkeypatch, tmp_path, capsys):
    """In this process; the test of all that can break has processes."""

    def died(run, items, jobs, fresh):
        assert fresh
        yield 0, processes._told(BrokenProcessPool())

    monkeypatch.setattr(processes, "outcomes", died)
    monkeypatch.setattr(
        check, "baseline_tasks", lambda which, seed: [Task("a model", works, ("kill",))]
    )
    assert check.main(["--baselines", "small", "--jobs", "1", "--out", str(tmp_path)]) == 1
    assert "0 of 1 checks passed" in capsys.readouterr().out
    assert "its process died" in (tmp_path / "report.json").read_text()


def test_a_self_test_whose_check_breaks_has_caught_nothing(monkeypatch, capsys):
    from parity.checks import faults

    def results(run, items, jobs):
        for place, (name, _) in enumerate(items):
            by = f"caught {name}" if name else None
            yield place, Broken("KeyError: 'x'") if name == "missing ReLU6 cap" else by

    monkeypatch.setattr(processes, "outcomes", results)
    rows = {row["name"]: row["caught_by"] for row in faults.self_test(1)}
    assert rows.pop("missing ReLU6 cap") is None
    assert all(rows.values())
    assert "missing ReLU6 cap: the check broke: KeyError: 'x'" in capsys.readouterr().out


def test_a_map_that_has_its_size_already_is_a_layer_in_both():
    case = next(case for case in baselines.SMALL if "nothing left to pool" in case.name)
    checks = baselines.check_baseline(case, seed=1)
    assert all(c.passed for c in checks), [c for c in checks if not c.passed]
    assert "avgpool: gradient of input" in {c.what for c in checks}
