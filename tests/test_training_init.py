"""`train --init RUN`: a finished tree trained further."""

import shutil

import numpy as np
import pytest
from test_run_folder import one_line
from test_training_from import TRAIN, contents

from data.base import writing
from data.base.errors import UserError
from data.images import specs
from data.inference.model import Model
from data.recipes import recipe
from data.run import compression, derived, runfolder
from data.run.compression import Compression
from data.run.options import train_options
from data.training import initial
from data.tree import grouping

SMALL = ["--limit", "100", "--epochs", "1"]
PHASE = '{ epochs = 1, optimizer = "adam", lr = 1e-30 }'
# so small a rate that no float32 parameter changes
STILL = f"""
[digits.vgg]
batch_size = 32
[digits.vgg.others]
volatility = 1.0
class = {PHASE}
group = {PHASE}
"""


def one_pair(asl, *_):
    """In place of `grouping.group`: 0 and 6 belong together."""
    alone = tuple((index,) for index in range(len(asl)) if len(asl) == 2 or index not in (0, 6))
    return alone if len(asl) == 2 else ((0, 6), *alone)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of PyTorch's: a root that is split, and one child."""
    folder = tmp_path_factory.mktemp("init") / "run"
    flags = ["--backbone", "vgg", "--volatility", "1", "--batch-size", "32", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "group", one_pair)
        TRAIN["torch"]([*flags, "--out", str(folder)])
    return folder


@pytest.mark.parametrize("framework", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_training_goes_on_from_the_weights_in_the_same_tree(framework, finished, tmp_path, capsys):
    still, new = tmp_path / "still.toml", tmp_path / "new"
    still.write_text(STILL)
    before = contents(finished)
    start = ["--init", str(finished), "--recipe", str(still)]
    TRAIN[framework]([*start, "--out", str(new)])
    said = capsys.readouterr().err
    assert f"starts from {finished.absolute()}, whose tree it keeps" in said
    # the child has 2 of the 10 classes, and an epoch over their images
    assert " to go: about an epoch over all images (0:0" in said
    assert " and the start of 1 stage (0:" in said
    assert contents(finished) == before
    tree = runfolder.read_tree(new)
    assert tree == runfolder.read_tree(finished)
    assert len(tree.nodes) == 2
    rows = [(row["node"], row["phase"]) for row in runfolder.read_metrics(new)]
    children = [(tree.names[node], "class") for node in tree.children(())]
    assert rows == [("root", "group"), *children]
    moved = 0
    for node in tree.nodes:
        old, mine = (runfolder.read_weights(run, tree.names[node]) for run in (finished, new))
        assert old.keys() == mine.keys()
        for name, array in mine.items():
            statistic = "running" in name or "num_batches" in name
            moved += statistic and not np.array_equal(array, old[name])
            assert statistic or np.array_equal(array, old[name]), name
    assert moved > 0  # it was trained: a step changes statistics, whatever its rate
    for file in (finished / "asl").iterdir():
        assert (new / "asl" / file.name).read_bytes() == file.read_bytes()
    config = runfolder.read_config(new)
    assert config["init"] == {"weights_sha256": derived.digest(finished)}
    assert config["flags"]["init"] == str(finished.absolute())
    assert (config["flags"]["epochs"], config["flags"]["limit"]) == (1, 100)  # the run's
    kept = contents(new)
    (new / "summary.json").unlink()
    TRAIN[framework](["--resume", "--out", str(new)])
    assert {n: h for n, h in contents(new).items() if n.startswith("weights")} == {
        n: h for n, h in kept.items() if n.startswith("weights")
    }
    (new / "summary.json").unlink()
    capsys.readouterr()
    other = shutil.copytree(finished, tmp_path / "other")
    weights = runfolder.read_weights(other, "sg1")
    runfolder.write_weights(other, "sg1", {name: array * 2 for name, array in weights.items()})
    said = one_line(
        capsys, lambda: TRAIN[framework](["--init", str(other), "--resume", "--out", str(new)])
    )
    assert "init.weights_sha256: " in said


def test_runs_that_are_not_trained_on(finished, tmp_path):
    initial.need_whole(finished)
    run = shutil.copytree(finished, tmp_path / "run")
    config = runfolder.read_config(run)
    small = compression.to_json(Compression("int8"))
    writing.write_json(run / "config.json", config | {"compression": small})
    with pytest.raises(UserError, match="is compressed"):
        initial.need_whole(run)
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        initial.need_whole(run)


@pytest.mark.parametrize(
    ("dataset", "backbone", "changes", "said"),
    [
        ("digits", "resnet", {}, "backbone vgg, and here resnet"),
        ("emnist", "vgg", {}, "classes 10, and here 47"),
        ("cifar10", "vgg", {}, r"image shape \[8, 8, 1\], and here \[32, 32, 3\]"),
        ("digits", "vgg", {"faults": ("pointwise_padding",)}, "fault pointwise_padding False, and"),
        ("svhn", "mobilenet", {}, "of svhn has other layers"),
        ("digits", "vgg", {}, None),
    ],
)
def test_what_does_not_fit_is_one_line(finished, tmp_path, dataset, backbone, changes, said):
    theirs = runfolder.read_recipe(finished)
    if dataset == "svhn":
        theirs = recipe.load("corrected", "cifar10", "mobilenet")
    name = "efficient" if backbone == "resnet" else "corrected"
    chosen = recipe.override(recipe.load(name, dataset, backbone), **changes)
    model = Model(theirs, runfolder.read_tree(finished), {})
    spec = specs.spec(dataset)
    if said is None:
        initial.need_fit(finished, model, chosen, spec)
        return
    with pytest.raises(UserError, match=said) as caught:
        initial.need_fit(finished, model, chosen, spec)
    assert str(finished) in str(caught.value)


def test_flags_that_make_no_sense(finished, tmp_path, capsys):
    take, out = ["--init", str(finished)], ["--out", str(tmp_path / "new")]
    for arguments, part in (
        (take, "needs --out"),
        ([*take, "--out", str(finished)], "is the run that --init names"),
        (["--init", "nowhere", *out], "no run folder nowhere"),
        ([*take, *out, "--from", str(finished), "--volatility", "2"], "--from takes class phases"),
    ):
        said = one_line(capsys, lambda arguments=arguments: train_options("torch", arguments))
        assert part in said
    assert not (tmp_path / "new").exists()
    for framework in ("jax", "torch"):  # a run of either may be the start of either
        options = train_options(framework, [*take, *out, "--epochs", "7"])
        assert options.init == finished.absolute()
        assert options.recipe.root.class_phase.epochs == 7
        assert options.recipe.backbone == "vgg"
