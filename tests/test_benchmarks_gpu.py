"""The command for a GPU, without one: plan, time, packing, archive, table; and a rehearsal."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sweep
from benchmarks.gpu import (
    archive,
    lengthen,
    packing,
    plan,
    rehearsal,
    repeat,
    reproduction,
    runner,
    table,
)
from benchmarks.gpu.plan import Job, Stage
from data.base.errors import UserError
from data.images import datasets, decoded
from data.run.options import train_options

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of small datasets of random images."""
    root = tmp_path_factory.mktemp("data")
    rehearsal.write(root)
    return root


# The plan


def test_every_job_of_the_plan_is_a_command_that_there_is():
    for stage in plan.stages():
        for job in stage.jobs:
            module, *arguments = job.command
            assert importlib.util.find_spec(module), job.name
            if module in ("trunk_jax.train", "trunk_torch_ref.train"):
                framework = "jax" if "jax" in module else "torch"
                options = train_options(framework, [*arguments, *(job.dry or ())])
                assert options.resume == job.resumes, job.name
            assert "<" not in " ".join(job.command), job.name
    assert [stage.number for stage in plan.stages()] == [1, 2, 3, 4, 5]
    assert all(any(job.dry is not None for job in stage.jobs) for stage in plan.stages())
    for stage in plan.stages():
        names = [job.name for job in stage.jobs]
        for job in stage.jobs:
            assert not job.after or names.index(job.after) < names.index(job.name)
    assert [stage.number for stage in plan.stages() if stage.alone] == [3]


def test_a_combination_of_values_is_a_job_and_the_trees_are_those_of_their_file(tmp_path):
    file, trees = tmp_path / "stages.toml", tmp_path / "trees.toml"
    row = (
        'name = "n-<a>-<b>"\nwhat = "w"\ncommand = ["m", "--x", "<b>"]\nneeds = 3\ndry = ["--y"]\n'
    )
    stage = '[[stage]]\nnumber = 1\ntitle = "t"\nshare = 1\n'
    own = f'{stage}[[stage.job]]\n{row}each = {{ a = ["1", "2"], b = ["p", "q"] }}\n'
    file.write_text(own + '[[stage]]\nnumber = 4\ntitle = "t"\nshare = 1\njob = []\n')
    trees.write_text(
        '[[tree]]\nrecipe = "efficient"\ndataset = "svhn"\nbackbones = ["resnet", "monolith"]\n'
        "seeds = [3, 4]\nneeds = 5\n"
        '[[tree]]\nrecipe = "of/single.toml"\ndataset = "svhn"\nbackbones = ["resnet"]\n'
        'grouping = "one"\nseeds = [3]\nneeds = 5\n'
    )
    first, second = plan.stages(file, trees)
    assert [job.name for job in first.jobs] == ["n-1-p", "n-1-q", "n-2-p", "n-2-q"]
    assert [job.command[-1] for job in first.jobs] == ["p", "q", "p", "q"]
    assert [job.dry for job in first.jobs] == [("--y",), None, None, None]
    assert [job.name for job in second.jobs] == [
        "svhn-efficient-resnet-seed3",
        "svhn-efficient-monolith-seed3",
        "svhn-single-resnet-one-seed3",
        "svhn-efficient-resnet-seed4",
        "svhn-efficient-monolith-seed4",
    ]
    assert second.jobs[4].command[6:10] == ("monolith", "--seed", "4", "--data-dir")
    assert second.jobs[2].command[4:10] == (
        "of/single.toml",
        "--backbone",
        "resnet",
        "--grouping",
        "one",
        "--seed",
    )
    file.write_text(stage + f"[[stage.job]]\n{row}\n[[stage.job]]\n{row}")
    with pytest.raises(UserError, match="two jobs are called n-<a>-<b>"):
        plan.stages(file, trees)


def test_chosen_jobs_come_in_the_order_they_are_named():
    stages = [Stage(3, "t", 1, (job("step-a", 1), job("step-b", 1), job("tree", 1), job("z", 1)))]
    (only,) = plan.chosen(stages, ["tree", "step-b", "step-*"])
    assert [each.name for each in only.jobs] == ["tree", "step-b", "step-a"]
    assert plan.chosen(stages, ["*"]) == stages
    with pytest.raises(UserError, match=r"--jobs stop-\*: there is no such job"):
        plan.chosen(stages, ["tree", "stop-*"])


# Time


class Clock:
    """Time that passes when a job is performed."""

    def __init__(self, monkeypatch, seconds, statuses=None):
        self.now, self.done = 0.0, []

        def perform(stage, job, limit_s, places, dry):
            takes = seconds[job.name]
            self.done.append((job.name, round(limit_s)))
            self.now += min(takes, limit_s)
            status = runner.DONE if takes <= limit_s else runner.UNFINISHED
            took = min(takes, limit_s)
            return {"job": job.name, "stage": stage.number, "status": status, "seconds": took}

        monkeypatch.setattr(runner, "perform", perform)
        monkeypatch.setattr(runner.time, "monotonic", lambda: self.now)


def stage(number, share, *jobs):
    return Stage(number, "t", share, jobs)


def job(name, needs, resumes=False, dry=None):
    return Job(name, "w", ("m",), needs, resumes, dry=dry)


def test_stages_share_the_time_and_go_on_where_they_stopped(monkeypatch, tmp_path):
    places = runner.Places(tmp_path, tmp_path)
    stages = [
        stage(1, 1, job("a", 10), job("long", 200), job("b", 10)),
        stage(2, 3, job("train", 500, resumes=True)),
    ]
    clock = Clock(monkeypatch, {"a": 10, "b": 40, "long": 200, "train": 500})
    after = []

    def call(seconds, *words):
        clock.done.clear()
        wishes = runner.wishes(words or ["1", "2"], stages)
        runner.run(
            stages,
            wishes,
            seconds,
            places,
            dry=False,
            tell=lambda _: None,
            after=lambda: after.append(clock.now),
        )
        return clock.done

    # a quarter of 400 s is stage 1's; what does not fit into it is left out; the rest is stage 2's
    assert call(400) == [("a", 100), ("b", 90), ("train", 350)]
    assert runner.status(places, stages[1].jobs[0]) == runner.UNFINISHED
    assert runner.status(places, stages[0].jobs[1]) is None
    assert len(after) == 3
    # 30 s at most of stage 1, where only what takes long is left; stage 2 goes on
    clock.now = 0.0
    assert call(700, "1:30", "2") == [("train", 700)]
    # its seconds are those of both parts
    result = json.loads(places.result(stages[1].jobs[0]).read_text())
    assert (result["status"], result["seconds"], result["parts"]) == ("done", 850, [350, 500])
    # what is done is left out, and its stage takes no time
    clock.now = 0.0
    assert call(900) == [("long", 900)]
    assert call(900) == []
    with pytest.raises(UserError, match=r"--stages 7: it must be one of 1, 2"):
        runner.wishes(["7"], stages)
    with pytest.raises(UserError, match="1:x"):
        runner.wishes(["1:x"], stages)


def test_jobs_that_are_not_timed_run_beside_each_other_once_what_they_need_is_done(
    monkeypatch, tmp_path
):
    places = runner.Places(tmp_path, tmp_path)
    two = threading.Barrier(2, timeout=20)  # passed only by two jobs at the same time
    events = []

    def perform(stage, job, limit_s, places, dry):
        events.append(("begins", job.name))
        if job.name in ("a", "b"):
            two.wait()
        events.append(("ends", job.name))
        return {"job": job.name, "stage": stage.number, "status": runner.DONE, "seconds": 1.0}

    monkeypatch.setattr(runner, "perform", perform)

    def call(*stages):
        runner.run(
            stages,
            [runner.Wish(each.number) for each in stages],
            100,
            places,
            dry=False,
            tell=lambda _: None,
            after=lambda: None,
            parallel=2,
        )

    shared = stage(1, 1, job("a", 1), replace(job("c", 1), after="a"), job("b", 1))
    timed = replace(stage(2, 1, job("x", 1), job("y", 1)), alone=True)
    call(shared, timed)
    assert events.index(("begins", "c")) > events.index(("ends", "a"))
    assert events[6:] == [("begins", "x"), ("ends", "x"), ("begins", "y"), ("ends", "y")]
    assert all(runner.status(places, each) == runner.DONE for each in (*shared.jobs, *timed.jobs))
    # what is needed does not fit into the time: what needs it is tried all the same
    late = stage(1, 1, job("long", 500), replace(job("d", 1), after="long"))
    call(late)
    assert (runner.status(places, late.jobs[0]), runner.status(places, late.jobs[1])) == (
        None,
        runner.DONE,
    )


def test_jobs_end_with_the_command_that_runs_them(monkeypatch, tmp_path):
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    at = (("PYTHONPATH", str(tmp_path)),)
    jobs = [replace(job(name, 1), command=("sleeps",), environment=at) for name in "ab"]
    broken = replace(job("c", 1), command=("no_such_module_of_ours",))

    def interrupted(line):
        if line.startswith("  c"):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.run(
            [stage(1, 1, *jobs, broken)],
            [runner.Wish(1)],
            50,
            runner.Places(tmp_path, tmp_path),
            dry=False,
            tell=interrupted,
            after=lambda: None,
            parallel=3,
        )
    assert time.monotonic() - began < 20
    assert not runner._LIVE


def test_a_job_that_takes_too_long_is_stopped_and_saves(tmp_path):
    places = runner.Places(tmp_path, tmp_path)
    code = (
        "import signal, sys, time, json, pathlib\n"
        "def stop(*_): pathlib.Path('{folder}/saved').write_text('x'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('cuda_timer.cc:87] Delay kernel timed out')\n"
        "time.sleep(60)\n"
    )
    script = tmp_path / "slow_job.py"
    folder = tmp_path / "jobs" / "slow"
    script.write_text(code.replace("{folder}", str(folder)))
    slow = replace(job("slow", 1, resumes=True), command=("runpy", str(script)))
    runner_module = replace(
        slow, command=("slow_job",), environment=(("PYTHONPATH", str(tmp_path)),)
    )
    result = runner.perform(stage(1, 1), runner_module, runner.SAVING_S + 2, places, False)
    assert result["status"] == runner.UNFINISHED
    assert (folder / "saved").exists()
    assert result["noise"] == 1
    assert result["seconds"] < 15
    failing = replace(runner_module, command=("no_such_module_of_ours",))
    result = runner.perform(stage(1, 1), failing, 60, places, False)
    assert (result["status"], result["result"]) == (runner.FAILED, None)
    assert "no_such_module_of_ours" in result["last_line"]


# Packing


def test_what_is_packed_comes_out_as_it_was_in_as_few_pieces_as_there_must_be(
    noise, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "STRIP", 10)
    pieces = tmp_path / "pieces"
    count = packing.pack(["cifar10", "emnist"], [str(noise)], pieces, room=200_000)
    files = sorted(pieces.glob("*.zip"))
    sizes = [file.stat().st_size for file in files]
    assert count == len(files) > 2
    assert max(sizes) <= 200_000 + 2000  # and its index
    assert all(size > 200_000 - 35_000 for size in sizes[:-1])  # no room for another strip
    root = tmp_path / "there"
    for file in files[:-1]:
        assert packing.take([file], root) == []
    assert packing.missing(root) == ["cifar10", "svhn", "emnist"]
    assert packing.take([files[-1]], root) == ["cifar10", "emnist"]
    assert packing.missing(root) == ["svhn"]
    for name in ("cifar10", "emnist"):
        before, after = (datasets.load(name, folder, fetch=False) for folder in (noise, root))
        assert after.fingerprint == before.fingerprint
        assert (after.test.images == before.test.images).all()
        assert after.title == before.title == "noise"


def test_a_piece_that_is_damaged_or_another_packing_is_refused(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "STRIP", 10)
    pieces, root = tmp_path / "pieces", tmp_path / "there"
    packing.pack(["emnist"], [str(noise)], pieces, room=60_000)
    first, *rest = sorted(pieces.glob("*.zip"))
    damaged = tmp_path / "piece-9.zip"
    damaged.write_bytes(first.read_bytes()[:1000])
    with pytest.raises(UserError, match="no piece of a packing"):
        packing.take([damaged], root)
    monkeypatch.setattr(packing.cache, "fingerprint", lambda arrays: "0" * 64)
    with pytest.raises(UserError, match="another fingerprint"):
        packing.take([first, *rest], root)
    assert not decoded.folder_of("emnist", root).exists()
    with pytest.raises(UserError, match=r"room for 0\.0 MiB"):
        packing.dealt([100], 10)


def test_gray_images_cost_what_one_channel_costs():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), np.uint8)
    three = packed = packing.packed(np.repeat(pixels, 3, 3))
    assert len(three) < 1.05 * 20 * 32 * 32
    assert (packing.unpacked(packed, (32, 32, 3)) == pixels).all()
    assert (packing.unpacked(packing.packed(pixels), (32, 32, 1)) == pixels).all()


def test_the_repository_leaves_room_for_four_pieces_of_cifar10():
    """98.4 MB is what its 60,000 images take (measured on 2,000 of them, quality 80, method 5)."""
    room = packing.TRAVELS - packing.repository_bytes(ROOT) - packing.SPARE
    assert 4 * room > 98.4e6


# Decoded arrays


@pytest.mark.slow
def test_training_starts_from_decoded_arrays_without_tfds_and_uninstalled(noise, tmp_path):
    """With what a machine with a GPU lacks made unfindable, metadata of this package included."""
    lacking = (
        "tensorflow_datasets",
        "array_record",
        "importlib_resources",
        "dm_tree",
        "etils.epath_",
    )
    arguments = [
        "--dataset",
        "emnist",
        "--backbone",
        "vgg",
        "--data-dir",
        str(noise),
        "--epochs",
        "1",
        "--limit",
        "64",
        "--batch-size",
        "32",
        "--deterministic",
        "--out",
        str(tmp_path / "run"),
    ]
    code = f"""
import sys
from importlib import metadata
for name in {lacking}: sys.modules[name] = None
def version(name, real=metadata.version):
    if name in ("trunk-jax", "tensorflow-datasets", "array_record"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from trunk_torch_ref.train import main
main({arguments})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["deterministic"] is True
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "trunk-jax" not in manifest["packages"]
    assert manifest["dataset"]["sha256"] == datasets.load("emnist", noise).fingerprint
    # a resumed run keeps the flag, and is not taken up with another
    assert train_options("torch", ["--out", str(tmp_path / "run"), "--resume"]).deterministic


def test_decoded_arrays_that_are_not_what_was_written_are_refused(noise, tmp_path):
    data = datasets.load("svhn", noise, fetch=False)
    arrays = {
        "train_images": data.train.images,
        "train_labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
    }
    folder = decoded.write("svhn", tmp_path, arrays, version="1", description="", source="x")
    assert datasets.load("svhn", tmp_path).fingerprint == data.fingerprint
    labels = folder / "train_labels.npy"
    np.save(labels, data.train.labels[::-1].copy())
    with pytest.raises(UserError, match="damaged"):
        datasets.load("svhn", tmp_path)
    np.save(labels, data.train.labels[:-1])
    with pytest.raises(UserError, match="train images or labels do not fit"):
        datasets.load("svhn", tmp_path)
    np.save(labels, data.train.labels + np.int32(10))
    with pytest.raises(UserError, match="do not fit"):
        datasets.load("svhn", tmp_path)
    labels.unlink()
    with pytest.raises(UserError, match=r"train_labels\.npy cannot be read"):
        datasets.load("svhn", tmp_path)


def test_lengthened_training_images_are_repeated_and_the_test_images_kept(noise, tmp_path):
    lengthen.lengthen("svhn", 200, str(noise), tmp_path)
    before, after = datasets.load("svhn", noise), datasets.load("svhn", tmp_path)
    assert len(after.train.labels) == 200
    assert (after.train.images[96:192] == before.train.images).all()
    assert (after.test.images == before.test.images).all()
    assert after.title == "noise, training images repeated to 200"
    with pytest.raises(UserError, match="96 training images already"):
        lengthen.lengthen("svhn", 90, str(noise), tmp_path)
    with pytest.raises(UserError, match="comes from"):
        lengthen.lengthen("svhn", 200, str(noise), noise)


# What comes back


def test_the_archive_stays_under_its_limit_and_keeps_what_is_worth_most(tmp_path):
    out, rng = tmp_path / "out", np.random.default_rng(0)
    (out / "results").mkdir(parents=True)
    (out / "results" / "a.json").write_text("{}")
    for name, finished in (("done", True), ("half", False)):
        run = out / "runs" / name
        save = run / "checkpoints" / "root" / "class"
        for epoch in (1, 2):
            (save / str(epoch)).mkdir(parents=True)
            (save / str(epoch) / "arrays").write_bytes(rng.bytes(30_000))
        (save / "seal.json").write_text('{"epoch": 2}')
        (run / "weights").mkdir()
        (run / "weights" / "root.safetensors").write_bytes(rng.bytes(30_000))
        (run / "config.json").write_text("{}")
        if finished:
            (run / "summary.json").write_text("{}")
    file = tmp_path / "back.zip"
    assert archive.write(out, file, limit=200_000) == []
    names = set(zipfile.ZipFile(file).namelist())
    # of an unfinished run the sealed save, of a finished one none
    assert {n for n in names if "checkpoints" in n} == {
        "runs/half/checkpoints/root/class/2/arrays",
        "runs/half/checkpoints/root/class/seal.json",
    }
    again = tmp_path / "again"
    archive.unpack(file, again)
    for name in names - {archive.CONTENTS}:
        assert (again / name).read_bytes() == (out / name).read_bytes()
    left = archive.write(out, file, limit=70_000)
    assert left == ["runs/half/weights"]  # dealt after the checkpoint, and the first still fits
    assert file.stat().st_size <= 70_000
    assert [path.name for path in tmp_path.glob(".*partial")] == []
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as made:
        made.writestr("contents.txt", "")
        made.writestr("results/../../evil", "")
    with pytest.raises(UserError, match="not an archive"):
        archive.unpack(bad, again)


def test_a_table_has_a_row_for_each_result_and_names_what_is_not_measured(tmp_path):
    jobs = [job for stage in plan.stages() for job in stage.jobs]
    empty = "\n".join(table.lines({}))
    assert all(f"`{job.name}`" in empty for job in jobs)
    (tmp_path / "results").mkdir()

    def write(name, result, **more):
        row = {
            "job": name,
            "status": "done",
            "rehearsal": False,
            "seconds": 12.4,
            "finished": "2026-11-27T04:00:00Z",
            "result": result,
        } | more
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(row))

    rates = {"float32": 25e12, "tf32": 200e12, "bfloat16": 385e12}
    write("card", {"kind": "Card 1", "multiply_adds_per_s": rates, "copy_bytes_per_s": 4.3e12})
    counts = {"accuracy": 0.9916, "correct": 356, "total": 359}
    write(
        "digits-jax", {"accuracy": {"test": counts}, "nodes": {"root": {}, "sg1": {}}, "paths": 0}
    )
    write("digits-torch", {"accuracy": {"test": counts}, "nodes": {}, "paths": 0}, rehearsal=True)
    write("repeat-jax-plain", {"same": False, "seconds": [3.0, 4.0]}, status="failed")
    speed = {
        "ours_s": 8.03e-6,
        "theirs_s": 11.1e-6,
        "best": "eager",
        "ratio": 0.723,
        "bar": 0.5,
        "limit_s": 9e-6,
        "ratio_to_compile": 0.5,
        "rounds": {"ours": [8.03e-6], "eager": [11.1e-6], "compile": [16e-6, 16.06e-6, 17e-6]},
    }
    write("step-cifar10-vgg-2048-float32", speed)
    text = "\n".join(table.lines(table.found([tmp_path])))
    assert "99.16 % (356 of 359), 2 nodes | 12 |" in text
    assert "float32 25.0 T, tf32 200.0 T, bfloat16 385.0 T" in text
    assert "8.03 us an image; eager 11.10 (0.72); compile 16.06 (0.50); bar missed" in text
    assert "0.5 of PyTorch's best form, 9 us |" in text
    assert text.count("Card 1, 2026-11-27") == 3
    assert sum(f"`{job.name}`" in text for job in jobs) == len(jobs) - 3
    assert "`step-cifar10-vgg-2048-float32`" not in text


def test_the_page_holds_the_expectations_of_the_sweep_and_a_place_for_results():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert table.written(page, "expected", table.expectations()) == page, (
        "python -m benchmarks.gpu.table --write docs/gpu.md, with the folders of results"
    )
    folders = sorted((ROOT / "benchmarks" / "gpu" / "measured").iterdir())
    assert table.written(page, "measured", table.lines(table.found(folders))) == page
    assert table.written(page, "measured", ["x"]) != page
    with pytest.raises(UserError, match="no place for measured"):
        table.written("", "measured", [])


def test_a_run_is_shown_beside_the_published_tree(tmp_path):
    with pytest.raises(UserError, match="not 'published'"):
        reproduction.of_run(ROOT / "checkpoints" / "cifar10-efficient")
    found = reproduction.of_run(ROOT / "docs" / "published-recipe" / "svhn")
    assert (found["right"], found["total"], found["groups"]) == (3235, 6009, {})
    assert [(row["node"], row["epochs"]) for row in found["phases"]] == [("root", 20)]
    assert found["phases"][0]["best_epoch"] == 20
    assert round(found["phases"][0]["best_accuracy"], 4) == 0.5153


# Switches


def test_every_flag_of_the_sweep_is_known_to_this_xla():
    flags = [flag for variant in sweep.variants().values() for flag in variant.flags.split()]
    wishes = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    code = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    environment = os.environ | {"XLA_FLAGS": " ".join([*flags, wishes])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-600:]


@pytest.mark.parametrize("second", [b"same", b"other"])
def test_two_trainings_are_compared_by_the_bytes_of_their_weights(monkeypatch, tmp_path, second):
    contents, commands = [b"same", second], []

    def run(command, env, **more):
        commands.append((command, env["XLA_FLAGS"]))
        folder = Path(command[command.index("--out") + 1])
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "root.safetensors").write_bytes(contents.pop(0))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(repeat.subprocess, "run", run)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    file = tmp_path / "answer.json"
    repeat.main(["jax", "exclude", "--folder", str(tmp_path / "runs"), "--json", str(file)])
    assert json.loads(file.read_text())["same"] == (second == b"same")
    assert {flags for _, flags in commands} == {
        "--mine --xla_gpu_exclude_nondeterministic_ops=true"
    }
    with pytest.raises(UserError, match="a way of XLA's"):
        repeat.main(["torch", "tune-0", "--folder", str(tmp_path)])


@pytest.mark.slow
def test_a_rehearsal_does_one_job_of_each_kind_and_leaves_an_archive(tmp_path):
    """The whole command in processes of its own; digests tell that a second call does nothing."""
    out, file = tmp_path / "out", tmp_path / "back.zip"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--dry-run",
        "--minutes",
        "10",
        "--out",
        str(out),
        "--archive",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    expected = {job.name for stage in plan.stages() for job in stage.jobs if job.dry is not None}
    results = {path.stem: json.loads(path.read_text()) for path in (out / "results").glob("*.json")}
    assert results.keys() == expected
    for name, result in results.items():
        log = (out / "jobs" / name / "log.txt").read_text()
        assert result["status"] == "done", f"{name}: {log[-800:]}"
        assert result["rehearsal"]
        assert table.told(result["result"])
    assert file.stat().st_size < archive.LIMIT
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
