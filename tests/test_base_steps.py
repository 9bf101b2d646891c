"""Commands that take seconds say on standard error what they are at, also where that is a pipe."""

import shutil
import threading
import types

import jax
import numpy as np
import pytest
import random_trees
from PIL import Image

import trunk_torch_ref.lowpower
from data.base import progress
from parity import check, convert
from parity.checks import faults, processes
from parity.checks.tolerance import equal
from trunk_jax import compress, export, lowpower, predict, report
from trunk_jax.machine import memory


class AtOnce:
    """A timer for which no step is too short to be told of."""

    def __init__(self, seconds, line):
        assert seconds == progress._STEP_S
        self.start, self.cancel, self.join = line, int, int


@pytest.fixture
def said(monkeypatch, capsys):
    """The steps told since it was called last, and what is on standard output."""
    more = {"Timer": AtOnce, "Thread": threading.Thread, "Event": threading.Event}
    monkeypatch.setattr(progress, "threading", types.SimpleNamespace(**more))

    def steps():
        text = capsys.readouterr()
        found = [line[:-4] for line in text.err.splitlines() if line.endswith(" ...")]
        return found, text.out.splitlines()

    return steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return random_trees.write_run(tmp_path_factory.mktemp("runs") / "run", "mobilenet")


def test_compiling_is_told_once(said):
    memory.forget()
    double = jax.jit(lambda x: 2 * x)
    for told in (["compiling the training steps"], []):
        memory.compile_within(double, np.ones(2), statics=0)
        assert said()[0] == told


@pytest.mark.slow
def test_exports_tell_their_steps(run, tmp_path, said):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "tree.onnx"
    export.main([str(run), "--format", "onnx", "--int8", "--out", str(out)])
    assert said()[0] == [
        f"exporting {run} as onnx",
        "turning the tree into ONNX",
        "onnxruntime classifies 359 images",
        "JAX classifies 359 images",
        "calibrating int8",
        "onnxruntime classifies 359 images in int8",
    ]
    export.main([str(run), "--format", "folder", "--out", str(tmp_path / "folder")])
    assert said()[0] == [
        f"exporting {run} as folder",
        "loading JAX, Orbax and the tree",
        "classifying 359 test images",
        "writing the weights",
    ]


@pytest.mark.slow
def test_a_checkpoints_check_and_its_conversion_tell_their_steps(run, tmp_path, said):
    assert check.main(["--checkpoint", str(run), "--out", str(tmp_path / "parity")]) == 0
    assert said()[0] == [
        f"checking {run}",
        "loading the tree into both frameworks",
        "JAX classifies 359 images",
        "PyTorch classifies 359 images",
        "PyTorch classifies 359 images in float64",
    ]
    convert.main([str(run), "--to", "torch", "--out", str(tmp_path / "torch")])
    assert said()[0] == [
        f"converting {run} to torch",
        "loading the tree into jax",
        "loading the tree into torch, and back to compare every bit",
    ]


@pytest.mark.slow
def test_predicting_and_compressing_tell_their_steps(run, tmp_path, said):
    image = tmp_path / "image.png"
    Image.fromarray(random_trees.test_images().images[0, :, :, 0]).save(image)
    shutil.copy(image, tmp_path / "other.png")
    predict.main([str(run), str(image), str(tmp_path / "other.png")])
    told, lines = said()
    assert told == ["loading and compiling the tree"]  # for the first image alone
    assert len(lines) == 2
    compress.main([str(run), "--quantize", "int8", "--out", str(tmp_path / "int8")])
    assert said()[0] == [f"evaluating {run}", "quantizing weights", "evaluating its int8 form"]


def test_a_page_tells_that_it_is_drawn(monkeypatch, tmp_path, said):
    monkeypatch.setattr(report, "content", lambda *_: {})
    monkeypatch.setattr(report, "page", lambda value: "the page")
    report.main(["runs/some", "--out", str(tmp_path / "page.html")])
    assert said() == (["drawing the page of runs/some"], [str(tmp_path / "page.html")])


@pytest.mark.parametrize("command", [lowpower, trunk_torch_ref.lowpower])
def test_the_small_networks_tell_what_is_measured(command, monkeypatch, said):
    monkeypatch.setattr(command, "_measure", lambda options: ("cpu", {}))
    command.main(["--repeats", "1", "--images", "1"])
    told, lines = said()
    assert told == ["measuring a small network and four smaller forms of it"]
    assert any("one image a call" in line for line in lines)


def states(monkeypatch, module):
    """What `watching` of a module would have said at the end of the work."""
    told = []

    class Watch:
        def __init__(self, state):
            self.state = state

        def __enter__(self):
            told.append(self.state())

        def __exit__(self, *_):
            told.append(self.state())

    monkeypatch.setattr(module, "watching", Watch)
    return told


def test_checks_in_other_processes_are_counted(monkeypatch):
    told = states(monkeypatch, check)
    found = [equal("x", "y", 1, 1)] * 600
    monkeypatch.setattr(
        processes, "outcomes", lambda run, work, jobs, fresh: ((k, found) for k in (1, 0))
    )
    work = [check.Task(name, len, ()) for name in ("first", "second")]
    assert len(check.run(work, 1)) == 1200
    assert told == [
        "checking: 0 of 2 tasks done, 0 checks",
        "checking: 2 of 2 tasks done, 1,200 checks",
    ]


def test_planted_faults_are_counted(monkeypatch, said):
    told = states(monkeypatch, faults)
    monkeypatch.setattr(
        processes, "outcomes", lambda run, work, jobs: ((k, None) for k in range(len(work)))
    )
    faults.self_test(1)
    count = int(told[1].split(" of ")[1].split()[0])
    assert told == [
        f"planting faults: 0 of {count} done",
        f"planting faults: {count} of {count} done",
    ]
    assert count > len(faults.faults())
    assert said()[0] == ["planting faults one at a time"]
