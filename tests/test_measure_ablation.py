"""`python -m trunk_jax.ablation`, and the sharing of stages between runs."""

import csv
import json

import numpy as np
import pytest

from data.base.errors import UserError
from data.run import runfolder
from data.training import sharing
from data.tree.grouping import group
from trunk_jax import ablation, train
from trunk_jax.pictures.ablation import ablation_picture
from trunk_jax.training import grow

FLAGS = ["--backbone", "vgg", "--limit", "300", "--epochs", "2", "--batch-size", "32"]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ((0.6, 1.2, 0.2), [0.6, 0.8, 1.0, 1.2]),
        ((0.6, 0.8, 0.05), [0.6, 0.65, 0.7, 0.75, 0.8]),  # 0.6 + 4 * 0.05 is above 0.8 in floats
        ((0.6, 0.69, 0.05), [0.6, 0.65]),
        ((0.5, 0.5, 1.0), [0.5]),
    ],
)
def test_both_ends_are_included(given, values):
    assert ablation.volatilities(*given) == values


@pytest.mark.parametrize(
    "given",
    [(0, 1, 0.1), (1, 0.5, 0.1), (0.5, 1, 0), (0.5, 1, -1), (0.5, np.inf, 1), (0.1, 1, 1e-6)],
)
def test_ranges_that_make_no_sense(given):
    with pytest.raises(UserError, match="--volatility"):
        ablation.volatilities(*given)


def test_wrong_flags(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()
    (tmp_path / "file").touch()
    three = ["--volatility", "0.5", "1", "0.5"]
    for arguments, text in (
        ([], "--volatility"),
        ([*three, "--out", str(tmp_path / "out")], "exists; add --resume"),
        ([*three, "--out", str(tmp_path / "file")], "is a file"),
        (
            [*three, "--dataset", "mnist", "--out", str(tmp_path / "new")],
            "is no dataset; give one of",
        ),
        ([*three, "--epochs", "0", "--out", str(tmp_path / "new")], "epochs is 0"),
    ):
        with pytest.raises(UserError, match=text):
            ablation.main(arguments)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two trees, and the stages that were trained, in order."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    trained = []
    fitting = grow.fitting
    with pytest.MonkeyPatch.context() as patch:

        def counted(recipe, phase, stage, *arguments, restore, **named):
            def restored(*templates):
                found = restore(*templates)
                trained.append((stage, found is None))
                return found

            return fitting(recipe, phase, stage, *arguments, restore=restored, **named)

        patch.setattr(grow, "fitting", counted)
        ablation.main(
            [
                "--volatility",
                "1.2",
                "1.6",
                "0.4",
                *FLAGS,
                "--out",
                str(out),
                "--json",
                str(out.parent / "rows.json"),
            ]
        )
    return out, trained


@pytest.mark.slow
def test_what_is_shared_is_trained_once(swept):
    out, trained = swept
    names = [stage for stage, _ in trained]
    assert names.count("root/class") == 2
    assert trained[0] == ("root/class", True)
    second = names.index("root/class", 1)
    assert trained[second] == ("root/class", False)
    asl = [runfolder.read_asl(out / name, "root", 10) for name in ("v1.2", "v1.6")]
    assert (asl[0][0] == asl[1][0]).all()
    assert [groups for _, groups in asl] == [group(asl[0][0], v) for v in (1.2, 1.6)]
    assert asl[0][1] != asl[1][1], "the two trees are the same: nothing is tested"


@pytest.mark.slow
def test_a_tree_that_shares_is_the_tree_that_it_would_have_been(swept, tmp_path):
    """Bit for bit, with all its metrics."""
    out, _ = swept
    alone = tmp_path / "alone"
    train.main([*FLAGS, "--volatility", "1.6", "--out", str(alone)])
    shared = out / "v1.6"
    files = sorted(path.name for path in (alone / "weights").iterdir())
    assert files == sorted(path.name for path in (shared / "weights").iterdir())
    for name in files:
        one, two = (folder / "weights" / name for folder in (alone, shared))
        assert one.read_bytes() == two.read_bytes(), name

    def rows(folder):
        return [row | {"seconds": 0} for row in runfolder.read_metrics(folder)]

    assert rows(alone) == rows(shared)
    assert (alone / "tree.json").read_bytes() == (shared / "tree.json").read_bytes()


@pytest.mark.slow
def test_an_equal_tree_is_shared_whole(swept, tmp_path):
    """Its checkpoints and metrics; what is there already stays."""
    out, _ = swept
    recipe = runfolder.read_recipe(out / "v1.2")
    first = sharing.share(tmp_path / "new", recipe, 10, [out / "v1.6", out / "v1.2"])
    stages = {f"{row['node']}/{row['phase']}" for row in runfolder.read_metrics(out / "v1.2")}
    assert set(first) == stages
    assert first[0] == "root/class"
    metrics = (tmp_path / "new" / "metrics.jsonl").read_bytes()
    assert sharing.share(tmp_path / "new", recipe, 10, [out / "v1.2"]) == first
    assert (tmp_path / "new" / "metrics.jsonl").read_bytes() == metrics
    assert sharing.share(tmp_path / "other", recipe, 10, []) == []


@pytest.mark.slow
def test_the_files_and_resuming(swept, capsys):
    out, _ = swept
    with open(out / "ablation.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["volatility"] for row in rows] == ["1.2", "1.6"]
    assert json.loads((out.parent / "rows.json").read_text())[1]["depth"] == int(rows[1]["depth"])
    for row in rows:
        summary = runfolder.read_json(out / f"v{row['volatility']}" / "summary.json")
        assert float(row["test_accuracy"]) == summary["accuracy"]["test"]["accuracy"]
        assert float(row["mean_multiply_adds"]) == summary["paths"]["mean"]["multiply_adds"]
        assert int(row["nodes"]) == len(summary["nodes"])
    before = (out / "ablation.csv").read_bytes(), (out / "ablation.svg").read_bytes()
    ablation.main(["--volatility", "1.2", "1.6", "0.4", *FLAGS, "--out", str(out), "--resume"])
    assert ((out / "ablation.csv").read_bytes(), (out / "ablation.svg").read_bytes()) == before
    assert "1.6" in capsys.readouterr().out
    with pytest.raises(UserError, match="started with other settings"):
        ablation.main(
            ["--volatility", "1.2", "1.6", "0.4", "--epochs", "3", "--out", str(out), "--resume"]
        )


def test_the_figure_shows_the_rows():
    rows = [
        dict.fromkeys(ablation.COLUMNS, 0.5) | {"volatility": v, "depth": 2, "nodes": n}
        for v, n in ((0.4, 5), (0.2, 3))
    ]
    nodes = ablation_picture(rows, "t").axes[2]
    assert nodes.get_title(loc="left") == "nodes"
    assert list(nodes.lines[0].get_xdata()) == [0.2, 0.4]
    assert list(nodes.lines[0].get_ydata()) == [3, 5]
