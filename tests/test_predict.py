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
from data.images import files as pictures
from data.run import card, runfolder
from data.tree import grouping

CIFAR, DIGITS, EMNIST = (datasets.SPECS[name] for name in ("cifar10", "digits", "emnist"))


def _noise(size, mode="RGB", seed=0):
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels > 1 else None)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "ppm"])
def test_an_image_of_the_right_size_is_taken_as_it_is(kind, tmp_path):
    image = _noise((32, 32))
    file = tmp_path / f"image.{kind}"
    image.save(file, **({"lossless": True} if kind == "webp" else {}))
    found = pictures.load([str(file)], CIFAR, as_stored=False)
    assert np.array_equal(found[0], np.asarray(image))


def test_other_sizes_are_cut_to_the_middle_square_and_averaged(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)  # the middle 16 columns are halves of 10 and 250
    pixels[:, 8:16], pixels[:, 16:24], pixels[:, 24:] = 10, 250, 99
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = pictures.load([str(tmp_path / "a.png")], DIGITS, as_stored=False)[0, :, :, 0]
    assert found.shape == (8, 8)
    assert (found[:, :4] == 10).all()
    assert (found[:, 4:] == 250).all()


def test_modes_of_other_kinds(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    clear = np.full((8, 8, 4), 200, np.uint8)
    clear[:4, :, 3], clear[4:, :, 3] = 0, 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    _noise((8, 8), "RGB").quantize(16).save(tmp_path / "palette.gif")
    Image.fromarray(np.eye(8) > 0).save(tmp_path / "bits.png")
    names = [str(tmp_path / f) for f in ("deep.png", "clear.png", "palette.gif", "bits.png")]
    found = pictures.load(names, DIGITS, as_stored=False)[..., 0]
    assert np.array_equal(found[0], deep >> 8)
    assert (found[1][:4] == 0).all()
    assert (found[1][4:] == 200).all()
    assert np.array_equal(found[3], np.eye(8, dtype=np.uint8) * 255)


def test_the_cameras_note_of_how_it_was_held_is_followed(tmp_path):
    image = _noise((8, 8), "L")
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    image.save(tmp_path / "a.png", exif=exif)
    found = pictures.load([str(tmp_path / "a.png")], DIGITS, as_stored=False)[0, :, :, 0]
    assert np.array_equal(found, np.asarray(image)[::-1, ::-1])


def test_emnist_images_are_turned_as_the_dataset_has_them(tmp_path):
    image = _noise((28, 28), "L")
    image.save(tmp_path / "a.png")
    name = [str(tmp_path / "a.png")]
    upright = np.asarray(image)
    assert np.array_equal(pictures.load(name, EMNIST, as_stored=False)[0, :, :, 0], upright.T)
    assert np.array_equal(pictures.load(name, EMNIST, as_stored=True)[0, :, :, 0], upright)


def test_folders_and_standard_input(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.png"):
        _noise((8, 8), "L").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = pictures.files([str(tmp_path), "-"])
    assert found == [str(tmp_path / f) for f in ("a.jpg", "b.png", "sub/c.png")] + ["-"]
    buffer = io.BytesIO()
    _noise((8, 8), "L").save(buffer, "png")
    stdin = type("Stdin", (), {"buffer": io.BytesIO(buffer.getvalue())})
    monkeypatch.setattr("sys.stdin", stdin)
    assert pictures.load(["-"], DIGITS, as_stored=False).shape == (1, 8, 8, 1)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    _noise((64, 64)).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:3000]
    (tmp_path / "cut.png").write_bytes(cut)
    for names, match in (
        (["missing.png"], "neither"),
        ([str(tmp_path / "empty")], "holds no image"),
        (["-", "-"], "only once"),
    ):
        with pytest.raises(UserError, match=match):
            pictures.files(names)
    for name, match in (("text.png", "not an image"), ("cut.png", "cannot be read")):
        with pytest.raises(UserError, match=match) as caught:
            pictures.load([str(tmp_path / name)], CIFAR, as_stored=False)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    _noise((64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more pixels"):
        pictures.load([str(tmp_path / "a.png")], CIFAR, as_stored=False)


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
