"""Classifying image files, and handing on a finished run."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import fixed_groups
from PIL import Image

from data import table
from data.base.errors import UserError
from data.images import datasets
from data.run import card, runfolder
from data.tree import grouping

CIFAR, DIGITS, EMNIST = (datasets.SPECS[name] for name in ("cifar10", "digits", "emnist"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small finished tree on digits, of this recipe."""
    from trunk_jax import train

    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "group", fixed_groups)
        train.main(f"--recipe efficient --epochs 2 --limit 400 --out {folder}".split())
    return folder


def test_predictions_agree_with_routing_and_export_reproduces_them(run, tmp_path, capsys):
    from trunk_jax import evaluate, export, predict

    folder = tmp_path / "handed-on"
    export.main([str(run), str(folder)])
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert {"README.md", "config.json", "weights/root.safetensors", "orbax"} <= set(files)
    before = {p: (folder / p).stat().st_mtime_ns for p in files}
    summary = runfolder.read_json(run / "summary.json")
    evaluate.main([str(folder), "--json", str(tmp_path / "again.json")])
    assert (
        runfolder.read_json(tmp_path / "again.json")["correct"]
        == (summary["accuracy"]["test"]["correct"])
    )
    assert before == {p: (folder / p).stat().st_mtime_ns for p in files}  # nothing was touched
    text = (folder / "README.md").read_text()
    assert f"{summary['accuracy']['test']['correct']:,} of" in text
    with pytest.raises(UserError, match="exists"):
        export.main([str(run), str(folder)])

    from data.images.splits import split

    recipe = runfolder.read_recipe(run)
    test = split(datasets.load("digits"), recipe.protocol, recipe.seed, recipe.limit).test
    images = tmp_path / "images"
    images.mkdir()
    for place in range(20):
        Image.fromarray(test.images[place, :, :, 0]).save(images / f"{place:02}.png")
    capsys.readouterr()
    predict.main([str(folder), str(images), "--json", "-"])
    rows = json.loads(capsys.readouterr().out)
    lines = (folder / "predictions-test.csv").read_text().splitlines()[1:21]
    tree = runfolder.read_tree(run)
    assert len({len(path) for path in tree.paths}) > 1
    for row, line in zip(rows, lines, strict=True):
        _, _, label, confidence = line.split(",")
        assert row["label"] == int(label)
        assert row["probability"] == pytest.approx(float(confidence), abs=2e-6)
        assert len(row["path"]) == len(tree.paths[row["label"]])
        for step in row["path"]:
            assert sum(step["outputs"].values()) == pytest.approx(1, abs=1e-5)
            assert step["probability"] == max(step["outputs"].values())
    predict.main([str(folder), str(images / "00.png"), "--json", str(tmp_path / "one.json")])
    assert f"00.png: {rows[0]['class']} " in capsys.readouterr().out
    assert runfolder.read_json(tmp_path / "one.json") == [rows[0]]


def test_orbax_holds_the_same_arrays(run, tmp_path):
    import jax
    import orbax.checkpoint as ocp

    from trunk_jax import export
    from trunk_jax.inference.load import load_networks

    folder = tmp_path / "handed-on"
    export.main([str(run), str(folder)])
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder.absolute() / "orbax")
    tree = runfolder.read_tree(run)
    networks = load_networks(run, runfolder.read_recipe(run), tree, DIGITS.image_shape)
    root = export.text_keys({"params": networks[()].params, "stats": networks[()].stats})
    assert jax.tree.structure(arrays["root"]) == jax.tree.structure(root)
    for one, other in zip(jax.tree.leaves(arrays["root"]), jax.tree.leaves(root), strict=True):
        assert np.array_equal(one, other)


def test_table(run, tmp_path):
    summary = runfolder.read_json(run / "summary.json")
    text = table.table([run])
    right, total = (summary["accuracy"]["test"][key] for key in ("correct", "total"))
    assert f"| {right} of {total} |" in text
    file = tmp_path / "README.md"
    file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.main([str(run), "--write", str(file)])
    assert file.read_text() == f"before\n{table.BEGIN}\n{text}\n{table.END}\nafter\n"
    file.write_text("no marks")
    with pytest.raises(UserError, match="needs one line"):
        table.insert(file, text)


def test_interval():
    """Wilson's interval of 81 of 263, by hand from the formula in Newcombe (1998): .2553, .3662."""
    assert table.interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_card_says_what_is_not_official(run, tmp_path):
    about = runfolder.read_json(run / "manifest.json")
    about["dataset"]["images"] = {"train": 70, "validation": 20, "test": 10}
    recipe = replace(runfolder.read_recipe(run), dataset="svhn", limit=0)
    from data.recipes import recipe as recipes

    config = runfolder.read_config(run) | {"recipe": recipes.to_json(recipe)}
    summary = runfolder.read_json(run / "summary.json") | {"dataset": "svhn"}
    for name, value in (("config", config), ("manifest", about), ("summary", summary)):
        runfolder.write_json(tmp_path / f"{name}.json", value)
    assert "not the official splits" in card.card(tmp_path, tmp_path)
    assert "not the official splits" not in card.card(run, run)
