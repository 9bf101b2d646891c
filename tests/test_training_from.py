"""`train --from RUN`: a class phase that is there already, regrouped; and why a run is flat."""

import hashlib
import shutil

import pytest
from test_run_folder import one_line

import trunk_jax.train
import trunk_torch_ref.train
from data.base import locking, writing
from data.run import runfolder
from data.run.options import train_options
from data.tree import hierarchy, selection
from data.tree.grouping import group, splits

FLAGS = ["--backbone", "vgg", "--limit", "300", "--epochs", "2", "--batch-size", "32"]
TRAIN = {"jax": trunk_jax.train.main, "torch": trunk_torch_ref.train.main}
PROGRAM = {"jax": "trunk_jax", "torch": "trunk_torch_ref"}


def contents(folder):
    """Every file of a folder by name: its bytes' digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=[pytest.param("jax", marks=pytest.mark.slow), "torch"])
def flat(request, tmp_path_factory):
    """(framework, a run that ended flat, what it said)."""
    folder = tmp_path_factory.mktemp(request.param) / "flat"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.base.progress.Reporter.note", lambda _, line: said.append(line))
        TRAIN[request.param]([*FLAGS, "--volatility", "9.5", "--out", str(folder)])
    return request.param, folder, said


def test_a_flat_run_says_why_and_how_to_go_on(flat):
    framework, folder, said = flat
    assert runfolder.read_tree(folder).depth == 1
    (line,) = [line for line in said if "no groups" in line]
    assert line.startswith("root: no groups: no two of 10 classes are alike at volatility 9.5; ")
    asl, _ = runfolder.read_asl(folder, "root", 10)
    proper = [each for each in selection.candidates(asl) if splits(each.groups)]
    assert f"one from {proper[-1].low:.4g} to {proper[0].high:.4g} splits them" in line
    command = f"python -m {PROGRAM[framework]}.train --from {folder} --volatility "
    value = float(line.split(command)[1].removesuffix(" --out NEW"))
    assert splits(group(asl, value))


def test_the_class_phase_is_taken_and_the_run_stays_as_it_is(flat, tmp_path):
    """The new run is what it would have been from the start, bit for bit."""
    framework, folder, _ = flat
    asl, _ = runfolder.read_asl(folder, "root", 10)
    value = [each for each in selection.candidates(asl) if splits(each.groups)][2]
    chosen = selection.volatility_of(value, asl)
    before, new, alone = contents(folder), tmp_path / "new", tmp_path / "alone"
    TRAIN[framework](["--from", str(folder), "--volatility", str(chosen), "--out", str(new)])
    assert contents(folder) == before
    assert runfolder.read_asl(new, "root", 10)[1] == value.groups
    assert (runfolder.read_asl(new, "root", 10)[0] == asl).all()
    TRAIN[framework]([*FLAGS, "--volatility", str(chosen), "--out", str(alone)])
    mine, theirs = contents(new), contents(alone)
    same = [name for name in theirs if name.startswith(("weights/", "predictions", "tree", "asl/"))]
    assert len(same) > 4
    assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}
    rows = [[row | {"seconds": 0} for row in runfolder.read_metrics(f)] for f in (new, alone)]
    assert rows[0] == rows[1]
    first = next(row for row in runfolder.read_metrics(new) if row["phase"] == "class")
    kept = next(row for row in runfolder.read_metrics(folder) if row["phase"] == "class")
    assert first == kept  # the seconds too: it was not trained again
    config = runfolder.read_config(new)
    assert config["flags"] == runfolder.read_config(folder)["flags"] | {"volatility": chosen}
    TRAIN[framework](["--resume", "--out", str(new)])  # a run of its own, which needs no --from


def test_auto_chooses_from_the_class_phase_of_a_flat_run(flat, tmp_path):
    framework, folder, _ = flat
    before = contents(folder)
    TRAIN[framework](["--from", str(folder), "--volatility", "auto", "--out", str(tmp_path / "n")])
    assert contents(folder) == before
    asl, groups = runfolder.read_asl(tmp_path / "n", "root", 10)
    assert splits(groups)
    assert runfolder.read_tree(tmp_path / "n").depth > 1
    stored = runfolder.read_json(tmp_path / "n" / "asl" / "root.json")
    (chosen,) = [row for row in stored["auto"]["candidates"] if row["chosen"]]
    assert hierarchy.as_groups(chosen["groups"]) == groups == group(asl, stored["volatility"])
    assert runfolder.read_volatility(tmp_path / "n", "root") == stored["volatility"]
    assert (asl == runfolder.read_asl(folder, "root", 10)[0]).all()
    rows = [
        [row for row in runfolder.read_metrics(f) if row["node"] == "root"][:2]
        for f in (folder, tmp_path / "n")
    ]
    assert rows[0] == rows[1]


def test_what_from_does_not_take(flat, tmp_path, capsys):
    framework, folder, _ = flat
    other = "torch" if framework == "jax" else "jax"
    out = ["--out", str(tmp_path / "new")]
    take = ["--from", str(folder)]
    for arguments, part in (
        ([*take, "--volatility", "1"], "needs --out"),
        ([*take, *out], "needs another --volatility, --grouping or --budget"),
        ([*take, "--volatility", "1", "--out", str(folder)], "is the run that --from names"),
        ([*take, *out, "--volatility", "1", "--epochs", "7"], "epochs: 2, now 7"),
        ([*take, *out, "--volatility", "1", "--seed", "5"], "seed: 0, now 5"),
        (["--from", "checkpoints", *out, "--volatility", "1"], "no config.json"),
    ):
        said = one_line(capsys, lambda arguments=arguments: train_options(framework, arguments))
        assert part in said, (arguments, said)
    said = one_line(capsys, lambda: train_options(other, [*take, *out, "--volatility", "1"]))
    assert f"was trained with {framework}" in said
    bare = tmp_path / "bare"  # as `export` leaves a run
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    command = ["--from", str(bare), *out, "--volatility", "1"]
    said = one_line(capsys, lambda: TRAIN[framework](command))
    assert "has no trained class phase of the root" in said
    config = runfolder.read_config(folder) | {"dataset_sha256": "0" * 64}
    moved = shutil.copytree(folder, tmp_path / "moved")
    writing.write_json(moved / "config.json", config)
    command = ["--from", str(moved), *out, "--volatility", "1"]
    said = one_line(capsys, lambda: TRAIN[framework](command))
    assert "was trained on other data" in said
    with locking.hold(folder):
        command = ["--from", str(folder), *out, "--volatility", "1"]
        said = one_line(capsys, lambda: TRAIN[framework](command))
    assert "is in use" in said
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_stopped_in_its_children_is_taken_too(flat, tmp_path):
    """All that it has is taken, and it may be less than a whole tree."""
    framework, folder, _ = flat
    stopped = shutil.copytree(folder, tmp_path / "stopped")
    (stopped / "summary.json").unlink()
    asl, groups = runfolder.read_asl(stopped, "root", 10)
    halves = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    assert groups != halves
    runfolder.write_asl(stopped, "root", asl, 1.0, halves)  # then it grew children, and stopped
    before = contents(stopped)
    TRAIN[framework](["--from", str(stopped), "--volatility", "0.9", "--out", str(tmp_path / "n")])
    assert contents(stopped) == before
    assert runfolder.read_asl(tmp_path / "n", "root", 10)[1] == group(asl, 0.9)
    assert (tmp_path / "n" / "summary.json").exists()
