"""Data of the user's own: folders of class folders, arrays, and runs that are trained on them."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from test_images_files import png

import trunk_torch_ref.evaluate
import trunk_torch_ref.train
from data.base.errors import UserError
from data.images import copies, datasets, files, own_arrays, shapes, specs
from data.images.splits import split
from data.recipes import recipe
from data.run import card, results, runfolder
from data.run.options import train_options

NAMES = ("beach, noon", "forêt", "夜")  # names in any script, one with a comma
COLOURS = {"beach, noon": (220, 190, 120), "forêt": (40, 120, 40), "夜": (15, 15, 50)}
QUICK = ["--image-size", "16", "--budget", "1M", "--epochs", "2"]


def photo(colour, seed, size=(60, 40)):
    """A photograph as a phone makes it, nearly: a colour with noise and a darker foreground."""
    rng = np.random.default_rng(seed)
    pixels = np.array(colour) + rng.normal(0, 20, (size[1], size[0], 3))
    pixels[rng.integers(size[1] // 2, size[1]) :] *= 0.7
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_class(folder, colour, count, first=0, kinds=("jpg", "png", "webp", "bmp")):
    folder.mkdir(parents=True)
    for place in range(count):
        photo(colour, first + place).save(folder / f"IMG_{place}.{kinds[place % len(kinds)]}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 photographs of three classes, without splits."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for place, (name, colour) in enumerate(COLOURS.items()):
        write_class(root / name, colour, 10, 100 * place)
    return root


def with_splits(root, counts):
    """A folder with the splits of `counts`, so many images of each of two classes."""
    for place, (name, count) in enumerate(counts.items()):
        for label, colour in enumerate(((200, 0, 0), (0, 0, 200))):
            write_class(root / name / "ab"[label], colour, count, 1000 * place + 100 * label)
    return root


def test_images_are_those_that_predict_is_given(photos):
    found = datasets.load(str(photos), image_size=16)
    assert found.spec.class_names == NAMES
    assert (found.spec.image_shape, found.spec.kind) == ((16, 16, 3), "folder")
    assert (len(found.train.labels), len(found.test.labels)) == (24, 6)
    assert np.bincount(found.train.labels).tolist() == [8, 8, 8]
    held = {image.tobytes() for image in (*found.train.images, *found.test.images)}
    for file in files.files([str(photos)]):
        assert files.read(file, found.spec).pixels.tobytes() in held
    assert found.notes == ("30 images have other proportions: their middle was taken",)


def test_a_folder_is_decoded_once_and_again_when_it_changes(photos, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    first = datasets.load(str(root), image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(files, "read", None)  # nothing is decoded
        assert datasets.load(str(root), image_size=16).fingerprint == first.fingerprint
    photo((255, 255, 255), 5).save(root / "夜" / "IMG_3.bmp")  # of the same length
    assert datasets.load(str(root), image_size=16).fingerprint != first.fingerprint


def test_a_run_decodes_nothing_again(tmp_path, monkeypatch):
    """It asks for the size and the channels that were found; they were not asked for at first."""
    root, file = with_splits(tmp_path / "d", {"train": 4, "test": 2}), tmp_path / "x.npz"
    images, labels = arrays()
    np.savez(file, images=images, labels=labels)
    counts = dict.fromkeys(("read", "_images"), 0)

    def count(module, name):
        work = getattr(module, name)

        def counted(*args):
            counts[name] += 1
            return work(*args)

        monkeypatch.setattr(module, name, counted)

    count(files, "read")
    count(own_arrays, "_images")
    for place in (root, file):
        first = datasets.load(str(place))
        again = datasets.load_again(first.spec)
        assert again.fingerprint == first.fingerprint
        assert again.notes == first.notes
    assert datasets.load(str(file), image_size=8).fingerprint == first.fingerprint
    assert counts == {"read": 12, "_images": 1}


def test_a_validation_folder_is_what_validates(tmp_path):
    root = with_splits(tmp_path / "d", {"train": 6, "validation": 3, "test": 4})
    found = datasets.load(str(root), image_size=8)
    parts = split(found, "holdout", seed=0)
    assert [len(part.labels) for part in (parts.train, parts.validation, parts.test)] == [12, 6, 8]
    own = [
        files.read(str(root / "validation" / name / file), found.spec).pixels
        for name in "ab"
        for file in sorted(os.listdir(root / "validation" / name))
    ]
    np.testing.assert_array_equal(parts.validation.images, own)
    assert parts.validation.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(28, 28)] * 6 + [(100, 80)] * 4, (28, 28)),
        ([(48, 64)] * 5 + [(10, 10)] * 5, (48, 64)),
        ([(28, 28)] * 4 + [(90, 80), (90, 81), (90, 82), (90, 83), (90, 84)], (64, 64)),
        ([(300, 200)] * 9, (64, 64)),
        ([(90, 63)] * 9, (32, 32)),
        ([(6, 6)] * 9, (32, 32)),
    ],
)
def test_the_size_is_that_of_most_images_or_32_or_64(sizes, size):
    assert shapes.chosen(sizes) == size


@pytest.mark.parametrize(("odd", "channels"), [((90, 90, 90), 1), ((90, 90, 91), 3)])
def test_images_are_grey_if_all_are(tmp_path, odd, channels):
    for name, level in (("dark", 10), ("light", 200)):
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        for place in range(4):
            Image.new("RGB", (8, 8), (level + place,) * 3).save(folder / f"{place}.png")
    Image.new("RGB", (8, 8), odd).save(tmp_path / "d" / "dark" / "0.png")
    assert datasets.load(str(tmp_path / "d")).spec.image_shape == (8, 8, channels)


def test_copies_are_counted_across_splits_and_classes():
    image = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 1), np.uint8)
    parts = {
        "train": (image[:20], np.arange(20) % 2),
        "validation": (image[19:24], np.ones(5, int)),
        "test": (np.concatenate([image[2:4], image[23:30]]), np.zeros(9, int)),
    }
    assert copies.notes(parts) == [
        "1 of 5 validation images (20.00 %) are train images as well: the accuracy on validation "
        "is too high by what they are worth",
        "2 of 9 test images (22.22 %) are train images as well: the accuracy on test is too high "
        "by what they are worth",
        "1 of 9 test images (11.11 %) are validation images as well: the accuracy on test is too "
        "high by what they are worth",
        "2 images stand under more than one class",
    ]


@pytest.mark.parametrize("own", [False, True])
def test_copies_within_train_are_counted(own):
    """Some are then trained on and held out: the validation accuracy is too high."""
    image = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 1), np.uint8)
    again = np.concatenate([image, image[:2], image[:1]])
    parts = {"train": (again, np.arange(13) % 3)}
    if own:
        parts["validation"] = (image[:0], np.zeros(0, int))
    several, double = copies.notes(parts | {"test": (image[:0], np.zeros(0, int))})
    assert several.startswith("3 of 13 train images (23.08 %) are copies of others in train")
    assert ("both sides of the tenth that is held out" in several) != own
    assert double == "2 images stand under more than one class"
    assert copies.notes({"train": (image, np.arange(10))}) == []
    one = copies.notes({"train": (again[[0, 10]], np.arange(2))})
    assert one[-1] == "1 image stands under more than one class"


def test_a_few_files_that_are_no_images_are_left_out_and_named(tmp_path):
    root = with_splits(tmp_path / "d", {"train": 10, "test": 10})
    (root / "train" / "a" / "notes.txt").write_text("these are all mine")
    (root / "train" / "a" / ".DS_Store").write_bytes(b"x")
    (root / "test" / "b" / "IMG_1.png").write_bytes(b"")
    found = datasets.load(str(root), image_size=8)
    assert (
        "2 of 41 files are no images that can be read and were left out "
        "(train/a/notes.txt is not an image in a format known here; "
        "test/b/IMG_1.png is not an image in a format known here)"
    ) in found.notes
    assert np.bincount(found.train.labels).tolist() == [10, 10]
    assert np.bincount(found.test.labels).tolist() == [10, 9]
    (root / "train" / "a" / "IMG_1.png").write_bytes(b"GIF8")
    with pytest.raises(UserError, match="3 of 41 files are no images") as error:
        datasets.load(str(root), image_size=8)
    assert "train/a/IMG_1.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_why_a_file_is_left_out_is_said(tmp_path):
    root = with_splits(tmp_path / "d", {"train": 4, "test": 4})
    frames = [photo((place * 60, 0, 0), place) for place in range(3)]
    frames[0].save(root / "train" / "a" / "x.gif", save_all=True, append_images=frames[1:])
    found = datasets.load(str(root), image_size=8)
    assert any("(train/a/x.gif holds 3 images; save" in note for note in found.notes)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_images_of_more_than_8_bits_have_one_range(kind, tmp_path):
    """12 bits in files of 16: a dark image stays dark, and predict makes the same of it."""
    for label, most in (("dark", 900), ("light", 4000)):
        (tmp_path / "d" / label).mkdir(parents=True)
        for place in range(4):
            pixels = np.linspace(0, most - place, 64).reshape(8, 8).astype(kind)
            suffix = "png" if kind == np.uint16 else "tif"
            Image.fromarray(pixels).save(tmp_path / "d" / label / f"{place}.{suffix}")
    found = datasets.load(str(tmp_path / "d"))
    dark, light = (found.train.images[found.train.labels == label] for label in (0, 1))
    assert abs(dark.mean() / 255 - 450 / 4095) < 0.01
    assert abs(light.mean() / 255 - 2000 / 4095) < 0.01
    assert any("8 images have more than 8 bits" in note for note in found.notes)
    assert any("4095 is white" in note for note in found.notes)
    spec = specs.from_json(json.loads(json.dumps(dataclasses.asdict(found.spec))))
    held = {image.tobytes() for image in (*found.train.images, *found.test.images)}
    for file in files.files([str(tmp_path / "d")]):
        assert files.read(file, spec).pixels.tobytes() in held


def test_a_black_image_says_nothing_of_white_whatever_its_opacity(tmp_path):
    """12 bits in RGBA files of 16, whose opacity has all of them."""
    for label, name in enumerate("ab"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for place in range(4):
            pixels = np.full((8, 8, 4), 65535, np.uint16)
            pixels[..., :3] = 1000 * (label + place)  # one is black
            (tmp_path / "d" / name / f"{place}.png").write_bytes(png(pixels))
    found = datasets.load(str(tmp_path / "d"))
    assert found.spec.whites == (4095, 0)
    seen = {int(each.max()) for each in (*found.train.images, *found.test.images)}
    assert seen == {round(1000 * level * 255 / 4095) for level in range(5)}


def test_values_that_pass_the_datasets_white_are_of_another_range(tmp_path):
    spec = dataclasses.replace(shapes.plain_spec("d", (8, 8, 1), ("a", "b")), whites=(4095, 1))
    for most, white, origin in (
        (900, 4095, "dataset"),
        (4095, 4095, "dataset"),
        (60000, 65535, "values"),
    ):
        pixels = np.linspace(0, most, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        found = files.read(tmp_path / "x.png", spec)
        assert (found.range.high, found.range.origin) == (white, origin)
        assert found.pixels.max() == round(most * 255 / white)
    with pytest.raises(UserError, match=r"no dataset can have the whites \(4095, -1\)"):
        specs.check(dataclasses.replace(spec, whites=(4095, -1)))


def test_own_validation_images_are_named_as_what_selects(tmp_path, capsys):
    root = with_splits(tmp_path / "d", {"train": 20, "validation": 4, "test": 4})
    words = ["--dataset", str(root), "--image-size", "8", "--budget", "100k", "--epochs", "1"]
    trunk_torch_ref.train.main([*words, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "selected on the dataset's own validation images; test used once" in said
    assert "held-out" not in said
    text = card.card(tmp_path / "run", tmp_path / "run")
    assert "those of the dataset's own validation split" in text
    assert "tenth" not in text
    # its images are on no other machine, so the commands say that a place is to be given
    assert "trunk_jax.evaluate run --data-dir IMAGES\n" in text
    assert "parity.check --checkpoint run --data-dir IMAGES\n" in text
    assert "`IMAGES`: the folder" in text


def signed(file, values):
    """A TIFF of signed values with 8 bits, which Pillow writes as others but for a tag."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2
    image = Image.fromarray(np.asarray(values, np.int8).view(np.uint8))
    image.save(file, tiffinfo=tags)


def test_signed_values_of_eight_bits_are_not_taken_for_others(tmp_path):
    spec = shapes.plain_spec("d", (2, 2, 1), ("a", "b"))
    signed(tmp_path / "good.tif", [[0, 5], [100, 127]])
    assert files.read(tmp_path / "good.tif", spec).pixels[..., 0].tolist() == [[0, 5], [100, 127]]
    Image.fromarray(np.array([[0, 5], [100, 255]], np.uint8)).save(tmp_path / "plain.tif")
    assert files.read(tmp_path / "plain.tif", spec).pixels[..., 0].tolist() == [[0, 5], [100, 255]]
    signed(tmp_path / "bad.tif", [[0, 5], [100, -1]])
    with pytest.raises(UserError, match=r"bad\.tif holds signed values from -1"):
        files.read(tmp_path / "bad.tif", spec)


def test_images_of_a_folder_that_cannot_be_read_are_not_passed_over(tmp_path):
    photo((1, 2, 3), 0).save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "c.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "notes.txt").write_text("no image by its name")
    found = files.files([str(tmp_path)])
    assert [os.path.basename(file) for file in found] == ["a.png", "b.heic", "c.png"]
    spec = shapes.plain_spec("d", (8, 8, 3), ("a", "b"))
    for file, words in zip(
        found[1:], ("not an image in a format", "c.png is missing"), strict=True
    ):
        with pytest.raises(UserError, match=words):
            files.read(file, spec)


def test_control_characters_in_names_are_escaped(tmp_path):
    root = tmp_path / "d"
    for place, name in enumerate(("x\ny", "z\x1b[1m")):
        write_class(root / name, (200 * place, 0, 0), 40, 100 * place)
    (root / "x\ny" / "a\nb.txt").write_text("no image")
    found = datasets.load(str(root), image_size=8)
    assert found.spec.class_names == ("x\\ny", "z\\x1b[1m")
    assert any("x\\ny/a\\nb.txt is not" in note for note in found.notes)
    images, labels = arrays(classes=2)
    assert datasets.of_arrays(images, labels, ["a\tb", "c"]).spec.class_names == ("a\\tb", "c")


def test_what_the_folder_says_of_itself(tmp_path):
    root = with_splits(tmp_path / "d", {"train": 4, "test": 2})
    (root / "dataset.toml").write_text('title = "T\\no"')
    assert datasets.load(str(root), image_size=8).spec.title == r"T\no"
    (root / "dataset.toml").write_text('title = "Two"\nlicence = "mine"\nlight_strokes = true\n')
    found = datasets.load(str(root), image_size=8)
    assert (found.title, found.spec.licence, found.spec.light_strokes) == ("Two", "mine", True)
    (root / "dataset.toml").write_text("titel = 3\n")
    with pytest.raises(UserError, match=r"titel.*title, licence"):
        datasets.load(str(root), image_size=8)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ({"Train": 6, "Test": 4}, (12, 0, 8)),
        ({"training": 6, "testing": 4}, (12, 0, 8)),
        ({"TRAINING": 6, "Val": 3, "test": 4}, (18, 6, 8)),
        ({"train": 6, "val": 4}, (12, 0, 8)),  # as ImageNet
    ],
)
def test_splits_under_other_names(names, sizes, tmp_path):
    found = datasets.load(str(with_splits(tmp_path / "d", names)), image_size=8)
    assert found.spec.class_names == ("a", "b")
    assert (len(found.train.labels), found.spec.validation, len(found.test.labels)) == sizes
    said = any("the validation images are used as test" in note for note in found.notes)
    assert said == (len(names) == 2 and "val" in names)


def test_a_class_may_be_called_train(tmp_path):
    for place, name in enumerate(("bus", "car", "train")):
        write_class(tmp_path / "d" / name, (60 * place, 0, 0), 5, 10 * place)
    found = datasets.load(str(tmp_path / "d"), image_size=8)
    assert found.spec.class_names == ("bus", "car", "train")


def test_a_pipe_among_images_is_named_and_not_waited_for(tmp_path):
    root = with_splits(tmp_path / "d", {"train": 6, "test": 4})
    os.mkfifo(root / "train" / "a" / "IMG_9.png")
    found = datasets.load(str(root))
    assert any("train/a/IMG_9.png" in note for note in found.notes)


def empty(root):
    root.mkdir()


def splits_without_classes(root):
    for name in ("train", "test"):
        write_class(root / name, (1, 2, 3), 4)


def splits_in_a_split(root):
    with_splits(root, {"train/Train": 4, "train/val": 4, "test/Train": 4})


def one_split_twice(root):
    with_splits(root, {"train": 4, "Train": 4, "test": 4})


def classes_beside_a_train_with_folders(root):
    with_splits(root, {"train": 4})
    write_class(root / "bus", (1, 2, 3), 4)


def a_folder_around(root):
    with_splits(root, {"images": 4})


def a_folder_around_in_train(root):
    with_splits(root, {"train/images": 4, "test/images": 4})


def images_of_test_without_folders(root):
    with_splits(root, {"train": 4})
    write_class(root / "test", (1, 2, 3), 4)


def one_class(root):
    write_class(root / "only", (1, 2, 3), 4)


def no_images_of_a_class(root):
    with_splits(root, {"train": 4, "test": 4})
    shutil.rmtree(root / "train" / "b")
    (root / "train" / "b").mkdir()


def no_test(root):
    with_splits(root, {"train": 4})


def other_test_class(root):
    with_splits(root, {"train": 4, "test": 4})
    (root / "test" / "b").rename(root / "test" / "c")


def case_alone(root):
    for name in ("Cat", "cat"):
        write_class(root / name, (1, 2, 3), 4)


def accent_alone(root):
    for name in ("caf\u00e9", "cafe\u0301"):
        write_class(root / name, (1, 2, 3), 4)


def link_out(root):
    with_splits(root, {"train": 4, "test": 4})
    outside = root.parent / "outside.png"
    photo((0, 0, 0), 0).save(outside)
    (root / "train" / "a" / "link.png").symlink_to(outside)


def folder_link_out(root):
    with_splits(root, {"train": 4, "test": 4})
    (root.parent / "elsewhere").mkdir()
    (root / "train" / "c").symlink_to(root.parent / "elsewhere")


def link_to_nothing(root):
    with_splits(root, {"train": 4, "test": 4})
    (root / "train" / "a" / "link.png").symlink_to(root / "nothing.png")


def a_class_of_no_images(root):
    with_splits(root, {"train": 20, "test": 4})
    write_class(root / "train" / "c", (1, 2, 3), 0)
    (root / "train" / "c" / "x.txt").write_text("no image")


def too_few_with_one_left_out(root):
    for name in "ab":
        write_class(root / name, (1, 2, 3), 3)
    (root / "b" / "IMG_0.jpg").write_text("no image")


def too_few(root):
    write_class(root / "a", (1, 2, 3), 9)
    write_class(root / "b", (3, 2, 1), 2)


def no_image_at_all(root):
    for name in "ab":
        (root / name).mkdir(parents=True)
        (root / name / "x.jpg").write_text("no")


def one_image_a_class(root):
    with_splits(root, {"train": 1, "test": 1})


BAD = {
    empty: "holds no folders",
    one_class: "holds one class (only)",
    splits_without_classes: "train holds no folders",
    splits_in_a_split: "train holds Train, val, which are names of splits",
    one_split_twice: "has Train and train; keep one",
    classes_beside_a_train_with_folders: "if train is a class, rename it",
    a_folder_around: "If a, b in it are what you mean, pass --dataset",
    a_folder_around_in_train: "If a, b in it are the classes, move them up into",
    no_images_of_a_class: "b holds no files",
    images_of_test_without_folders: "test holds no images in folders of classes",
    no_test: "has train/ and no test/",
    other_test_class: "has the class 'c', which",
    case_alone: "'Cat' and 'cat'",
    accent_alone: "one folder on systems",
    link_out: "link.png is a link out of",
    folder_link_out: "c is a link out of",
    link_to_nothing: "link.png is a link to nothing",
    a_class_of_no_images: "c/x.txt is not an image in a format known here",
    too_few_with_one_left_out: "b/IMG_0.jpg is not an image",
    too_few: "the class 'b' has 2 images",
    no_image_at_all: "holds no image that can be read",
    one_image_a_class: "needs at least two",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_bad_folder_is_one_line_and_nothing_is_written(make, tmp_path):
    root, out = tmp_path / "d", tmp_path / "run"
    make(root)
    with pytest.raises(UserError) as error:
        trunk_torch_ref.train.main(["--dataset", str(root), "--out", str(out)])
    assert BAD[make] in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--dataset", "no/such"], ["'no/such' is missing", "an .npz file"]),
        (["--dataset", "nothing"], ["'nothing' is no dataset", "digits"]),
        (["--dataset", "tfds:"], ["names no dataset", "tfds:cifar100"]),
        (["--dataset", "hf:"], ["names no folder"]),
        (["--dataset", "{photos}", "--epochs", "-3"], ["epochs is -3"]),
        (["--image-size", "32"], ["--image-size is for data of your own"]),
        (["--dataset", "{photos}", "--image-size", "4"], ["must be 8 to 224"]),
        (["--dataset", "{photos}", "--recipe", "efficient"], ["--recipe auto designs one"]),
        (["--dataset", "{photos}", "--backbone", "vgg"], ["auto designs resnet and monolith"]),
        (["--dataset", "{photos}", "--budget", "1k"], ["--budget", "is too little"]),
        (["--dataset", "{photos}", "--batch-size", "100"], ["more than the 21 training images"]),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, parts, photos, tmp_path):
    words = [word.format(photos=photos) for word in flags]
    with pytest.raises(UserError) as error:
        trunk_torch_ref.train.main([*words, "--out", str(tmp_path / "run")])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- arrays


def arrays(count=30, classes=3, shape=(8, 8)):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 60, (count, *shape)) + 60 * labels.reshape(-1, *[1] * len(shape))
    return images.astype(np.uint8), labels


def test_arrays_in_memory_and_in_a_file_are_the_same_dataset(tmp_path):
    images, labels = arrays()
    memory = datasets.of_arrays(images, labels, ["low", "middle", "high"])
    np.savez(tmp_path / "x.npz", images=images, labels=labels, classes=["low", "middle", "high"])
    stored = datasets.load(str(tmp_path / "x.npz"))
    assert memory.fingerprint == stored.fingerprint
    assert memory.spec.class_names == stored.spec.class_names == ("low", "middle", "high")
    assert (memory.spec.kind, stored.spec.kind) == ("arrays", "npz")
    assert stored.spec.image_shape == (8, 8, 1)
    both = np.concatenate([memory.train.images, memory.test.images])
    assert sorted(both.reshape(30, -1).tolist()) == sorted(images.reshape(30, -1).tolist())
    assert np.bincount(memory.test.labels).tolist() == [2, 2, 2]


def test_arrays_in_memory_are_trained_on(tmp_path):
    images, labels = arrays()
    memory = datasets.of_arrays(images, labels, ["low", "middle", "high"])
    words = ["--epochs", "1", "--budget", "100k", "--out", str(tmp_path / "run")]
    chosen = train_options("torch", words, memory)
    assert (chosen.recipe.name, chosen.recipe.spec.kind) == ("auto", "arrays")
    assert chosen.load() is memory
    assert recipe.from_json(json.loads(json.dumps(recipe.to_json(chosen.recipe)))) == chosen.recipe
    np.savez(tmp_path / "x.npz", images=images, labels=labels, classes=["low", "middle", "high"])
    with pytest.raises(UserError, match="pass --data-dir"):
        datasets.load_again(chosen.recipe.spec)
    again = datasets.load_again(chosen.recipe.spec, tmp_path / "x.npz")
    assert again.fingerprint == memory.fingerprint


def test_a_file_with_splits_under_the_names_of_keras(tmp_path):
    images, labels = arrays()
    np.savez(
        tmp_path / "x.npz",
        x_train=images[:20],
        y_train=labels[:20, None],
        x_test=images[20:],
        y_test=labels[20:],
    )
    found = datasets.load(str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(found.train.images[..., 0], images[:20])
    np.testing.assert_array_equal(found.test.labels, labels[20:])
    small = datasets.load(str(tmp_path / "x.npz"), image_size=16)
    assert small.train.images.shape == (20, 16, 16, 1)


IMAGES, LABELS = arrays()
BAD_ARRAYS = [
    ({"images": IMAGES[0], "labels": LABELS}, "have the shape [8, 8]"),
    ({"images": np.zeros((30, 3, 8, 8), np.uint8), "labels": LABELS}, "moveaxis(images, 1, -1)"),
    ({"images": np.full((30, 8, 8), np.nan), "labels": LABELS}, "hold NaN"),
    ({"images": IMAGES * 1.0, "labels": LABELS}, "floats are 0 (black) to 1"),
    ({"images": IMAGES.astype(int), "labels": LABELS}, "type int64"),
    ({"images": IMAGES, "labels": LABELS + 1}, "no image has the label 0"),
    ({"images": IMAGES, "labels": 2 * LABELS}, "no image has the label 1"),
    ({"images": IMAGES, "labels": LABELS - 1}, "the labels are -1, 0, 1; number the"),
    ({"images": IMAGES, "labels": np.eye(3)[LABELS]}, "argmax"),
    ({"images": IMAGES, "labels": 0 * LABELS}, "holds one class"),
    ({"images": IMAGES, "labels": LABELS * 1.0}, "the labels are float64"),
    ({"images": IMAGES, "labels": LABELS[:9]}, "labels have the shape [9]"),
    ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b"]}, "must be 0 to 1"),
    ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b", "b"]}, "stands twice"),
    ({"images": IMAGES}, "has images and no labels"),
    ({"pictures": IMAGES}, "has pictures; it must have images"),
    ({"train_images": IMAGES, "train_labels": LABELS}, "has train_images, train_labels; it must"),
    ({"images": IMAGES[:, :4, :4], "labels": LABELS}, "are 4x4, and sides must be 8 to 224"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, "are none"),
    ({"images": np.array([None]), "labels": LABELS}, "holds Python objects"),
]


@pytest.mark.parametrize(
    ("content", "words"), BAD_ARRAYS, ids=lambda x: x if type(x) is str else ""
)
def test_bad_arrays_are_one_line(content, words, tmp_path):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(UserError) as error:
        datasets.load(str(tmp_path / "x.npz"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_npz_file_in_capitals(tmp_path):
    images, labels = arrays()
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    assert datasets.load(str(tmp_path / "X.NPZ")).spec.name == "X"


def test_a_file_that_is_no_npz(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"is no \.npz file of NumPy's"):
        datasets.load(str(tmp_path / "x.npz"))
    (tmp_path / "x.npz").write_text("images")
    with pytest.raises(UserError, match="is a zip archive"):
        datasets.load(str(tmp_path / "x.npz"))
    with monkeypatch.context() as patch:
        refuse = PermissionError(13, "Permission denied")
        patch.setattr(own_arrays, "open", lambda *_: (_ for _ in ()).throw(refuse), raising=False)
        with pytest.raises(UserError, match="Permission denied"):
            datasets.load(str(tmp_path / "x.npz"))
    with pytest.raises(UserError, match="is missing"):
        datasets.load(str(tmp_path / "y.npz"))


@pytest.mark.parametrize(
    ("name", "words"), [("x.npy", "save images and labels as .npz"), ("x.zip", "unpack an archive")]
)
def test_a_file_that_is_there_is_not_called_missing(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=f"is neither a folder nor an .npz file; {words}"):
        datasets.load(str(tmp_path / name))


def test_a_folder_may_be_called_npz(tmp_path):
    root = with_splits(tmp_path / "d.npz", {"train": 4, "test": 2})
    first = datasets.load(str(root), image_size=8)
    assert (first.spec.name, first.spec.kind) == ("d", "folder")
    assert datasets.load_again(first.spec).fingerprint == first.fingerprint


# --- a dataset as a value in a run


def test_a_run_keeps_its_dataset(photos, tmp_path):
    chosen = train_options("torch", ["--dataset", str(photos), *QUICK]).recipe
    kept = json.loads(json.dumps(recipe.to_json(chosen)))
    assert recipe.from_json(kept) == chosen
    assert kept["data"]["class_names"] == list(NAMES)
    again = datasets.load_again(recipe.from_json(kept).spec)
    assert again.train.images.shape == (24, 16, 16, 3)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    found = datasets.load_again(chosen.spec, moved)
    assert found.fingerprint == again.fingerprint
    (moved / "夜").rename(moved / "night")
    with pytest.raises(UserError, match="has other classes"):
        datasets.load_again(chosen.spec, moved)


@pytest.mark.parametrize("name", specs.SPECS)
def test_the_datasets_known_here_are_values_of_the_same_kind(name):
    chosen = recipe.load("efficient", name)
    kept = json.loads(json.dumps(recipe.to_json(chosen)))
    assert recipe.from_json(kept).spec == specs.spec(name) == chosen.spec
    del kept["data"]  # as runs were written before
    assert recipe.from_json(kept) == chosen


def test_a_folder_of_a_name_that_is_known_here_is_another_dataset(tmp_path):
    root = with_splits(tmp_path / "cifar10", {"train": 4, "test": 2})
    found = train_options("jax", ["--dataset", str(root)])
    assert (found.recipe.dataset, found.recipe.name) == ("cifar10-own", "auto")
    assert found.recipe.spec.class_names == ("a", "b")


def test_a_recipe_file_of_ones_own_is_taken_for_ones_own_data(photos, tmp_path):
    text = (recipe.FOLDER / "efficient.toml").read_text()
    first = text.index("[digits.resnet]")
    table = text[first : text.index("[digits.monolith]")].replace("digits", "photos")
    (tmp_path / "mine.toml").write_text(table.replace("batch_size = 64", "batch_size = 16"))
    words = [
        "--dataset",
        str(photos),
        "--image-size",
        "16",
        "--recipe",
        str(tmp_path / "mine.toml"),
    ]
    found = train_options("torch", words).recipe
    assert (found.name, found.batch_size, found.joint.epochs) == ("mine", 16, 30)
    assert found.networks == train_options("torch", words[:4]).recipe.networks
    small = train_options("torch", [*words, "--budget", "1M"]).recipe
    assert small.networks.root.stem < found.networks.root.stem


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.slow)])
def run(request, photos, tmp_path_factory):
    """(framework's package, a finished run on the photographs)."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    package = {"torch": "trunk_torch_ref", "jax": "trunk_jax"}[request.param]
    train = __import__(f"{package}.train", fromlist=["main"])
    train.main(["--dataset", str(photos), *QUICK, "--out", str(folder)])
    return package, folder


def test_a_run_on_photographs_is_whole(run, tmp_path):
    package, folder = run
    summary = results.read_summary(folder)
    assert (summary["dataset"], summary["recipe"]) == ("photos", "auto")
    assert summary["accuracy"]["test"]["total"] == 6
    assert summary["paths"]["mean"]["multiply_adds"] <= 1e6
    rows = (folder / "confusion-test.csv").read_text().splitlines()
    assert rows[0] == 'true \\ predicted,"beach, noon",forêt,夜'
    evaluate = __import__(f"{package}.evaluate", fromlist=["main"])
    evaluate.main([str(folder), "--json", str(tmp_path / "e.json")])
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["correct"] == summary["accuracy"]["test"]["correct"]
    train = __import__(f"{package}.train", fromlist=["main"])
    train.main(["--out", str(folder), "--resume"])  # finished: its own flags are enough


@pytest.mark.slow
def test_every_command_works_on_a_run_on_photographs(run, photos, tmp_path, capsys):
    from parity import check
    from trunk_jax import compress, evaluate, export, metrics, predict, report

    _, folder = run
    check.main(["--checkpoint", str(folder), "--out", str(tmp_path / "parity")])
    found = json.loads((tmp_path / "parity" / "report.json").read_text())
    assert found["passed"]
    assert len(found["checks"]) >= 5
    metrics.main([str(folder), "--out", str(tmp_path / "m"), "--repeats", "1"])
    report.main([str(folder), "--out", str(tmp_path / "report")])
    compress.main([str(folder), "--quantize", "int8", "--out", str(tmp_path / "small")])
    handed = tmp_path / "handed on"
    export.main([str(folder), "--format", "folder", "--out", str(handed)])
    assert str(photos) not in (handed / "config.json").read_text()
    image = str(photos / "夜" / "IMG_0.jpg")
    given = []
    for place in (folder, handed, tmp_path / "small"):
        predict.main([str(place), image, "--json", str(tmp_path / "p.json")])
        (row,) = json.loads((tmp_path / "p.json").read_text())
        given.append(row["class"])
        assert row["class"] in NAMES
    assert given[0] == given[1]
    with pytest.raises(UserError, match="pass --data-dir"):
        evaluate.main([str(handed)])
    evaluate.main([str(handed), "--data-dir", str(photos), "--json", str(tmp_path / "e.json")])
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["correct"] == results.read_summary(folder)["accuracy"]["test"]["correct"]
    assert runfolder.read_recipe(handed).spec.place == "photos"
