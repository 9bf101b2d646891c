"""The run folder: files whole or absent, one process at a time, nothing foreign read as ours."""

import contextlib
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tree_hierarchy import anything

from data.base import writing
from data.base.errors import UserError, run_command
from data.recipes import recipe
from data.run import results, runfolder
from data.tree import hierarchy

ROOT = Path(__file__).parents[1]
CONFIG = {
    "format": runfolder.FORMAT,
    "framework": "jax",
    "flags": {"epochs": 2, "seed": None},
    "recipe": recipe.to_json(recipe.load("corrected", "digits")),
}


def one_line(capsys, action):
    """What `action` prints as a command that the user can put right: one line, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        run_command(action)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.endswith("\n")
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("error: ")
    return printed.err.removeprefix("error: ").rstrip("\n")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- whole or absent


def test_a_file_is_replaced(tmp_path):
    file = tmp_path / "new" / "folder" / "file.json"
    writing.write_json(file, {"a": 1})
    writing.write_json(file, {"a": 2})
    assert runfolder.read_json(file) == {"a": 2}
    assert os.listdir(file.parent) == ["file.json"]


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@contextlib.contextmanager
def open_on_a_full_disk(path, mode):
    """A file that takes half of what is written."""
    with open(path, mode) as file:

        class Full:
            def write(self, content):
                file.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield Full()


@pytest.mark.parametrize("where", ["write", "sync", "rename"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, capsys, where):
    file = tmp_path / "tree.json"
    writing.write_json(file, "old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if where == "write":
        monkeypatch.setattr(writing, "open", open_on_a_full_disk, raising=False)
    else:
        monkeypatch.setattr(os, {"sync": "fsync", "rename": "replace"}[where], failing(full))
    text = one_line(capsys, lambda: writing.write_json(file, ["new"] * 100))
    assert text.startswith(f"cannot write {file}: No space left on device; ")
    assert contents(tmp_path) == {"tree.json": b'"old"\n'}


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "tree.json"
    writing.write_json(file, "old")
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        writing.write_json(file, "new")
    assert contents(tmp_path) == {"tree.json": b'"old"\n'}


def test_what_cannot_be_written_as_json_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "tree.json"
    writing.write_json(file, "old")
    with pytest.raises(TypeError):
        writing.write_json(file, [1, object()])
    assert contents(tmp_path) == {"tree.json": b'"old"\n'}


def test_a_read_only_disk(tmp_path, monkeypatch, capsys):
    """Every call that would change the disk fails, unlinking included."""
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    run = tmp_path / "run"
    for name in ("mkdir", "replace"):
        monkeypatch.setattr(os, name, failing(read_only))

    def deny(path, mode="r", *rest):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open(path, mode, *rest)

    for module in (runfolder, writing):
        monkeypatch.setattr(module, "open", deny, raising=False)
    # the failed unlink of a half-written file must not hide why it could not be written
    monkeypatch.setattr(os, "unlink", failing(PermissionError(errno.EPERM, "hides the reason")))
    cannot = f"cannot write {run}"
    text = one_line(capsys, lambda: enter(runfolder.lock(run)))
    assert text.startswith(f"{cannot}: Read-only file system; ")
    text = one_line(capsys, lambda: runfolder.create(run, CONFIG, False))
    assert text.startswith(f"{cannot}/config.json: Read-only file system; ")
    text = one_line(capsys, lambda: writing.write_json(tmp_path / "summary.json", {}))
    assert text.startswith(f"cannot write {tmp_path}/summary.json: Read-only file system; ")
    text = one_line(capsys, lambda: runfolder.append_metrics(tmp_path, {"epoch": 1}))
    assert text.startswith(f"cannot write {tmp_path}/metrics.jsonl: Read-only file system; ")


def test_a_disk_that_fills_up_under_the_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runfolder, "open", open_on_a_full_disk, raising=False)
    text = one_line(capsys, lambda: runfolder.append_metrics(tmp_path, {"epoch": 1}))
    assert text.startswith(f"cannot write {tmp_path}/metrics.jsonl: No space left on device; ")


def enter(manager):
    with manager:
        pass


# --- create and resume


def test_a_new_run_and_its_resumption(tmp_path):
    run = tmp_path / "runs" / "a"
    assert runfolder.create(run, CONFIG, resume=False) is False
    before = contents(run)
    assert runfolder.create(run, CONFIG, resume=True) is True
    assert contents(run) == before
    assert runfolder.read_config(run) == json.loads(json.dumps(CONFIG))
    assert runfolder.read_recipe(run) == recipe.load("corrected", "digits")
    # --resume starts the run if it is not there
    assert runfolder.create(tmp_path / "b", CONFIG, resume=True) is False


def test_an_existing_run_needs_resume(tmp_path, capsys):
    runfolder.create(tmp_path, CONFIG, resume=False)
    before = contents(tmp_path)
    text = one_line(capsys, lambda: runfolder.create(tmp_path, CONFIG, resume=False))
    assert text == (f"{tmp_path} exists; add --resume to go on with it, or choose another --out")
    assert contents(tmp_path) == before


def test_resuming_with_other_settings_names_them(tmp_path, capsys):
    runfolder.create(tmp_path, CONFIG, resume=False)
    before = contents(tmp_path)
    other = json.loads(json.dumps(CONFIG))
    other["flags"] = {"epochs": 3, "limit": 7}
    lr = other["recipe"]["root"]["class_phase"]["lr"]
    other["recipe"]["root"]["class_phase"]["lr"] = 0.5
    text = one_line(capsys, lambda: runfolder.create(tmp_path, other, resume=True))
    assert text == (
        f"{tmp_path} was started with other settings (flags.epochs: 2, now 3; flags.limit: None, "
        f"now 7; recipe.root.class_phase.lr: {lr}, now 0.5); resume with the same flags, or "
        "choose another --out"
    )
    assert contents(tmp_path) == before


def test_leftovers_of_a_killed_process_do_not_matter(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.77.tmp").write_bytes(b'{"form')
    with runfolder.lock(tmp_path):
        assert runfolder.create(tmp_path, CONFIG, resume=False) is False


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", '{"format": 2}', '{"a": 1}', "\0"])
def test_a_foreign_config_is_refused(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    for action in (
        lambda: runfolder.create(tmp_path, CONFIG, resume=True),
        lambda: runfolder.read_config(tmp_path),
        lambda: runfolder.read_recipe(tmp_path),
    ):
        assert str(tmp_path / "config.json") in one_line(capsys, action)
    assert contents(tmp_path) == {"config.json": content.encode()}


def test_no_run_folder(tmp_path, capsys):
    gone = tmp_path / "gone"
    text = one_line(capsys, lambda: runfolder.read_config(gone))
    assert text == f"{gone} is no run folder: there is no such folder"
    text = one_line(capsys, lambda: runfolder.read_config(tmp_path))
    assert text == f"{tmp_path} is no run folder: it has no config.json"
    text = one_line(capsys, lambda: runfolder.read_tree(tmp_path))
    assert text == f"{tmp_path / 'tree.json'} is missing"


def test_a_damaged_recipe_names_the_file(tmp_path, capsys):
    writing.write_json(tmp_path / "config.json", {"format": runfolder.FORMAT, "recipe": {}})
    text = one_line(capsys, lambda: runfolder.read_recipe(tmp_path))
    missing = "name, dataset, backbone, root, others missing"
    assert text == f"{tmp_path / 'config.json'}: {missing}"


# --- the lock


HOLDER = """
import sys, time
from pathlib import Path
from data.run import runfolder
with runfolder.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path, capsys):
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            text = one_line(capsys, lambda: enter(runfolder.lock(run)))
            assert text == f"{run} is in use by another process"
        finally:
            holder.send_signal(signal.SIGKILL)
    with runfolder.lock(run):
        pass


def test_the_lock_is_released_when_the_run_fails(tmp_path):
    with pytest.raises(RuntimeError), runfolder.lock(tmp_path):
        raise RuntimeError
    with runfolder.lock(tmp_path):
        pass


def test_somebody_elses_folder_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "holiday.txt").write_text("photos")
    text = one_line(capsys, lambda: enter(runfolder.lock(tmp_path)))
    assert text == f"{tmp_path} exists and is no run folder; choose another --out"
    assert contents(tmp_path) == {"holiday.txt": b"photos"}
    file = tmp_path / "holiday.txt"
    text = one_line(capsys, lambda: enter(runfolder.lock(file)))
    assert text == f"{file} is a file; choose another --out"
    text = one_line(capsys, lambda: enter(runfolder.lock(file / "run")))
    assert text.startswith(f"cannot write {file / 'run'}: Not a directory")


# --- JSON files


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": }', b"\xff\xfe\x00", b"[" * 100_000, b"nul", b'{"a": 1}trailing'],
    ids=range(7),
)
def test_what_is_not_json_is_refused(tmp_path, capsys, content):
    file = tmp_path / "tree.json"
    file.write_bytes(content)
    for action in (lambda: runfolder.read_json(file), lambda: runfolder.read_tree(tmp_path)):
        assert one_line(capsys, action).startswith(f"{file} is not valid JSON (")


def test_a_huge_file_is_not_read(tmp_path, capsys):
    file = tmp_path / "tree.json"
    with open(file, "wb") as sparse:
        sparse.truncate(16 * 2**20 + 1)
    text = one_line(capsys, lambda: runfolder.read_json(file))
    assert text == f"{file} is larger than 16 MiB; not a file of ours"


def test_a_tree_is_read_back_and_a_foreign_one_refused(tmp_path, capsys):
    tree = hierarchy.regroup(hierarchy.bare(4), hierarchy.ROOT, ((0, 1), (2,), (3,)))
    runfolder.write_tree(tmp_path, tree)
    assert runfolder.read_tree(tmp_path) == tree
    file = tmp_path / "tree.json"
    for cut in range(0, file.stat().st_size - 2, 17):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / "tree.json").write_bytes(file.read_bytes()[:cut])
        one_line(capsys, lambda: runfolder.read_tree(tmp_path / "cut"))
    writing.write_json(file, {"targets": {}, "nodes": {}})
    text = one_line(capsys, lambda: runfolder.read_tree(tmp_path))
    assert text.startswith(f"{file}: not a tree: ")


def test_the_data_dir_of_the_manifest(tmp_path):
    manifest = tmp_path / "manifest.json"
    assert runfolder.data_dir(tmp_path) is None
    about = (None, {"data_dir": 5}, {"data_dir": None}, {"data_dir": "/no/such"})
    for value in (None, [], {}, *({"dataset": dataset} for dataset in about)):
        writing.write_json(manifest, value)
        assert runfolder.data_dir(tmp_path) is None
    writing.write_json(manifest, {"dataset": {"data_dir": str(tmp_path)}})
    assert runfolder.data_dir(tmp_path) == str(tmp_path)


# --- ASL


def test_asl_is_read_back_bit_for_bit(tmp_path):
    asl = np.random.default_rng(0).dirichlet(np.ones(3), 3)
    assert runfolder.read_asl(tmp_path, "root", 3) is None
    runfolder.write_asl(tmp_path, "root", asl, 0.7, ((0, 2), (1,)))
    found, groups = runfolder.read_asl(tmp_path, "root", 3)
    np.testing.assert_array_equal(found, asl)
    assert groups == ((0, 2), (1,))


GOOD_ASL = {"volatility": 1.0, "groups": [[0, 1], [2]], "asl": np.eye(3).tolist()}


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "asl",
        [],
        {},
        *(
            GOOD_ASL | {"asl": asl}
            for asl in (
                None,
                1,
                "asl",
                [],
                {},
                np.eye(2).tolist(),
                np.eye(3).tolist()[:2],
                [[1], [1, 2], [3]],
                [["a"] * 3] * 3,
                [[float("nan")] * 3] * 3,
                [[10**400] * 3] * 3,
                [[None] * 3] * 3,
            )
        ),
        *(
            GOOD_ASL | {"groups": groups}
            for groups in (
                None,
                1,
                "012",
                [],
                [[0, 1]],
                [[0, 1], [1, 2]],
                [[0, 1], [2, 3]],
                [0, 1, 2],
                [["0"], ["1"], ["2"]],
                [[0.0, 1.0], [2.0]],
                [[False, True], [2]],
                [[0, 1], [2], []],
            )
        ),
    ],
    ids=range(29),
)
def test_a_foreign_asl_is_refused(tmp_path, capsys, value):
    file = tmp_path / "asl" / "root.json"
    writing.write_json(file, value)
    text = one_line(capsys, lambda: runfolder.read_asl(tmp_path, "root", 3))
    assert text.startswith((f"{file} is not an ASL file (", f"{file} is not valid JSON ("))


@given(anything)
def test_any_json_is_an_asl_or_refused(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp() / "any-asl"
    writing.write_json(folder / "asl" / "root.json", value)
    with contextlib.suppress(UserError):
        runfolder.read_asl(folder, "root", 3)


# --- weights


WEIGHTS = {
    "features.0.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "features.1.num_batches_tracked": np.array(7, np.int64),
    "classifier.0.weight": np.arange(12, dtype=np.float64).reshape(3, 4).T,  # not contiguous
}


def test_weights_are_read_back_bit_for_bit(tmp_path):
    runfolder.write_weights(tmp_path, "root", WEIGHTS)
    found = runfolder.read_weights(tmp_path, "root")
    assert found.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_missing_weights(tmp_path, capsys):
    text = one_line(capsys, lambda: runfolder.read_weights(tmp_path, "sg1"))
    file = tmp_path / "weights" / "sg1.safetensors"
    assert text == f"{file} is missing: the run is not finished (go on with --resume)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, capsys, value):
    broken = WEIGHTS["features.0.weight"].copy()
    broken[3, 2, 1, 0] = value
    runfolder.write_weights(tmp_path, "root", WEIGHTS | {"features.0.weight": broken})
    text = one_line(capsys, lambda: runfolder.read_weights(tmp_path, "root"))
    file = tmp_path / "weights" / "root.safetensors"
    assert text == f"{file}: features.0.weight holds NaN or infinite values"


def test_truncated_weights_are_refused(tmp_path, capsys):
    runfolder.write_weights(tmp_path, "root", WEIGHTS)
    file = tmp_path / "weights" / "root.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        text = one_line(capsys, lambda: runfolder.read_weights(tmp_path, "root"))
        assert text.startswith(f"{file} is not a whole safetensors file (")
    file.write_bytes(whole + b"\0")
    one_line(capsys, lambda: runfolder.read_weights(tmp_path, "root"))


def safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x95",  # a pickle
        b"PK\x03\x04" + bytes(60),  # a zip, as torch.save writes
        b"\x93NUMPY\x01\x00" + bytes(60),
        safetensors([]),
        safetensors(b"{"),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        struct.pack("<Q", 2**63) + bytes(100),
    ],
    ids=range(10),
)
def test_foreign_weights_are_refused(tmp_path, capsys, content, request):
    file = tmp_path / "weights" / "root.safetensors"
    writing.write_bytes(file, content)
    text = one_line(capsys, lambda: runfolder.read_weights(tmp_path, "root"))
    told = {"1": " is a PyTorch file, not safetensors", "8": ": a is of type F8_E4M3"}
    begins = told.get(request.node.callspec.id, " is not a whole safetensors file (")
    assert text.startswith(f"{file}{begins}")


# --- metrics


def test_metrics_are_read_back(tmp_path):
    assert runfolder.read_metrics(tmp_path) == []
    rows = [{"node": "root", "phase": "class", "epoch": k, "loss": 1 / (k + 1)} for k in range(3)]
    for row in rows:
        runfolder.append_metrics(tmp_path, row)
    assert runfolder.read_metrics(tmp_path) == rows


def test_what_is_not_finite_becomes_null(tmp_path):
    runfolder.append_metrics(tmp_path, {"loss": float("nan"), "lr": float("inf"), "epoch": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=failing(ValueError())) == {
        "loss": None,
        "lr": None,
        "epoch": 1,
    }


@given(st.integers(1, 200))
def test_a_last_line_cut_short_is_left_out(tmp_path_factory, cut):
    folder = tmp_path_factory.getbasetemp() / "cut-metrics"
    rows = [{"node": "root", "phase": "class", "epoch": k, "loss": 0.5} for k in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    kept = text[:-cut] if cut < len(text) else ""
    writing.write_bytes(folder / "metrics.jsonl", kept.encode())
    # a row whose newline alone is missing is whole
    count = kept.count("}")
    assert runfolder.read_metrics(folder) == rows[:count]
    # and what is written after a resumption is not glued to the cut line
    runfolder.forget_metrics(folder, "root", "class", 3)
    runfolder.append_metrics(folder, {"epoch": 9})
    assert runfolder.read_metrics(folder) == [*rows[:count], {"epoch": 9}]


@pytest.mark.parametrize("tail", [b"\0\0\0", b"\xff\xfe", b"[" * 100_000, b"5"])
def test_a_damaged_end_of_the_metrics_is_left_out(tmp_path, tail):
    runfolder.append_metrics(tmp_path, {"epoch": 1})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert runfolder.read_metrics(tmp_path) == [{"epoch": 1}]


def test_forgetting_a_stage_after_an_epoch(tmp_path):
    stages = [("root", "class"), ("root", "group"), ("sg1", "class")]
    rows = [{"node": n, "phase": p, "epoch": k} for n, p in stages for k in (1, 2, 3)]
    for row in rows:
        runfolder.append_metrics(tmp_path, row)
    runfolder.forget_metrics(tmp_path, "root", "group", 1)
    assert runfolder.read_metrics(tmp_path) == rows[:4] + rows[6:]
    runfolder.forget_metrics(tmp_path, "sg1", "class", 0)
    assert runfolder.read_metrics(tmp_path) == rows[:4]


def test_predictions_are_forgotten_and_nothing_besides(tmp_path):
    ours = ("predictions-test.csv", "confusion-validation.csv", "stopped-train.json")
    for name in (*ours, "predictions-mine.csv", "stopped-test.txt"):
        (tmp_path / name).touch()
    results.forget_predictions(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["predictions-mine.csv", "stopped-test.txt"]


def test_a_copy_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "source" / "inner" / "file").write_text("x")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
        with pytest.raises(UserError, match=r"cannot copy .*source to .*No space left"):
            writing.copy_folder(tmp_path / "source", tmp_path / "target")
    # what a killed process left in a run folder goes when the next one holds it
    run, dead = tmp_path / "run", 2**22 + 1  # Linux has no process of a number that high
    runfolder.create(run, {"format": runfolder.FORMAT}, resume=False)
    shutil.copytree(tmp_path / "source", run / f".class.{dead}.tmp")
    with runfolder.lock(run):
        assert not (run / f".class.{dead}.tmp").exists()
