"""`tfds:NAME`: any dataset that TFDS has prepared, and those that are prepared here by name."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_images_datasets import (
    _idx,
    _pixels,
    _point_builders_at,
    _server,
    _site,
    _write_tfrecord,
)

from data import prepare
from data.base.errors import UserError
from data.images import datasets, files
from data.run.options import train_options

IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
LABEL = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _record(features):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        kind = example.features.feature[name]
        (kind.bytes_list if type(value) is bytes else kind.int64_list).value.append(value)
    return example.SerializeToString()


def _encoded(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _stored(root, splits, features, names=None):
    """A folder as stock TFDS leaves it, in tfrecord. `features`: name to (kind, what it says)."""
    folder = root / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    described = {name: {"pythonClassName": kind} | more for name, (kind, more) in features.items()}
    content = {"pythonClassName": DICT, "featuresDict": {"features": described}}
    (folder / "features.json").write_text(json.dumps(content))
    for name, classes in (names or {}).items():
        (folder / f"{name}.labels.txt").write_text("\n".join(classes) + "\n")
    about = {
        "name": "mine",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "description": "of mine",
        "moduleName": "mine",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(rows))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, rows in splits.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(about))
    for split, rows in splits.items():
        _write_tfrecord(folder / f"mine-{split}.tfrecord-00000-of-00001", rows)
    return folder


def _image(*shape):
    return IMAGE, {"image": {"dtype": "uint8", "shape": {"dimensions": [str(n) for n in shape]}}}


def _label(count):
    return LABEL, {"classLabel": {"numClasses": str(count)}}


def test_jpeg_of_any_size_with_one_split_and_other_names(tmp_path):
    """As eurosat and many others: train alone, here JPEG and PNG of sizes that differ."""
    rng, rows, images = np.random.default_rng(0), [], []
    for place in range(20):
        pixels = rng.integers(0, 256, (40 + place, 50, 3), np.uint8)
        encoded = _encoded(pixels, "JPEG" if place % 2 else "PNG")
        images.append(encoded)
        rows.append(_record({"photo": encoded, "kind": place % 2, "file": b"x"}))
    text = ("tensorflow_datasets.core.features.text_feature.Text", {"text": {}})
    _stored(
        tmp_path,
        {"train": rows},
        {"photo": _image(-1, -1, 3), "kind": _label(2), "file": text},
        {"kind": ["frog", "toad"]},
    )
    found = datasets.load("tfds:mine", tmp_path)
    assert found.spec.class_names == ("frog", "toad")
    assert (found.spec.kind, found.spec.image_shape) == ("prepared", (32, 32, 3))
    assert (len(found.train.labels), len(found.test.labels)) == (16, 4)
    expected = set()
    for encoded in images:
        image = Image.open(io.BytesIO(encoded))
        expected.add(files.read(image, found.spec).pixels.tobytes())
    assert {i.tobytes() for i in (*found.train.images, *found.test.images)} == expected
    chosen = train_options("torch", ["--dataset", "tfds:mine", "--data-dir", str(tmp_path)])
    assert (chosen.recipe.name, chosen.recipe.dataset) == ("auto", "mine")
    again = datasets.load_again(chosen.recipe.spec, tmp_path)
    assert again.fingerprint == found.fingerprint


def test_small_images_of_one_size_are_as_they_are_stored(tmp_path):
    pixels = _pixels(12, (9, 10))
    rows = [_record({"image": _encoded(p, "PNG"), "label": i % 2}) for i, p in enumerate(pixels)]
    splits = {"train": rows[:6], "validation": rows[6:8], "test": rows[8:]}
    _stored(tmp_path, splits, {"image": _image(9, 10, 1), "label": _label(2)})
    found = datasets.load("tfds:mine", tmp_path)
    np.testing.assert_array_equal(found.train.images[..., 0], pixels[:8])
    assert found.spec.validation == 2
    np.testing.assert_array_equal(found.test.images[..., 0], pixels[8:])


def test_splits_by_other_names_and_images_of_more_than_8_bits(tmp_path):
    levels = (500, 900, 4000)
    pixels = [np.full((8, 8), levels[place % 3], np.uint16) for place in range(12)]
    rows = [_record({"image": _encoded(p, "PNG"), "label": i % 3}) for i, p in enumerate(pixels)]
    splits = {"training": rows[:6], "dev": rows[6:9], "test": rows[9:], "extra": rows[:3]}
    _stored(tmp_path, splits, {"image": _image(8, 8, 1), "label": _label(3)})
    found = datasets.load("tfds:mine", tmp_path)
    assert (len(found.train.labels), found.spec.validation, len(found.test.labels)) == (9, 3, 3)
    assert "not used: extra" in found.notes
    assert found.spec.whites == (4095, 0)
    expected = np.array([round(level * 255 / 4095) for level in levels])
    assert (found.train.images[:, 0, 0, 0] == expected[found.train.labels]).all()


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"a": _image(8, 8, 3), "b": _image(8, 8, 3), "label": _label(2)}, "a (Image), b (Image)"),
        ({"image": _image(8, 8, 3)}, "and has image (Image)"),
        ({"image": _image(8, 8, 3), "x": _label(2), "y": _label(3)}, "x (ClassLabel), y (Class"),
    ],
)
def test_other_than_one_image_and_one_label_is_one_line(tmp_path, features, words):
    _stored(tmp_path, {"train": [b"x"]}, features)
    with pytest.raises(UserError) as error:
        datasets.load("tfds:mine", tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_and_absence_are_one_line(tmp_path):
    good = _record({"image": _encoded(_pixels(1, (8, 8))[0], "PNG"), "label": 1})
    rows = [good, _record({"image": b"\x89PNG", "label": 0})]
    folder = _stored(tmp_path, {"train": rows}, {"image": _image(8, 8, 1), "label": _label(2)})
    with pytest.raises(UserError, match="record 1 of split 'train'"):
        datasets.load("tfds:mine", tmp_path)
    (folder / "mine-train.tfrecord-00000-of-00001").unlink()
    with pytest.raises(UserError, match="is missing"):
        datasets.load("tfds:mine", tmp_path)
    with pytest.raises(UserError, match=r"'tfds:other' is not prepared in .*tfds build other"):
        datasets.load("tfds:other", tmp_path)


def test_a_shard_is_whole_if_it_has_its_records(tmp_path):
    encoded = _encoded(_pixels(1, (8, 8))[0], "PNG")
    rows = [_record({"image": encoded, "label": place % 2}) for place in range(4)]
    folder = _stored(tmp_path, {"train": rows}, {"image": _image(8, 8, 1), "label": _label(2)})
    (shard,) = folder.glob("*.tfrecord-*")
    whole, mine = shard.read_bytes(), datasets.unknown("mine")
    datasets.check(mine, folder)
    shard.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="truncated"):
        datasets.check(mine, folder)
    _write_tfrecord(shard, rows[:3])
    with pytest.raises(UserError, match="is damaged: 3 records, not 4"):
        datasets.check(mine, folder)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_mnist_and_its_likes_are_prepared(name, tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    train, test = ((_pixels(n, (28, 28)), np.arange(n) % 10) for n in (300, 20))
    site = {
        f"/{part}-{what}": _idx(array)
        for part, arrays in (("train", train), ("t10k", test))
        for what, array in zip(
            ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"), arrays, strict=True
        )
    }
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 300)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 20)
    with _server(site) as (address, _):
        monkeypatch.setattr(getattr(mnist, kind), "URL", address)
        prepare.main([f"tfds:{name}", "--data-dir", str(tmp_path / "data")])
    found = datasets.load(f"tfds:{name}", tmp_path / "data")
    assert found.spec.image_shape == (28, 28, 1)
    for part, (images, labels) in ((found.train, train), (found.test, test)):
        got = sorted((i.tobytes(), int(n)) for i, n in zip(part.images, part.labels, strict=True))
        assert got == sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))
    prepare.main([f"tfds:{name}", "--data-dir", str(tmp_path / "data")])  # is there already


EMNIST = {  # classes, and the labels that there are images of
    "byclass": (62, range(62)),
    "bymerge": (47, range(47)),
    "balanced": (47, range(47)),
    "letters": (37, range(1, 27)),
    "digits": (10, range(10)),
    "mnist": (10, range(10)),
}


@pytest.mark.parametrize("config", EMNIST)
def test_every_configuration_of_emnist_is_prepared(config, tmp_path, monkeypatch):
    """The archive holds all of them, and of Letters more images than TFDS takes."""
    from tensorflow_datasets.image_classification import mnist

    count, labels = EMNIST[config]
    more = 40 if config == "letters" else 0
    split = {"train": 300 + more, "test": 130 + more}
    original = {
        part: (_pixels(n, (28, 28)), np.resize(np.array(labels), n)) for part, n in split.items()
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, (images, numbers) in original.items():
            stem = f"gzip/emnist-{config}-{part}"
            archive.writestr(f"{stem}-images-idx3-ubyte.gz", _idx(images))
            archive.writestr(f"{stem}-labels-idx1-ubyte.gz", _idx(numbers))
        other = "balanced" if config != "balanced" else "mnist"
        archive.writestr(f"gzip/emnist-{other}-train-images-idx3-ubyte.gz", b"not for us")
    (found,) = [c for c in mnist.EMNIST.BUILDER_CONFIGS if c.name == config]
    assert found.class_number == count
    monkeypatch.setattr(found, "train_examples", 300)
    monkeypatch.setattr(found, "test_examples", 130)
    with _server({"/gzip.zip": buffer.getvalue()}) as (address, _):
        monkeypatch.setattr(mnist.EMNIST, "URL", f"{address}gzip.zip")
        prepare.main([f"tfds:emnist/{config}", "--data-dir", str(tmp_path / "data")])
    data = datasets.load(f"tfds:emnist/{config}", tmp_path / "data")
    assert (data.spec.turned, data.spec.light_strokes) == (True, True)
    names = data.spec.class_names
    assert len(names) == len(labels)
    ends = {"byclass": ("0", "z"), "letters": ("A", "Z"), "digits": ("0", "9"), "mnist": ("0", "9")}
    assert (names[0], names[-1]) == ends.get(config, ("0", "t"))
    left_out = "11 of 37 classes have no images and are left out (0, 27, 28, ...)"
    assert data.notes == ((left_out,) if config == "letters" else ())
    for part, (images, numbers), n in zip(
        (data.train, data.test), original.values(), (300, 130), strict=True
    ):
        got = sorted((i.tobytes(), int(k)) for i, k in zip(part.images, part.labels, strict=True))
        wanted = zip(images[:n], numbers[:n] - labels[0], strict=True)
        assert got == sorted((i.tobytes(), int(k)) for i, k in wanted)


def test_svhn_and_cifar10_are_prepared_under_their_names_in_tfds(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    with _server(_site()) as (address, _):
        _point_builders_at(monkeypatch, address)
        for name in ("svhn_cropped", "cifar10"):
            prepare.main([f"tfds:{name}", "--data-dir", str(tmp_path / "data")])
    for name, known in (("svhn_cropped", "svhn"), ("cifar10", "cifar10")):
        found = datasets.load(f"tfds:{name}", tmp_path / "data")
        plain = datasets.load(known, tmp_path / "data")
        assert found.fingerprint == plain.fingerprint
        assert found.spec.class_names == plain.spec.class_names


def test_cifar100_is_prepared_with_its_fine_labels(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import cifar

    images, fine = _pixels(220, (32, 32, 3)), np.arange(220) % 100
    planes = images.transpose(0, 3, 1, 2).reshape(220, -1)
    rows = np.concatenate([fine[:, None] // 5, fine[:, None], planes], 1).astype(np.uint8)
    buffer = io.BytesIO()
    content = {
        "train.bin": rows[:200].tobytes(),
        "test.bin": rows[200:].tobytes(),
        "coarse_label_names.txt": "".join(f"coarse{n}\n" for n in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine{n}\n" for n in range(100)).encode(),
    }
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    official = cifar.Cifar100._cifar_info.fget
    with _server({"/c.tar.gz": buffer.getvalue()}) as (address, _):
        url = f"{address}c.tar.gz"
        monkeypatch.setattr(
            cifar.Cifar100, "_cifar_info", property(lambda self: official(self)._replace(url=url))
        )
        prepare.main(["tfds:cifar100", "--data-dir", str(tmp_path / "data")])
    found = datasets.load("tfds:cifar100", tmp_path / "data")
    assert found.spec.class_names == tuple(f"fine{n}" for n in range(100))
    got = {
        (i.tobytes(), int(n)) for i, n in zip(found.train.images, found.train.labels, strict=True)
    }
    assert got == {(i.tobytes(), int(n)) for i, n in zip(images[:200], fine[:200], strict=True)}
