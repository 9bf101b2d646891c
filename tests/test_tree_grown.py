"""Trees that `--volatility auto` grows: the same in both frameworks; and `python -m data.grown`."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from data import grown
from data.base import writing
from data.base.errors import UserError
from data.images import datasets
from data.images.splits import split
from data.recipes import recipe as recipes
from data.run import runfolder
from data.tree import hierarchy
from data.tree.grouping import group, splits
from parity.checks.training import grow_both


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone"), [("efficient", "resnet"), ("corrected", "mobilenet")]
)
def test_both_frameworks_choose_the_same_tree(name, backbone, tmp_path):
    """From the same weights, in float64: the same candidates, estimates, costs and choice."""
    recipe = recipes.load(name, "digits", backbone)
    recipe = recipes.override(recipe, epochs=2, limit=400, batch_size=32)
    recipe = replace(recipe, joint=None)  # which does not change the tree
    parts = split(datasets.load("digits"), recipe.protocol, recipe.seed, recipe.limit)
    ours, theirs = grow_both(recipe, parts, tmp_path)
    assert ours.tree.depth > 1
    assert ours.tree.paths == theirs.tree.paths
    assert dict(ours.tree.names) == dict(theirs.tree.names)
    for node in ours.tree.nodes:
        name = ours.tree.names[node]
        one, two = (
            runfolder.read_json(tmp_path / framework / "asl" / f"{name}.json")
            for framework in ("jax", "torch")
        )
        assert one["groups"] == two["groups"]
        assert one["auto"]["flat_accuracy"] == two["auto"]["flat_accuracy"]
        # a short training in float64, without dropout, drifts by far less than this
        np.testing.assert_allclose(one["asl"], two["asl"], atol=1e-6)
        both = list(zip(one["auto"]["candidates"], two["auto"]["candidates"], strict=True))
        assert both or len(ours.tree.members(node)) == 2
        for a, b in both:
            for key in ("groups", "chosen", "accuracy", "node_accuracy"):
                assert a[key] == b[key]
            assert a["multiply_adds"] == pytest.approx(b["multiply_adds"], rel=1e-12)
            assert a["modularity"] == pytest.approx(b["modularity"], abs=1e-6)
    asl, groups = runfolder.read_asl(tmp_path / "jax", "root", 10)
    assert splits(groups)
    assert group(asl, runfolder.read_volatility(tmp_path / "jax", "root")) == groups
    # what was estimated for the chosen groups is what the tree's networks cost
    (chosen,) = [
        row
        for row in runfolder.read_json(tmp_path / "jax" / "asl" / "root.json")["auto"]["candidates"]
        if row["chosen"]
    ]
    from trunk_jax.framework import FRAMEWORK

    with jax.enable_x64(True):  # the networks are float64
        costs = FRAMEWORK.costs(ours)
    flat = {name: row["multiply_adds"] for name, row in costs.items()}
    labels = parts.validation.labels
    below = sum(
        flat[ours.tree.names[child]] * np.isin(labels, ours.tree.members(child)).mean()
        for child in ours.tree.children(hierarchy.ROOT)
    )
    assert chosen["multiply_adds"] == pytest.approx(flat["root"] + below, rel=1e-9)


def a_run(folder, *, backbone="resnet", right=9, tree=None, best=(0.5, 0.7, 0.6)):
    """A finished run as far as the table reads it."""
    recipe = recipes.load("efficient", "digits", backbone)
    tree = tree or hierarchy.regroup(hierarchy.bare(10), (), ((0, 6), (1, 7, 8, 9), (2, 3, 4, 5)))
    config = {
        "format": runfolder.FORMAT,
        "framework": "torch",
        "dataset_sha256": "0" * 64,
        "flags": {"epochs": None},
        "recipe": recipes.to_json(recipe),
    }
    writing.write_json(folder / "config.json", config)
    runfolder.write_tree(folder, tree)
    for epoch, accuracy in enumerate(best, 1):
        row = {"node": "root", "phase": "class", "epoch": epoch, "validation_accuracy": accuracy}
        runfolder.append_metrics(folder, row)
    part = {"accuracy": right / 10, "correct": right, "total": 10}
    summary = {
        "dataset_title": "digits",
        "recipe": "efficient",
        "backbone": backbone,
        "accuracy": {"train": part, "validation": part, "test": part},
    }
    return folder, summary


def test_the_table_of_what_was_grown(tmp_path, monkeypatch, capsys):
    summaries = {}

    def made(name, **more):
        folder, summary = a_run(tmp_path / name, **more)
        summaries[folder] = summary
        return folder

    tree, alone = (
        made("tree"),
        made("monolith", backbone="monolith", right=8, tree=hierarchy.bare(10)),
    )
    monkeypatch.setattr(grown.results, "read_summary", lambda run: summaries[run])
    (row,) = grown.rows([tree, alone])
    assert row["groups"] == [[0, 6], [1, 7, 8, 9], [2, 3, 4, 5]]
    assert row["nodes"] == 4
    assert row["root_alone"] == 0.7  # of the best epoch
    assert row["monolith"] == 0.8
    assert row["difference"] == pytest.approx(0.1)
    (row,) = grown.rows([tree])
    assert row["difference"] == pytest.approx(0.2)  # without a monolith: against the root
    file, rows = tmp_path / "page.md", tmp_path / "rows.json"
    file.write_text("a\n<!-- results -->\n<!-- end of results -->\nb\n")
    grown.main([str(tree), str(alone), "--write", str(file), "--json", str(rows)])
    assert (
        "| 4 | (0 6), (1 7 8 9), (2 3 4 5) | 70.00 | 80.00 | 90.00 | +10.00 |" in file.read_text()
    )
    assert json.loads(rows.read_text())[0]["tree"] == 0.9
    grown.main([str(tree)])
    assert "| 90.00 | +20.00 |" in capsys.readouterr().out
    bars = grown.table([row | {"in_words": "(a|b c)"}])
    assert r"| (a\|b c) |" in bars
    with pytest.raises(UserError, match="no run folder"):
        grown.main([str(tmp_path / "nothing")])
