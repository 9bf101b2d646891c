"""What Python programs use: `trunk_jax.load`, `grow`, and the model that they give."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import random_trees
from conftest import fixed_groups
from PIL import Image

import data.inference.inputs
import data.inference.model
import data.inference.shipped
import data.run.options
import data.tree.drawing
from data.base.errors import UserError
from data.images import datasets
from data.images.splits import split
from data.inference import stopping
from data.inference.model import Model, Visit, answer, predictions
from data.recipes import recipe
from data.run import runfolder
from data.training import scalars
from data.tree import hierarchy
from data.tree.drawing import draw

ROOT = Path(__file__).parents[1]
RECIPE = recipe.load("efficient", "digits")
# ten digits: the root tells {0, 6, 8}, 1, {2, 3} ... apart
TREE = hierarchy.regroup(hierarchy.bare(10), (), ((0, 6, 8), (1,), (2, 3), (4,), (5,), (7,), (9,)))
HEAVY = ("jax", "jaxlib", "flax", "numpy", "torch", "PIL", "matplotlib", "rich", "jaxtyping")


def visit(node, places, outputs):
    """A visit with these probabilities of each output."""
    outputs = np.array(outputs)
    return Visit(node, np.array(places), outputs.argmax(1), np.log(outputs))


# image 0 goes to {0, 6, 8} and there to 8; image 1 to 4; image 2 to {2, 3} and there to 2
VISITS = [
    visit(
        (),
        [0, 1, 2],
        [
            [0.6, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05],
            [0.3, 0.0625, 0.04, 0.4, 0.0625, 0.0625, 0.0725],
            [0.1, 0.1, 0.5, 0.1, 0.1, 0.05, 0.05],
        ],
    ),
    visit((0,), [0], [[0.2, 0.3, 0.5]]),
    visit((2,), [2], [[0.9, 0.1]]),
]


@dataclass(frozen=True, repr=False)
class Recording(Model):
    """A model that keeps the pixels it was asked about, and answers with `VISITS`' first."""

    def visits(self, pixels):
        self.networks["pixels"] = pixels
        every = np.full((len(pixels), 7), 0.1)
        every[:, 1] = 0.4
        yield visit((), np.arange(len(pixels)), every)


@pytest.fixture
def model():
    return Recording(RECIPE, TREE, {})


@pytest.mark.parametrize("package", ["trunk_jax", "trunk_torch_ref"])
def test_importing_a_framework_loads_nothing_heavy(package):
    code = (
        f"import sys, {package}\n"
        f"assert {{'load', 'grow', 'Model', 'Answer'}} <= set(dir({package}))\n"
        f"assert not hasattr({package}, 'nothing')\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


@pytest.mark.parametrize(
    "module",
    [
        data.inference.inputs,
        data.inference.shipped,
        data.run.options,
        data.tree.drawing,
    ],
    ids=lambda module: module.__name__,
)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_a_row_sums_to_the_probability_of_having_come_to_the_last_node():
    found = answer(Model(RECIPE, TREE, {}), iter(VISITS), 3)
    assert found.labels.tolist() == [8, 4, 2]
    assert found.names.tolist() == ["8", "4", "2"]
    assert list(found.paths) == [("root", "sg1"), ("root",), ("root", "sg4")]
    expected = np.zeros((3, 10))
    expected[0, [0, 6, 8]] = 0.6 * 0.2, 0.6 * 0.3, 0.6 * 0.5
    # the root is image 1's last node: its groups' shares are divided among their classes
    expected[1, [0, 6, 8]], expected[1, [2, 3]] = 0.3 / 3, 0.04 / 2
    expected[1, [1, 4, 5, 7, 9]] = 0.0625, 0.4, 0.0625, 0.0625, 0.0725
    expected[2, [2, 3]] = 0.5 * 0.9, 0.5 * 0.1
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(found.probabilities.sum(1), [0.6, 1, 0.5], rtol=1e-12)
    np.testing.assert_allclose(found.confidence, [0.3, 0.4, 0.45], rtol=1e-12)
    assert np.array_equal(found.probabilities.argmax(1), found.labels)
    assert str(found).splitlines()[0] == "8 30.0 % (root > sg1)"
    told = predictions(TREE, iter(VISITS), 3)
    assert told.labels.tolist() == [8, 4, 2]
    np.testing.assert_allclose(told.confidence, [0.3, 0.4, 0.45], rtol=1e-12)


def test_images_may_be_arrays_files_folders_and_pillows(model, tmp_path):
    images = datasets.load("digits").test.images[:3]
    for place, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{place}.png")
    files = [str(tmp_path / f"{place}.png") for place in range(3)]
    opened = [Image.open(file) for file in files]
    for given in (
        images,
        images / 255,
        images[..., 0],
        list(images),
        files,
        tmp_path,
        [Path(files[0]), opened[1], files[2]],
        tuple(opened),
    ):
        found = model.predict(given)
        assert np.array_equal(model.networks["pixels"], images)
        assert found.labels.tolist() == [1, 1, 1]
    for one in (images[0], files[0], opened[0]):
        assert len(model.predict(one)) == 1
        assert np.array_equal(model.networks["pixels"], images[:1])
    assert len(model.predict(images[:0])) == 0
    assert model.predict(images[:0]).names.tolist() == []


def test_what_files_become_is_the_callers_choice(model, tmp_path):
    image = datasets.load("digits").test.images[0, :, :, 0]
    paper, wide = Image.fromarray(255 - image), Image.fromarray(image.repeat(2, 1))
    model.predict(paper)
    assert np.array_equal(model.networks["pixels"][0, :, :, 0], image)  # inverted, it is on paper
    model.predict(paper, invert="no")
    assert np.array_equal(model.networks["pixels"][0, :, :, 0], 255 - image)
    model.predict(wide, fit="stretch")
    assert np.array_equal(model.networks["pixels"][0, :, :, 0], image)
    with pytest.raises(ValueError, match="fit is 'squeeze'; it must be one of crop, pad, stretch"):
        model.predict(wide, fit="squeeze")


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((2, 8, 8, 1), np.int32), "type int32"),
        (np.full((2, 8, 8, 1), 2.0), "floats from 2 to 2"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \[2, 8, 8, 3\], not \[n, 8, 8, 1\]"),
        (np.zeros((2, 9, 8, 1), np.uint8), r"shape \[2, 9, 8, 1\]"),
        (np.full((2, 8, 8, 1), np.nan), "NaN"),
        ("no-such-file.png", "no-such-file.png is neither an image file nor a folder"),
        ([Image.new("L", (8, 8)), np.zeros((8, 8, 1), np.uint8)], "not both: it has ndarray"),
        ([], "shape"),
    ],
)
def test_what_is_no_image_is_one_clear_error(model, images, match):
    with pytest.raises(ValueError, match=match) as caught:
        model.predict(images)
    assert isinstance(caught.value, UserError)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match=match):
        model.features(images)


def test_a_model_is_drawn_with_its_classes(model):
    assert str(model).splitlines() == [
        "<digits (scikit-learn), efficient resnet: 10 classes, 3 nodes>",
        "root ─ {0 6 8} │ 1 │ {2 3} │ 4 │ 5 │ 7 │ 9",
        "├─ sg1 ─ 0 │ 6 │ 8",
        "└─ sg4 ─ 2 │ 3",
    ]
    assert repr(model) == str(model).splitlines()[0]


def test_long_lines_of_a_drawing_are_folded_beside_the_rules():
    names = ["a class with words", "bird", "cat", "dog"]
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 1, 2), (3,)))
    tree = hierarchy.regroup(tree, (0,), ((0, 1), (2,)))
    assert draw(tree, names, width=30).splitlines() == [
        "root ─ {a class with words",
        "│    bird cat} │ dog",
        "└─ sg1 ─ {a class with words",
        "   │    bird} │ cat",
        "   └─ sg2 ─ a class with words",
        "           │ bird",
    ]


@pytest.mark.parametrize("node", [[1], [[1]], 5, None, ([1],)])
def test_what_names_no_node_is_one_line(model, node):
    with pytest.raises(UserError, match=r"no node .*; the nodes: root"):
        model.features(np.zeros((1, *model.image_shape), np.uint8), node)


def test_nodes_are_named(model):
    with pytest.raises(UserError, match="no node 'sg7'; the nodes: root, sg1, sg4"):
        model.features(np.zeros((1, 8, 8, 1), np.uint8), "sg7")
    assert model._node("sg4") == model._node((2,)) == (2,)


@pytest.mark.slow  # test_training_exits has the rule, in both frameworks
def test_a_loaded_tree_stops_where_its_folder_says(tmp_path):
    run = random_trees.write_run(tmp_path / "run", "resnet", exits=True)
    images, found = random_trees.test_images().images, []
    for package in ("trunk_jax", "trunk_torch_ref"):
        loaded = importlib.import_module(package).load(run)
        assert loaded.stopping == stopping.read(run, loaded.tree) != stopping.Stopping()
        found.append(loaded.predict(images).paths.tolist())
    assert found[0] == found[1]
    assert {len(path) for path in found[0]} == {1, 2}


def test_a_shipped_tree_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    for name in ("cifar10", "cifar100", "emnist", "svhn"):
        folder = data.inference.shipped.run_of(name)
        assert runfolder.read_recipe(folder).dataset == name
    assert data.inference.shipped.run_of("./cifar10") == Path("cifar10")
    names = "cifar10, cifar100, emnist, svhn"
    with pytest.raises(UserError, match=f"no run folder mnist; .* called {names}"):
        data.inference.shipped.run_of("mnist")
    monkeypatch.setattr(data.inference.shipped, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(UserError, match="without the shipped trees"):
        data.inference.shipped.run_of("cifar10")


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_has_the_shipped_trees(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    house, target = tmp_path / "house", tmp_path / "target"
    house.mkdir()
    for name in ("data", "parity", "trunk_jax", "trunk_torch_ref", "checkpoints"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, house / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "trunk_sisters.py"):
        shutil.copy(ROOT / name, house)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    flags = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", *flags, str(house)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 15e6  # bytes: weights of 10.5e6 that hardly pack, and sources
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(house)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import numpy, trunk_jax, trunk_jax.model\n"
        "answer = trunk_jax.load('svhn').predict(numpy.load('images.npy'))\n"
        "print(trunk_jax.__file__, trunk_jax.load('emnist').folder, *answer.labels)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
    )
    package, folder, *labels = done.stdout.split()
    assert package == str(target / "trunk_jax" / "__init__.py")
    assert folder == str(target / "checkpoints" / "emnist-efficient")
    import trunk_torch_ref

    here = trunk_torch_ref.load("svhn").predict(images).labels
    assert list(map(int, labels)) == here.tolist()


@pytest.mark.parametrize("package", ["trunk_jax", "trunk_torch_ref"])
def test_examples_of_the_door(package):
    """`grow`'s is left to the slow test: JAX compiles for seconds."""
    door = importlib.import_module(package)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    model = door.load("cifar10")
    tests = finder.find(
        importlib.import_module(f"{package}.model"), "door", extraglobs={"model": model}
    )
    tests += finder.find(data.inference.model, "values", globs={"model": model, "np": np})
    tests = [test for test in tests if test.examples]
    exported = {"door.Model.export"} if package == "trunk_jax" else set()
    assert {test.name for test in tests} == exported | {
        "door.load",
        "door.grow",
        "values.Model.predict",
        "values.Model.features",
        "values.Answer",
    }
    for test in tests:
        if test.name != "door.grow":
            assert runner.run(test, clear_globs=False).failed == 0
    assert runner.tries > 8


@pytest.mark.slow
@pytest.mark.parametrize("package", ["trunk_jax", "trunk_torch_ref"])
def test_example_of_growing(package):
    module = importlib.import_module(f"{package}.model")
    (test,) = [t for t in doctest.DocTestFinder().find(module, "door") if t.name == "door.grow"]
    assert doctest.DocTestRunner().run(test) == (0, 4)


@pytest.mark.parametrize(
    "package", [pytest.param("trunk_jax", marks=pytest.mark.slow), "trunk_torch_ref"]
)
def test_growing_from_python(package, tmp_path, monkeypatch, capsys):
    from data.tree import grouping

    grow = importlib.import_module(package).grow
    monkeypatch.setattr(grouping, "group", fixed_groups)
    rows, flags = [], {"limit": 100, "epochs": 1, "batch_size": 32, "backbone": "vgg"}
    here = {"volatility": 1, "out": tmp_path / "run"}
    model = grow(**flags, **here, on_epoch=rows.append, tensorboard=True, seed=None)
    assert rows == runfolder.read_metrics(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert [row["node"] for row in rows] == ["root", "root", "sg1", "sg4", "sg11"]
    assert {"epoch", "lr", "train_loss", "validation_accuracy", "seconds"} <= rows[0].keys()
    assert capsys.readouterr().out == ""
    assert model.folder == tmp_path / "run"
    of = model.recipe
    test = split(datasets.load("digits"), of.protocol, of.seed, of.limit).test
    csv = (tmp_path / "run" / "predictions-test.csv").read_text().splitlines()[1:]
    expected = [int(line.split(",")[2]) for line in csv]
    assert model.predict(test.images).labels.tolist() == expected
    with pytest.raises(ValueError, match="exists; add --resume"):
        grow(**flags, **here)
    with pytest.raises(ValueError, match="unrecognized arguments: --epoch=1"):
        grow(epoch=1)
    with pytest.raises(ValueError, match="in no run folder"):
        grow(init=replace(model, folder=None), out=tmp_path / "new")
    again = grow(init=model, epochs=1, out=tmp_path / "again")
    assert again.tree == model.tree
    config = runfolder.read_config(tmp_path / "again")
    assert config["flags"]["init"] == str(tmp_path / "run")
    assert config["flags"]["limit"] == 100


def test_growing_from_arrays(tmp_path):
    """Two classes of 8x8, told apart by their left half; the tree knows their names again."""
    import trunk_torch_ref

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 60, (60, 8, 8), np.uint8)
    images[labels == 1, :, :4] += 150
    model = trunk_torch_ref.grow(
        images=images / 255,
        labels=labels,
        classes=("dark", "bright"),
        out=tmp_path / "run",
        epochs=3,
        batch_size=16,
        budget="200k",
    )
    assert model.classes == ("dark", "bright")
    answer = trunk_torch_ref.load(tmp_path / "run").predict(images[:20])
    assert answer.names.tolist() == ["dark", "bright"] * 10
    with pytest.raises(ValueError, match="give images as well"):
        trunk_torch_ref.grow(labels=labels)
    with pytest.raises(ValueError, match="no image has the label 0"):
        trunk_torch_ref.grow(images=images, labels=labels + 1, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_name_on_the_hub_is_fetched(monkeypatch, model):
    from data.inference import shipped

    monkeypatch.setattr(shipped.hub, "fetch", lambda name: Path("/fetched") / name)
    assert shipped.run_of("hub:someone/tree") == Path("/fetched/hub:someone/tree")


def test_tensorboard_gets_the_numbers_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    rows = [
        {
            "node": "root",
            "phase": "class",
            "epoch": epoch,
            "lr": 0.5,
            "train_loss": 2.0 / epoch,
            "validation_loss": None,
            "seconds": 1.25,
        }
        for epoch in (1, 2)
    ]
    for row in rows:  # the second as a run that goes on writes it
        with scalars.writing(tmp_path) as write:
            write(row)
    found = {}
    for file in sorted((tmp_path / "tensorboard").glob("events.out.tfevents.*")):
        events = [Event.FromString(raw) for raw in RawEventFileLoader(str(file)).Load()]
        assert events[0].file_version == "brain.Event:2"
        for event in events[1:]:
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found == {
        (f"root/class/{name}", row["epoch"]): row[name]
        for row in rows
        for name in ("lr", "train_loss", "seconds")
    }


def test_writing_for_tensorboard_loads_no_framework(tmp_path):
    pytest.importorskip("tensorboard")
    code = (
        "import pathlib, sys\n"
        "from data.training import scalars\n"
        "with scalars.writing(pathlib.Path('run')) as write: pass\n"
        "print(*[name for name in ('jax', 'torch', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == []


def test_without_tensorboard_it_is_one_line_and_no_folder(tmp_path, monkeypatch):
    import trunk_torch_ref

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="needs the package tensorboard: pip install tensorboard"):
        trunk_torch_ref.grow(dataset="digits", tensorboard=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
