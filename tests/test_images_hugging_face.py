"""`hf:FOLDER`: a dataset that Hugging Face's save_to_disk has left, made here."""

import json

import numpy as np
import pytest
from PIL import Image

import trunk_torch_ref.train
from data.base.errors import UserError
from data.images import datasets as ours
from data.images import files, hugging_face
from data.run import runfolder
from data.run.options import train_options

hf = pytest.importorskip("datasets", reason="needs the extra hf")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    hf.disable_progress_bars()


def _pictures(count, classes=3, shape=(40, 50, 3)):
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 120, (count, *shape), np.uint8)
    pixels += (60 * (np.arange(count) % classes)).astype(np.uint8).reshape(-1, *[1] * len(shape))
    return [Image.fromarray(each) for each in pixels]


def _table(count, names=("ant", "bee", "cat"), shape=(40, 50, 3), **more):
    labels = [place % len(names) for place in range(count)]
    columns = {"image": _pictures(count, len(names), shape), "label": labels} | more
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=list(names))}
    features |= {name: hf.Value("string") for name in more}
    return hf.Dataset.from_dict(columns, features=hf.Features(features))


def _pixels(examples):
    rows = zip(examples.images, examples.labels, strict=True)
    return sorted((np.asarray(image).tobytes(), int(label)) for image, label in rows)


def test_splits_labels_and_pixels_are_the_saved_ones(tmp_path):
    parts = {"train": _table(12), "validation": _table(6), "test": _table(9), "extra": _table(3)}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "d")
    found = ours.load(f"hf:{tmp_path / 'd'}", image_size=16)
    assert found.spec.class_names == ("ant", "bee", "cat")
    assert (found.spec.kind, found.spec.image_shape) == ("hf", (16, 16, 3))
    assert (len(found.train.labels), found.spec.validation) == (18, 6)
    assert found.notes == ("not used: extra",)

    def expected(*names):
        rows = [row for name in names for row in parts[name]]
        read = ((files.read(row["image"], found.spec).pixels, row["label"]) for row in rows)
        return sorted((pixels.tobytes(), label) for pixels, label in read)

    assert _pixels(found.train) == expected("train", "validation")
    assert _pixels(found.test) == expected("test")
    again = ours.load_again(found.spec)
    assert again.fingerprint == found.fingerprint


def test_one_split_is_divided_and_grey_stays_grey(tmp_path):
    _table(20, ("a", "b"), (9, 11), file=["x"] * 20).save_to_disk(tmp_path / "d")
    found = ours.load(f"hf:{tmp_path / 'd'}")
    assert found.spec.image_shape == (9, 11, 1)
    assert (len(found.train.labels), len(found.test.labels)) == (16, 4)
    assert np.bincount(found.test.labels).tolist() == [2, 2]


def test_images_of_more_than_8_bits_have_one_range(tmp_path):
    images = [Image.fromarray(np.full((8, 8), level, np.uint16)) for level in (500, 900, 4000) * 3]
    columns = {"image": images, "label": [place % 3 for place in range(9)]}
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b", "c"])})
    hf.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "d")
    found = ours.load(f"hf:{tmp_path / 'd'}")
    assert found.spec.whites == (4095, 0)
    levels = np.array([round(level * 255 / 4095) for level in (500, 900, 4000)])
    for part in (found.train, found.test):
        assert (part.images[:, 0, 0, 0] == levels[part.labels]).all()
    assert any("4095 is white" in note for note in found.notes)


def test_without_test_validation_tests(tmp_path):
    hf.DatasetDict({"Train": _table(12), "VAL": _table(6)}).save_to_disk(tmp_path / "d")
    found = ours.load(f"hf:{tmp_path / 'd'}", image_size=16)
    assert (len(found.train.labels), len(found.test.labels), found.spec.validation) == (12, 6, 0)
    assert "there is no test split: the validation images are used as test" in found.notes


@pytest.mark.slow
def test_a_tree_is_trained_on_it_and_the_run_knows_where_it_was(tmp_path, monkeypatch):
    _table(30).save_to_disk(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "hf:saved", "--image-size", "16", "--budget", "300k", "--epochs", "1"]
    trunk_torch_ref.train.main([*words, "--out", "run", "--volatility", "1e-6"])
    spec = runfolder.read_recipe(tmp_path / "run").spec
    assert (spec.name, spec.place) == ("saved", str(tmp_path / "saved"))
    flags = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert flags["dataset"] == f"hf:{tmp_path / 'saved'}"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dataset"] == "saved"


def _of(features, **columns):
    return hf.Dataset.from_dict(columns, features=hf.Features(features))


ANY = {"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b"])}


def _two_images():
    return _of({**ANY, "mask": hf.Image()}, image=_pictures(2), label=[0, 1], mask=_pictures(2))


def _names_for_labels():
    return _of(
        {"image": hf.Image(), "kind": hf.Value("string")}, image=_pictures(2), kind=["a", "b"]
    )


def _no_label():
    return _of(ANY, image=_pictures(4), label=[0, 1, -1, 0])


def _no_image_stored():
    return _of(ANY, image=[*_pictures(2), None], label=[0, 1, 0])


def _damaged():
    return _of(ANY, image=[{"bytes": b"\x89PNG", "path": None}] * 4, label=[0, 1] * 2)


def _test_alone():
    return hf.DatasetDict({"test": _table(6)})


BAD = [
    (_two_images, "has image (Image), label (ClassLabel), mask (Image)"),
    (_names_for_labels, "has image (Image), kind (Value); keep one of each"),
    (_no_label, "record 2 of split 'train'"),
    (_no_image_stored, "does not hold its image"),
    (_damaged, "holds no image that can be read"),
    (_test_alone, "has no split train; it has test"),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=lambda x: getattr(x, "__name__", ""))
def test_what_cannot_be_trained_on_is_one_line(make, words, tmp_path):
    make().save_to_disk(tmp_path / "d")
    with pytest.raises(UserError) as error:
        train_options("torch", ["--dataset", f"hf:{tmp_path / 'd'}"])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_folder_no_dataset_no_package(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="names no folder; give hf: and a folder"):
        train_options("torch", ["--dataset", "hf:no/such"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is no dataset that Hugging Face's save_to_disk has left"):
        ours.load(f"hf:{tmp_path / 'empty'}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'trunk-jax\[hf\]'"):
        hugging_face.need_package()
