"""Classifying image files, and handing on a finished run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import fixed_groups
from PIL import Image

from data import table
from data.base import writing
from data.base.errors import UserError
from data.images import datasets, files, specs
from data.run import card, runfolder
from data.tree import grouping

DIGITS = specs.spec("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small finished tree on digits, of PyTorch, which has nothing to compile."""
    from trunk_torch_ref import train

    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "group", fixed_groups)
        train.main(f"--epochs 2 --volatility 1 --out {folder}".split())
    return folder


def test_predictions_agree_with_routing_and_export_reproduces_them(run, tmp_path, capfd):
    from trunk_jax import evaluate, export, predict

    folder = tmp_path / "handed-on"
    export.main([str(run), "--format", "folder", "--out", str(folder)])
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert {"README.md", "config.json", "weights/root.safetensors", "orbax"} <= set(names)
    before = {p: (folder / p).stat().st_mtime_ns for p in names}
    summary = runfolder.read_json(run / "summary.json")
    evaluate.main([str(folder), "--json", str(tmp_path / "again.json")])
    assert (
        runfolder.read_json(tmp_path / "again.json")["correct"]
        == (summary["accuracy"]["test"]["correct"])
    )
    assert before == {p: (folder / p).stat().st_mtime_ns for p in names}  # nothing was touched
    text = (folder / "README.md").read_text()
    assert f"{summary['accuracy']['test']['correct']:,} of" in text
    with pytest.raises(UserError, match="exists"):
        export.main([str(run), "--format", "folder", "--out", str(folder)])

    from data.images.splits import split

    recipe = runfolder.read_recipe(run)
    test = split(datasets.load("digits"), recipe.protocol, recipe.seed, recipe.limit).test
    images = tmp_path / "images"
    images.mkdir()
    for place in range(20):
        Image.fromarray(test.images[place, :, :, 0]).save(images / f"{place:02}.png")
    capfd.readouterr()
    predict.main([str(folder), str(images), "--json", "-"])
    rows = json.loads(capfd.readouterr().out)
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
    assert f"00.png: {rows[0]['class']} " in capfd.readouterr().out
    assert runfolder.read_json(tmp_path / "one.json") == [rows[0]]


@pytest.fixture(scope="module")
def models(run):
    """(in JAX, in PyTorch) that tree."""
    import trunk_torch_ref.inference.load
    from trunk_jax.inference.load import load

    return load(run), trunk_torch_ref.inference.load.load(run)


def test_60_digits_in_every_bad_form_are_classified_as_the_plain_ones_are(models, tmp_path):
    from test_images_files import forms

    from trunk_jax.framework import predict

    ours, _ = models
    test = datasets.load("digits").test
    images, labels = test.images[:60], test.labels[:60]
    plain = predict(ours, images).labels
    assert (plain == labels).mean() > 0.6  # of ten classes: a tree that tells digits apart
    written = [forms(image[..., 0]) for image in images]
    for name in written[0]:
        found = []
        for contents in written:
            (tmp_path / "image").write_bytes(contents[name])
            found.append(files.read(tmp_path / "image", DIGITS).pixels)
        assert np.array_equal(predict(ours, np.stack(found)).labels, plain), name


def test_arrays_are_checked_by_both_frameworks(models):
    import trunk_torch_ref.framework
    from trunk_jax import framework
    from trunk_jax.inference import single

    ours, theirs = models
    images = datasets.load("digits").test.images[:60]
    for package, model in ((framework, ours), (trunk_torch_ref.framework, theirs)):
        plain = package.FRAMEWORK.predict(model, images)
        for same in (images / 255, (images / 255).astype(np.float32), images[..., 0]):
            found = package.FRAMEWORK.predict(model, same)
            assert np.array_equal(found.labels, plain.labels)
            assert np.array_equal(found.confidence, plain.confidence)
        assert package.FRAMEWORK.predict(model, images[0]).labels == plain.labels[:1]
        assert len(package.FRAMEWORK.predict(model, images[:0]).labels) == 0
        for wrong, match in (
            (images.astype(np.float32), "floats from 0 to 255"),
            (images.astype(np.int32), "type int32"),
            (np.pad(images, ((0, 0), (0, 1), (0, 0), (0, 0))), "shape"),
            (np.full(images.shape, np.nan), "NaN"),
        ):
            with pytest.raises(UserError, match=match):
                package.FRAMEWORK.predict(model, wrong)
    one = single.compile_single(ours)
    for wrong in (images[0] / 255, images[0, :7]):  # refused by JAX, for it is compiled for bytes
        with pytest.raises(TypeError, match="compiled"):
            one(wrong)


def test_a_python_program_gets_the_same_from_both_frameworks(models, run):
    import trunk_jax
    import trunk_jax.model
    import trunk_torch_ref.model
    from trunk_jax.framework import FRAMEWORK
    from trunk_jax.measure.costs import input_shapes

    images = datasets.load("digits").test.images[:60]
    ours, theirs = trunk_jax.load(run), trunk_torch_ref.load(str(run))
    assert (type(ours), type(theirs)) == (trunk_jax.Model, trunk_torch_ref.Model)
    assert ours.folder == run
    assert str(ours) == str(theirs)
    found, again = ours.predict(images), theirs.predict(images)
    plain = FRAMEWORK.predict(ours, images)
    assert np.array_equal(found.labels, plain.labels)
    assert np.array_equal(found.labels, again.labels)
    np.testing.assert_allclose(found.confidence, plain.confidence, rtol=1e-12)  # float64, a sum
    # float32 through a dozen layers
    np.testing.assert_allclose(found.probabilities, again.probabilities, atol=1e-5)
    assert list(found.paths) == list(again.paths)
    assert {len(path) for path in found.paths} == {1, 2}  # some end at the root
    tree = ours.tree
    for label, path in zip(found.labels, found.paths, strict=True):
        assert len(path) == len(tree.paths[label])
        assert path == tuple(tree.names[tree.paths[label][:depth]] for depth in range(len(path)))
    names = {tree.names[node]: shape for node, shape in input_shapes(ours).items()}
    maps = [model.features(images) for model in (ours, theirs)]
    assert maps[0].shape == maps[1].shape == (60, *names[tree.names[tree.children(())[0]]])
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-4)  # float32, half the layers
    child = tree.names[tree.children(())[0]]
    deep = [model.features(images[:3], child) for model in (ours, theirs)]
    np.testing.assert_allclose(*deep, rtol=1e-4, atol=1e-4)
    assert not np.allclose(deep[0], 0)
    for model in (ours, theirs):
        empty = model.features(images[:0], child)
        assert empty.shape == (0, *deep[0].shape[1:])
        assert empty.dtype == deep[0].dtype == np.float32


def test_a_bad_file_stops_no_other(run, tmp_path, capfd):
    from trunk_jax import predict

    images = datasets.load("digits").test.images[:3, :, :, 0]
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(images[0]).save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    Image.fromarray(255 - images[1]).save(folder / "c.png")
    Image.fromarray(images[2].repeat(2, 1)).save(folder / "d.png")
    report = tmp_path / "report.json"
    assert predict.main([str(run), str(folder / "a.png"), "--json", "/dev/stdout"]) == 0
    assert len(json.loads(capfd.readouterr().out)) == 1  # and no line for people
    assert predict.main([str(run), str(folder), "--json", str(report)]) == 1
    out, err = capfd.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        str(folder / f"{name}.png") for name in "acd"
    ]
    first, second = err.splitlines()
    assert first == f"error: {folder / 'b.png'} is not an image in a format known here"
    assert second == "error: 1 of 4 images cannot be read"
    plain, dark, wide = out.splitlines()
    assert plain.endswith(")")
    assert dark.endswith("[inverted, its border is light]")
    assert wide.endswith("[50 % cut off its sides]")
    rows = runfolder.read_json(report)
    assert "not an image" in rows[1]["error"]
    assert [row["image"]["inverted"] for row in rows if "image" in row] == [False, True, False]
    assert predict.main([str(run), str(folder / "c.png"), "--invert", "no", "--json", "-"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert not row["image"]["inverted"]
    words = [str(run), str(folder / "d.png"), "--fit", "stretch"]
    assert predict.main(words) == 0
    assert capfd.readouterr().out.endswith("[width stretched by 0.5]\n")
    with pytest.raises(UserError, match="none of the 2 images"):
        predict.main([str(run), str(folder / "b.png"), str(folder / "b.png")])


def test_orbax_holds_the_same_arrays(run, tmp_path):
    import jax
    import orbax.checkpoint as ocp

    from trunk_jax import export
    from trunk_jax.inference.load import load
    from trunk_jax.interchange.folder import text_keys

    folder = tmp_path / "handed-on"
    export.main([str(run), "--format", "folder", "--out", str(folder)])
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder.absolute() / "orbax")
    networks = load(run).networks
    root = text_keys({"params": networks[()].params, "stats": networks[()].stats})
    assert jax.tree.structure(arrays["root"]) == jax.tree.structure(root)
    for one, other in zip(jax.tree.leaves(arrays["root"]), jax.tree.leaves(root), strict=True):
        assert np.array_equal(one, other)

    without = tmp_path / "smaller"
    export.main([str(run), "--format", "folder", "--no-orbax", "--out", str(without)])

    def files(place):
        return {p.relative_to(place).parts[0] for p in place.iterdir()}

    assert files(folder) - files(without) == {"orbax"}
    assert "`orbax/`" in (folder / "README.md").read_text()
    text = (without / "README.md").read_text()
    assert "PyTorch's names and layouts.\n" in text
    assert "orbax" not in text
    assert np.array_equal(
        jax.tree.leaves(load(without).networks[()].params)[0],
        jax.tree.leaves(networks[()].params)[0],
    )
    with pytest.raises(UserError, match="--no-orbax is for --format folder and hub"):
        export.main([str(run), "--format", "onnx", "--no-orbax", "--out", str(tmp_path / "x")])


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


# of the official sizes, of others, and of a run that took a few of them
@pytest.mark.parametrize(("sizes", "limit"), [((65931, 7326, 26032), 0), ((70, 20, 10), 90)])
def test_card_says_what_is_not_official(run, tmp_path, sizes, limit):
    """It had a rule of its own, by sizes alone."""
    about = runfolder.read_json(run / "manifest.json")
    about["dataset"]["images"] = dict(zip(("train", "validation", "test"), sizes, strict=True))
    about["dataset"]["title"] = "half of it"
    recipe = replace(runfolder.read_recipe(run), dataset="svhn", limit=limit, data=None)
    from data.recipes import recipe as recipes

    config = runfolder.read_config(run) | {"recipe": recipes.to_json(recipe)}
    summary = runfolder.read_json(run / "summary.json") | {"dataset": "svhn"}
    for name, value in (("config", config), ("manifest", about), ("summary", summary)):
        writing.write_json(tmp_path / f"{name}.json", value)
    assert "not the official splits" in card.card(tmp_path, tmp_path)
    about["dataset"]["title"] = "SVHN (cropped)"
    writing.write_json(tmp_path / "manifest.json", about)
    assert "not the official splits" not in card.card(tmp_path, tmp_path)
    assert "not the official splits" not in card.card(run, run)
