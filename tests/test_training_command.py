"""The train and evaluate commands as a user runs them: killed, interrupted, resumed, misused."""

import contextlib
import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import group_paths

from data.base import writing
from data.base.errors import UserError
from data.images import datasets
from data.images.datasets import Examples
from data.images.splits import split as split_dataset
from data.recipes import recipe
from data.recipes.recipe import Phase
from data.run import runfolder
from data.training.epochs import Position
from data.tree import hierarchy
from trunk_jax import evaluate, framework, nodes, train
from trunk_jax.inference.load import load
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import split
from trunk_jax.training import fit, grow, objective
from trunk_jax.training.checkpoint import Checkpoints
from trunk_jax.training.fit import State
from trunk_jax.training.objective import optimizer

ROOT = Path(__file__).parents[1]
FLAGS = [
    "--backbone",
    "vgg",
    "--limit",
    "300",
    "--epochs",
    "3",
    "--batch-size",
    "32",
    "--volatility",
    "1.2",
]

# Every epoch leaves a checkpoint. Ctrl-C works even where a shell started the tests with it off.
COMMAND = """
import runpy, signal, sys
from trunk_jax.training import checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)
checkpoint.SECONDS_BETWEEN = 0
runpy.run_module("trunk_jax.train", run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def started(*arguments):
    """The train command in a process of its own."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run, of this process and with a checkpoint a stage."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main([*FLAGS, "--out", str(folder)])
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def same(folder, other):
    """That two runs computed the same, bit for bit; times aside."""
    patterns = ("weights/*", "asl/*", "tree.json", "*-test.csv", "summary.json")
    names = {file.relative_to(folder) for pattern in patterns for file in folder.glob(pattern)}
    assert names == {f.relative_to(other) for pattern in patterns for f in other.glob(pattern)}
    assert [n for n in names if (folder / n).read_bytes() != (other / n).read_bytes()] == []
    first, second = (runfolder.read_metrics(one) for one in (folder, other))
    assert [row | {"seconds": 0} for row in first] == [row | {"seconds": 0} for row in second]


def refused(function, *parts):
    with pytest.raises(UserError) as caught:
        function()
    for part in ("", *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# --- killed and resumed


def epochs_done(count):
    def reached(folder):
        file = folder / "metrics.jsonl"
        return file.exists() and file.read_bytes().count(b"\n") >= count

    return reached


def exists(*names):
    return lambda folder: any((folder / name).exists() for name in names)


def stop(folder, how, reached):
    """Start or go on with a run, and stop it by a signal once it has got so far."""
    words = [*FLAGS, "--out", str(folder), "--resume"]
    with started(*words) as process:
        while not reached(folder):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert (process.returncode, err.splitlines()[-1]) == (
            130,
            f"interrupted; go on with: python -m trunk_jax.train {shlex.join(words)}",
        )
        assert "Traceback" not in err
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists(), "it was stopped too late"


@pytest.mark.slow
def test_a_run_killed_and_then_interrupted_ends_with_the_same_bits(finished, tmp_path):
    folder = tmp_path / "stopped"
    stop(folder, signal.SIGKILL, epochs_done(1))
    stop(folder, signal.SIGINT, epochs_done(5))
    train.main(["--out", str(folder), "--resume"])
    same(folder, finished)
    about = runfolder.read_json(folder / "manifest.json")
    assert len(about["resumed"]) == 2
    assert about["started"] < about["resumed"][0] < about["resumed"][1]


@pytest.mark.slow
def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(tmp_path):
    folder = tmp_path / "stopped"
    stop(folder, signal.SIGINT, epochs_done(1))
    about = runfolder.read_json(folder / "manifest.json")
    epoch = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert about["seconds"] >= epoch["seconds"] > 0  # the part that was interrupted counts
    # as if it had taken hours, which the second part cannot
    writing.write_json(folder / "manifest.json", about | {"seconds": 9999.0})
    train.main(["--out", str(folder), "--resume"])
    assert 9999 < runfolder.read_json(folder / "manifest.json")["seconds"] < 9999 + 600


@pytest.mark.slow
def test_a_run_stopped_again_and_again_ends_with_the_same_bits(finished, tmp_path):
    """Half a minute: each start goes on from where the one before was stopped."""
    folder = tmp_path / "stopped"
    for how, reached in (
        (signal.SIGKILL, exists("manifest.json")),  # nothing is saved yet
        (signal.SIGKILL, exists("checkpoints/root/class")),  # in the middle of a save
        (signal.SIGINT, epochs_done(2)),
        (signal.SIGKILL, exists("asl/root.json")),
        (signal.SIGKILL, exists("weights/root.safetensors")),
        (signal.SIGKILL, epochs_done(8)),  # in a child
    ):
        stop(folder, how, reached)
    train.main(["--out", str(folder), "--resume"])
    same(folder, finished)


def test_a_finished_run_prints_its_summary_again(finished, monkeypatch, capsys, tmp_path):
    """It is not trained again: there is nothing that could."""
    monkeypatch.setattr(framework, "FRAMEWORK", dataclasses.replace(framework.FRAMEWORK, grow=None))
    report = tmp_path / "report.json"
    assert train.main(["--out", str(finished), "--resume", "--json", str(report)]) is None
    out = capsys.readouterr().out
    summary = runfolder.read_json(finished / "summary.json")
    assert runfolder.read_json(report) == summary
    counts = summary["accuracy"]["test"]
    assert f"{counts['correct']:,} of {counts['total']:,}" in out
    assert str(finished) in out


def test_a_finished_stage_is_not_prepared_again(copy, monkeypatch):
    """Keeping a stage's inputs takes all images through all ancestors: for epochs to come only."""
    monkeypatch.setattr(grow, "cached_source", lambda *_: pytest.fail("its inputs were computed"))
    (copy / "summary.json").unlink()
    train.main(["--out", str(copy), "--resume"])
    runfolder.read_json(copy / "summary.json")


def test_a_training_that_diverges_is_one_line(tmp_path, monkeypatch):
    rates = objective.learning_rates
    monkeypatch.setattr(fit, "learning_rates", lambda *of: rates(*of) * np.inf)
    refused(lambda: train.main([*FLAGS, "--out", str(tmp_path / "run")]), "training diverged in")


def test_resume_without_out_finds_the_default_folder(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = (
        Path("runs") / f"digits-vgg-corrected-seed{recipe.load('corrected', 'digits').seed}-jax"
    )
    shutil.copytree(finished, folder)
    monkeypatch.setattr(framework, "FRAMEWORK", dataclasses.replace(framework.FRAMEWORK, grow=None))
    train.main(["--backbone", "vgg", "--resume"])  # --limit, --epochs and so on are the run's
    assert str(folder) in capsys.readouterr().out
    refused(lambda: train.main(["--backbone", "vgg"]), str(folder), "add --resume")
    refused(
        lambda: train.main(["--backbone", "vgg", "--resume", "--epochs", "9"]),
        "flags.epochs: 3, now 9",
    )
    refused(lambda: train.main(["--backbone", "vgg", "--resume", "--data-dir"]), "--data-dir")


# --- what a run leaves


def test_a_run_grows_a_tree(finished):
    summary, tree = runfolder.read_json(finished / "summary.json"), runfolder.read_tree(finished)
    assert summary["framework"] == "jax"
    assert summary["depth"] == tree.depth >= 2
    assert summary["accuracy"]["test"]["accuracy"] > 0.4  # chance is 0.1
    names = [tree.names[node] for node in tree.nodes]
    assert {file.stem for file in (finished / "weights").iterdir()} == set(names)
    assert {file.stem for file in (finished / "asl").iterdir()} == set(names)
    rows = [(row["node"], row["phase"], row["epoch"]) for row in runfolder.read_metrics(finished)]
    expected = [("root", phase, epoch) for phase in ("class", "group") for epoch in (1, 2, 3)]
    assert rows[:6] == expected
    assert {node for node, *_ in rows} == set(names)
    about = runfolder.read_json(finished / "manifest.json")
    assert about["device"]["platform"]
    assert about["seconds"] > 0
    assert about["dataset"]["images"] == {"train": 300, "validation": 143, "test": 300}


def test_the_groups_are_those_of_the_asl(finished):
    tree = runfolder.read_tree(finished)
    asl, groups = runfolder.read_asl(finished, "root", 10)
    assert groups == group_paths(tree, ())
    np.testing.assert_allclose(asl.sum(1), 1, rtol=1e-6)  # float32 scores, softmax in float64
    alike = np.argwhere(np.triu(asl > 1.2 / 10, 1))
    assert all(any({i, j} <= set(group) for group in groups) for i, j in alike.tolist())


def test_weights_on_disk_are_those_of_the_networks(finished):
    model = load(finished)
    tree = model.tree
    for node, network in model.networks.items():
        stored = runfolder.read_weights(finished, tree.names[node])
        again = to_state_dict(network)
        assert stored.keys() == again.keys()
        assert all(np.array_equal(stored[key], again[key]) for key in stored)
        assert stored["classifier.0.weight"].shape[0] == tree.width(node)
    costs = framework.costs(model)
    summary = runfolder.read_json(finished / "summary.json")
    for name, cost in costs.items():
        assert {key: summary["nodes"][name][key] for key in cost} == cost


@pytest.mark.parametrize("part", ["test", "validation"])
def test_evaluate_reproduces_the_summary(copy, tmp_path, part, capsys):
    report = tmp_path / "report.json"
    before = (copy / "predictions-test.csv").read_bytes()
    evaluate.main([str(copy), "--split", part, "--json", str(report)])
    stated = runfolder.read_json(copy / "summary.json")["accuracy"][part]
    found = runfolder.read_json(report)
    assert {key: found[key] for key in stated} == stated
    assert found["split"] == part
    assert f"({stated['correct']:,} of {stated['total']:,})" in capsys.readouterr().out
    assert (copy / "predictions-test.csv").read_bytes() == before
    rows = list(csv.DictReader((copy / f"predictions-{part}.csv").read_text().splitlines()))
    assert len(rows) == stated["total"]
    assert sum(row["label"] == row["predicted"] for row in rows) == stated["correct"]
    chosen = runfolder.read_recipe(copy)
    parts = split_dataset(datasets.load("digits"), chosen.protocol, chosen.seed, chosen.limit)
    assert [int(row["label"]) for row in rows] == getattr(parts, part).labels.tolist()
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    table = list(csv.reader((copy / f"confusion-{part}.csv").read_text().splitlines()))
    confusion = np.array([row[1:] for row in table[1:]], int)
    expected = np.zeros((10, 10), int)
    for row in rows:
        expected[int(row["label"]), int(row["predicted"])] += 1
    np.testing.assert_array_equal(confusion, expected)


def test_evaluate_says_so_when_the_images_are_others(copy, capsys):
    config = runfolder.read_config(copy)
    writing.write_json(copy / "config.json", config | {"dataset_sha256": "0"})
    evaluate.main([str(copy)])
    assert "not the images that the run was trained on" in capsys.readouterr().err


# --- bad input


def test_a_mistake_is_one_line_and_exit_code_2(finished):
    """One from the shell; the others are the same exception."""
    with started("--out", str(finished)) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "add --resume" in line
    with pytest.raises(UserError, match=r"flags\.seed: None, now 9"):
        train.main(["--out", str(finished), "--resume", "--seed", "9"])


def test_a_run_of_the_other_framework_is_not_resumed(copy):
    config = runfolder.read_config(copy)
    writing.write_json(copy / "config.json", config | {"framework": "torch"})
    refused(lambda: train.main(["--out", str(copy), "--resume"]), "framework: 'torch', now 'jax'")


def test_a_damaged_checkpoint_is_refused_and_can_be_removed(copy, finished):
    """Truncated, it is named; once it is removed, its stage is trained again."""
    shutil.rmtree(copy / "weights")
    (copy / "summary.json").unlink()
    folder = copy / "checkpoints" / "root" / "group"
    for file in (folder / "3" / "last").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    refused(lambda: train.main(["--out", str(copy), "--resume"]), str(folder), "remove that folder")
    shutil.rmtree(folder)
    train.main(["--out", str(copy), "--resume"])
    for file in (finished / "weights").iterdir():
        assert (copy / "weights" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "tree",
    [{}, [], {"targets": {"0": [0]}, "nodes": {"root": []}}, {"targets": 1, "nodes": {}}],
    ids=str,
)
def test_a_foreign_tree_is_refused(copy, tree):
    writing.write_json(copy / "tree.json", tree)
    refused(lambda: evaluate.main([str(copy)]), str(copy / "tree.json"), "not a tree")


def test_a_tree_of_other_groups_does_not_fit_the_weights(copy):
    runfolder.write_tree(copy, hierarchy.bare(10))
    refused(lambda: evaluate.main([str(copy)]), "root of", "classifier.0.bias is")


def test_an_unfinished_run_is_not_evaluated(copy):
    (copy / "weights" / "root.safetensors").unlink()
    refused(lambda: evaluate.main([str(copy)]), "root.safetensors is missing", "--resume")


def test_more_images_in_a_batch_than_there_are(tmp_path):
    arguments = ["--batch-size", "301", "--limit", "300", "--out", str(tmp_path / "run")]
    refused(lambda: train.main(arguments), "--batch-size 301 is more than the 300 training images")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        refused(lambda out=out: train.main([*FLAGS, "--out", str(out)]), str(out))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(lambda: train.main([*FLAGS, "--out", str(tmp_path / "run")]), "cannot write")
    finally:
        tmp_path.chmod(0o700)


def test_memory_that_is_not_there(tmp_path, monkeypatch):
    def out_of_memory(*_):
        jnp.zeros(2**45).block_until_ready()

    monkeypatch.setattr(
        framework, "FRAMEWORK", dataclasses.replace(framework.FRAMEWORK, grow=out_of_memory)
    )
    refused(lambda: train.main([*FLAGS, "--out", str(tmp_path / "run")]), "smaller --batch-size")

    def our_fault(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(
        framework, "FRAMEWORK", dataclasses.replace(framework.FRAMEWORK, grow=our_fault)
    )
    with pytest.raises(RuntimeError, match="ours"):
        train.main([*FLAGS, "--out", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("sizes", "protocol", "limit", "advice"),
    [
        ((5, 1, 5), "holdout", 0, "at least two"),
        ((5, 1, 5), "holdout", 9, "at least two"),
        ((5, 0, 5), "published", 0, "images of each"),
        ((5, 3, 5), "holdout", 2, "raise --limit"),
    ],
)
def test_a_class_without_images_is_told_from_a_limit_that_is_too_low(
    sizes, protocol, limit, advice
):
    labels = np.repeat(np.arange(3), sizes).astype(np.int32)
    part = Examples(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    digits = datasets.load("digits")
    spec = dataclasses.replace(digits.spec, class_names=("a", "b", "c"))
    dataset = dataclasses.replace(digits, spec=spec, train=part, test=part)
    with pytest.raises(UserError, match=rf"leave 1 of 3 classes without any; .*{advice}") as caught:
        split_dataset(dataset, protocol, 0, limit)
    assert ("--limit" in str(caught.value)) == (advice == "raise --limit")


# --- checkpoints


def network(outputs=10, seed=0):
    rng = np.random.default_rng(seed)
    return split(nodes.build("digits", "vgg", "root", (8, 8, 1), outputs, rng=rng))


def state(outputs=10, seed=0):
    last = network(outputs, seed)
    return State(last, optimizer(Phase(1)).init(last.params))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints = Checkpoints(folder)
    checkpoints.save(state(seed=1), network(seed=2), Position(4, 3, 0.5), True)
    checkpoints.close()
    return folder


def restored(folder, outputs=10):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(state(outputs), network(outputs))
    finally:
        checkpoints.close()


def whole(found):
    last, best, position = found
    assert position == Position(4, 3, 0.5)
    for mine, wanted in ((last.network, network(seed=1)), (best, network(seed=2))):
        mine, wanted = to_state_dict(mine), to_state_dict(wanted)
        assert all(mine[key].tobytes() == wanted[key].tobytes() for key in wanted)


def test_a_checkpoint_holds_all_that_training_changes(saved, tmp_path):
    whole(restored(saved))
    assert restored(tmp_path / "none") is None


def test_a_checkpoint_of_another_network_is_refused(saved):
    refused(lambda: restored(saved, outputs=9), str(saved), "cannot be read")


def test_saves_close_together_are_skipped(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(state(), network(), Position(1, 1, 0.5), False)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr("trunk_jax.training.checkpoint.SECONDS_BETWEEN", 0)
    checkpoints.save(state(), network(), Position(1, 1, 0.5), False)
    checkpoints.close()
    assert (tmp_path / "c" / "1").is_dir()


def test_no_truncation_goes_unnoticed(saved, tmp_path):
    """Whichever file is cut."""
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 20
    for file in files:
        folder = tmp_path / "cut"
        shutil.copytree(saved, folder)
        os.truncate(folder / file, (folder / file).stat().st_size // 2)
        if (saved / file).stat().st_size:
            refused(lambda folder=folder: restored(folder), str(folder), "remove that folder")
        shutil.rmtree(folder)


def test_a_save_cut_short_is_as_if_it_had_not_begun(saved, tmp_path):
    """Killed when the files are there and the seal is not, or is still that of the save before."""
    folder = tmp_path / "cut"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "4", folder / "5")
    whole(restored(folder))
    assert not (folder / "5").exists()
    (folder / "seal.json").unlink()
    assert restored(folder) is None
    checkpoints = Checkpoints(folder)
    checkpoints.save(state(seed=1), network(seed=2), Position(4, 3, 0.5), True)
    checkpoints.close()
    whole(restored(folder))
