"""Own data from end to end, in both frameworks, and every command on a run of class folders."""

import importlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from data.base.errors import UserError
from data.images import datasets, files, shapes
from data.recipes import recipe as recipes
from data.run import results
from data.run.options import train_options

PACKAGES = ("trunk_torch_ref", "trunk_jax")
KINDS = ("red", "green", "blue")
TURNED = 6  # EXIF: the camera was held upright, so the image is stored lying


def phone_photo(file, channel, seed, size=(1200, 900)):
    """A large JPEG with soft noise, mostly of one colour; every second was taken upright."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 120, (9, 12, 3))
    small[..., channel] += 130
    image = Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if seed % 2:
        exif[0x0112] = TURNED
    image.save(file, exif=exif, quality=90)


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """30 photographs of three classes as a phone stores them."""
    root = tmp_path_factory.mktemp("data") / "phone"
    for channel, kind in enumerate(KINDS):
        (root / kind).mkdir(parents=True)
        for place in range(10):
            phone_photo(root / kind / f"IMG_{place}.JPG", channel, 10 * channel + place)
    return root


def shuffled(root):
    """digits, whose labels say nothing of its images."""
    digits = datasets.load("digits").train
    labels = np.random.default_rng(0).permutation(digits.labels)
    np.savez(root / "shuffled.npz", images=digits.images, labels=labels)
    return root / "shuffled.npz"


def two_classes(root):
    digits = datasets.load("digits").train
    rows = np.flatnonzero(digits.labels < 2)
    np.savez(root / "two.npz", images=digits.images[rows], labels=digits.labels[rows])
    return root / "two.npz"


def twenty_a_class(root):
    digits = datasets.load("digits").train
    rows = np.concatenate([np.flatnonzero(digits.labels == label)[:20] for label in range(10)])
    np.savez(root / "twenty.npz", images=digits.images[rows], labels=digits.labels[rows])
    return root / "twenty.npz"


def trained(package, data, out, *flags):
    words = ["--dataset", str(data), "--budget", "300k", "--epochs", "3", *flags]
    importlib.import_module(f"{package}.train").main([*words, "--out", str(out)])
    return results.read_summary(out)


def agrees(run, out):
    """Both frameworks say the same of a run, layer by layer and image by image."""
    from parity import check

    check.main(["--checkpoint", str(run), "--out", str(out)])
    found = json.loads((out / "report.json").read_text())
    assert len(found["checks"]) >= 5
    return found["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_labels_that_say_nothing_give_chance_and_a_word(package, tmp_path, capfd):
    summary = trained(package, shuffled(tmp_path), tmp_path / "run")
    total = summary["accuracy"]["test"]["total"]
    # chance is a tenth; four standard deviations of so many answers
    apart = 4 * (0.1 * 0.9 / total) ** 0.5
    assert abs(summary["accuracy"]["test"]["accuracy"] - 0.1) < apart
    said = capfd.readouterr().err
    assert "groups by --volatility auto" in said
    assert len(summary["nodes"]) > 1  # the root splits whatever its likelihoods say
    assert agrees(tmp_path / "run", tmp_path / "parity")


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_classes_are_one_node(package, tmp_path, capfd):
    summary = trained(package, two_classes(tmp_path), tmp_path / "run")
    assert list(summary["nodes"]) == ["root"]
    assert "2 classes cannot be split" in capfd.readouterr().err
    assert summary["accuracy"]["test"]["accuracy"] > 0.8  # chance is a half
    assert agrees(tmp_path / "run", tmp_path / "parity")


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_twenty_images_a_class(package, tmp_path):
    summary = trained(package, twenty_a_class(tmp_path), tmp_path / "run", "--epochs", "10")
    assert summary["accuracy"]["test"]["total"] == 40
    assert summary["accuracy"]["test"]["accuracy"] > 0.3  # chance is a tenth
    assert agrees(tmp_path / "run", tmp_path / "parity")


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_photographs_of_a_phone(package, phone, tmp_path):
    flags = ["--image-size", "16", "--epochs", "30"]  # of one batch each
    summary = trained(package, phone, tmp_path / "run", *flags)
    assert (summary["dataset"], summary["accuracy"]["test"]["total"]) == ("phone", 6)
    assert summary["accuracy"]["test"]["accuracy"] >= 4 / 6  # chance is a third
    assert agrees(tmp_path / "run", tmp_path / "parity")


def test_the_size_is_that_of_images_as_they_are_seen(tmp_path):
    """All are stored 60 wide and 48 high; those that were turned are seen the other way."""
    for label, kind in enumerate(KINDS):
        (tmp_path / "d" / kind).mkdir(parents=True)
        for place in range(4):
            file = tmp_path / "d" / kind / f"{place}.jpg"
            phone_photo(file, label, 1 + 2 * place, size=(60, 48))
    assert shapes.of_file(file) == (60, 48)
    assert shapes.of_file(file.read_bytes()) == (60, 48)
    found = datasets.load(str(tmp_path / "d"))
    assert found.spec.image_shape == (60, 48, 3)
    assert found.notes == ()  # nothing had to be cut off
    phone_photo(file, 0, 2, size=(60, 48))
    assert shapes.of_file(file) == (48, 60)
    with Image.open(file) as image:
        assert files.read(image, found.spec).size == (60, 48)


@pytest.fixture(scope="module")
def pair(phone, tmp_path_factory):
    """A folder with a tree's run and a monolith's, of one dataset."""
    root = tmp_path_factory.mktemp("runs")
    trained("trunk_jax", phone, root / "tree", "--image-size", "16")
    trained("trunk_jax", phone, root / "one", "--image-size", "16", "--backbone", "monolith")
    return root


@pytest.mark.slow
def test_comparing_commands_take_class_folders_and_their_runs(pair, phone, tmp_path, capsys):
    from data import grown, table, versus
    from parity import convert
    from trunk_jax import ablation, compare
    from trunk_jax.pictures import __main__ as pictures
    from trunk_torch_ref import evaluate

    data = ["--dataset", str(phone), "--image-size", "16"]
    words = [*data, "--runs", str(pair), "--models", "mobilenet_v2", "--size", "0", "--images", "2"]
    compare.main([*words, "--out", str(tmp_path / "compare")])
    rows = json.loads((tmp_path / "compare" / "compare.json").read_text())["rows"]
    assert sorted(row["source"] for row in rows)[:2] == [str(pair / "one"), str(pair / "tree")]
    small = ["--budget", "300k", "--epochs", "1", "--out", str(tmp_path / "ablation")]
    ablation.main([*data, *small, "--volatility", "0.9", "1.1", "0.2"])
    assert (tmp_path / "ablation" / "ablation.csv").read_text().count("\n") == 3
    versus.main([str(pair / "tree"), str(pair / "one"), "--json", str(tmp_path / "v.json")])
    assert json.loads((tmp_path / "v.json").read_text())["images"] == 6
    capsys.readouterr()
    table.main([str(pair / "tree")])
    assert "phone" in capsys.readouterr().out
    grown.main([str(pair / "tree"), str(pair / "one")])
    assert "phone" in capsys.readouterr().out
    pictures.main([str(pair / "tree"), "--out", str(tmp_path / "figures")])
    assert any(file.suffix == ".svg" for file in (tmp_path / "figures").iterdir())
    convert.main([str(pair / "tree"), "--to", "torch", "--out", str(tmp_path / "torch")])
    evaluate.main([str(tmp_path / "torch"), "--json", str(tmp_path / "e.json")])
    ours = results.read_summary(pair / "tree")["accuracy"]["test"]["correct"]
    assert json.loads((tmp_path / "e.json").read_text())["correct"] == ours


@pytest.mark.slow
def test_a_run_of_class_folders_is_gone_on_with(pair, tmp_path):
    from trunk_jax import train

    tree = str(pair / "tree")
    train.main(["--from", tree, "--volatility", "1e-6", "--out", str(tmp_path / "flat")])
    assert list(results.read_summary(tmp_path / "flat")["nodes"]) == ["root"]
    train.main(["--init", tree, "--epochs", "1", "--out", str(tmp_path / "further")])
    further = results.read_summary(tmp_path / "further")
    assert further["nodes"].keys() == results.read_summary(pair / "tree")["nodes"].keys()
    assert further["dataset"] == "phone"


@pytest.mark.slow
def test_a_study_takes_class_folders(phone, tmp_path):
    from parity.study import command

    words = ["--dataset", str(phone), "--image-size", "16", "--budget", "300k", "--epochs", "1"]
    words += ["--dtype", "float64", "--controls", "2", "--out", str(tmp_path / "study")]
    assert command.main(words, inline=True) == 0
    value = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [coupled["finding"] for coupled in value["coupled"]] == [None]


def test_a_study_designs_a_recipe_for_data_of_ones_own(phone, tmp_path):
    from parity.study import options

    words = ["--dataset", str(phone), "--image-size", "16", "--budget", "300k"]
    chosen = options.options_of(words)
    recipe = chosen.settings.recipe
    assert (recipe.name, recipe.dataset, recipe.seed) == ("auto", "phone", 0)
    assert recipe.spec.place == str(phone)
    assert str(chosen.out) == "runs/study-phone-resnet-root"
    assert options.options_of([]).settings.recipe.name == "corrected"


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path, capfd):
    """Hard links to a few hundred, since what is tested is their number."""
    root, each = tmp_path / "many", 50_000
    for label, kind in enumerate(("a", "b")):
        (root / kind).mkdir(parents=True)
        for place in range(each):
            name, first = root / kind / f"{place:05}.png", root / kind / f"{place % 100:05}.png"
            if place < 100:
                pixels = np.full((8, 8), 100 * label + place, np.uint8)
                Image.fromarray(pixels).save(name)
            else:
                os.link(first, name)
    found = datasets.load(str(root), image_size=8)
    assert (len(found.train.labels), len(found.test.labels)) == (80_000, 20_000)
    assert found.spec.image_shape == (8, 8, 1)
    assert np.bincount(found.test.labels).tolist() == [10_000, 10_000]
    assert any("20,000 of 20,000 test images (100.00 %) are train images" in n for n in found.notes)
    said = capfd.readouterr().err
    assert "decoding many: " in said
    assert "of 100,000 images" in said


def test_a_dataset_smaller_than_a_batch_is_one_line(tmp_path):
    images, labels = np.zeros((9, 8, 8), np.uint8), np.arange(9) % 3
    np.savez(tmp_path / "nine.npz", images=images, labels=labels)
    for package in PACKAGES:
        with pytest.raises(UserError, match="--batch-size 64 is more than the 3 training images"):
            trained(package, tmp_path / "nine.npz", tmp_path / "run", "--batch-size", "64")
    assert not (tmp_path / "run").exists()


def test_ablation_and_compare_are_set_up_for_class_folders(phone, tmp_path, monkeypatch):
    """What they decide before they train or measure."""
    from trunk_jax import ablation, compare
    from trunk_jax.measure import comparison

    monkeypatch.chdir(tmp_path)
    words = ["--dataset", str(phone), "--image-size", "16", "--budget", "300k"]
    chosen = ablation.options_of([*words, "--volatility", "0.9", "1.1", "0.2"])
    assert str(chosen.out) == "runs/ablation-phone"
    assert [run.recipe.spec.image_shape for run in chosen.runs.values()] == [(16, 16, 3)] * 2
    assert [run.recipe.root.volatility for run in chosen.runs.values()] == [0.9, 1.1]
    data = datasets.load(str(phone), image_size=16).spec
    recipe = compare.recipe_of("mobilenet_v2", data, 0)
    assert (recipe.spec, recipe.baseline.size) == (data, 0)
    for name, size in (("same", 16), ("other", 32)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        flags = ["--dataset", str(phone), "--image-size", str(size), "--out", str(folder)]
        config = {"format": 1, "recipe": recipes.to_json(train_options("jax", flags).recipe)}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps({"dataset": "phone"}))
    monkeypatch.setattr(results, "read_summary", lambda run: {"dataset": "phone"})
    found = comparison.runs(tmp_path / "runs", data)
    assert found == ([tmp_path / "runs" / "same"], [tmp_path / "runs" / "other"])
