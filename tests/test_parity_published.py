"""Published folders: the real CIFAR-10 one, and made-up ones in the other layouts; bad ones."""

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.base.errors import run_command
from data.images import datasets, folders, specs
from data.images.datasets import Dataset, Examples
from data.tree import hierarchy
from parity import published
from parity.published import main, regrouped
from trunk_torch_ref import nodes
from trunk_torch_ref.network import network

REAL = Path(__file__).parents[1].parent / "shared" / "published" / "cifar10-vgg"
IMAGES = 20

# docs/trunk.md, section 1
SVHN_PATHS = (
    (0, 0),
    (1,),
    (2,),
    (3, 0),
    (4,),
    (3, 1),
    (0, 1),
    (5,),
    (0, 2),
    (0, 3),
)
SVHN_GROUPS = ((0, 6, 8, 9), (1,), (2,), (3, 5), (4,), (7,))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Several threads only wait for each other on small images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- folders as the release wrote them, with weights of our own


def svhn_tree():
    tree = hierarchy.regroup(hierarchy.bare(10), (), SVHN_GROUPS)
    assert tree.paths == SVHN_PATHS
    return tree, {"root": SVHN_GROUPS}


def emnist_tree():
    """Three nodes are regrouped, the later sibling first, as in the release."""
    singles = tuple((label,) for label in range(47))
    groups = {
        (): ((0, 1, 2, 3), (4, 5, 6, 7), *singles[8:]),
        (1,): ((0, 3), (1,), (2,)),
        (0,): ((0,), (1, 2), (3,)),
    }
    tree, named = hierarchy.bare(47), {}
    for node in ((), (1,), (0,)):
        named[tree.names[node]] = groups[node]
        tree = hierarchy.regroup(tree, node, groups[node])
    return tree, named


def asl_for(groups, volatility):
    """Chains of likeness inside each group, a hair above the threshold; the rest below it."""
    n = sum(map(len, groups))
    edge = volatility / n
    asl = np.full((n, n), 0.999 * edge, np.float32)
    asl[np.tril_indices(n)] = 0.9  # the release looks at the upper triangle alone
    for group in groups:
        for low, high in itertools.pairwise(group):
            asl[low, high] = 1.001 * edge
    return torch.tensor(asl)


def write_folder(folder, dataset, tree, named, volatility, images):
    """A folder in the release's layout; the trained-looking networks by node."""
    depth = tree.depth + 1  # counted in nodes, root included
    target_map = {
        str(label): [*path, *[-1] * (depth - len(path))] for label, path in enumerate(tree.paths)
    }
    height, width, channels = images.shape[1:]
    x = {(): torch.tensor(images.transpose(0, 3, 1, 2)) / 255}
    if dataset == "svhn":
        x[()] = (x[()] - 0.5) / 0.5
    shapes, networks, models = {(): (channels, height, width)}, {}, {}
    (folder / "model_weights").mkdir(parents=True)
    (folder / "model_softmax").mkdir()
    inner = tree.nodes
    with network.seeded(3), torch.no_grad():
        for node in inner:
            name, outputs = tree.names[node], tree.width(node)
            if node:
                shapes[node] = network.feature_shape(networks[node[:-1]], shapes[node[:-1]])
                x[node] = network.features(networks[node[:-1]], x[node[:-1]])
            module = nodes.build(
                dataset, "mobilenet", name, shapes[node], outputs, faults=("pointwise_padding",)
            )
            for layer in module.modules():  # statistics as after training, so images differ
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.momentum = None
            module.train()(x[node])
            module.classifier[0].weight *= 30
            module.classifier[0].bias -= 30 * (
                module.eval().features(x[node]).mean((0, 2, 3))
                @ module.classifier[0].weight[:, :, 0, 0].T
                / 30
            )
            module.classifier[0].bias[4:] -= 1000  # or few images would come to the children
            networks[node] = module
            count = len(tree.members(node))
            groups = named.get(name, tuple((k,) for k in range(count)))
            (folder / f"{name}_supergroups.json").write_text(
                json.dumps({f"Group {k + 1}": list(g) for k, g in enumerate(groups)}, indent=4)
            )
            torch.save(
                asl_for(groups, volatility), folder / "model_softmax" / f"{name}_avg_softmax.pt"
            )
    for path in sorted(tree.names):
        if path in networks:
            models[tree.names[path]] = [list(shapes[path]), tree.width(path)]
        else:  # the children of the node trained last are []
            known = path[:-1] != inner[-1]
            shape = network.feature_shape(networks[path[:-1]], shapes[path[:-1]]) if known else []
            models[tree.names[path]] = [list(shape), 1]
    (folder / "target_map.json").write_text(json.dumps(target_map))
    (folder / "model_weights" / "inputs_to_models.json").write_text(json.dumps(models))
    return networks


def save_on_gpu(patch, content, file, **how):
    """As saved where the tensors lay on a GPU: the file asks for cuda:0."""
    with patch.context() as inner:
        inner.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(content, file, **how)
    assert b"cuda:0" in file.read_bytes()


def walk(dataset, tree, networks, image):
    """The label of one image by the rule alone: the greatest output, from the root down."""
    x = torch.tensor(image.transpose(2, 0, 1)[None]).to(torch.float32) / 255
    if dataset == "svhn":
        x = 2 * x - 1
    path = ()
    with torch.no_grad():
        while path not in tree.paths:
            x, scores = networks[path].eval()(x)
            path = (*path, int(scores[0].argmax()))
    return tree.paths.index(path)


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """(dataset, folder, tree, networks, images) of a made-up published folder."""
    dataset = request.param
    folder = tmp_path_factory.mktemp(dataset)
    height, width, channels = specs.spec(dataset).image_shape
    blocks = np.random.default_rng(4).integers(0, 256, (IMAGES, 4, 4, channels), np.uint8)
    images = np.kron(blocks, np.ones((1, height // 4, width // 4, 1), np.uint8))
    tree, named = svhn_tree() if dataset == "svhn" else emnist_tree()
    volatility = {"svhn": 0.70, "emnist": 1.20}[dataset]
    networks = write_folder(folder, dataset, tree, named, volatility, images)
    with pytest.MonkeyPatch.context() as patch:
        for node, module in networks.items():
            name = tree.names[node]
            content, how = module.state_dict(), {}
            if dataset == "emnist" and node == ():  # from before PyTorch 1.6
                how = {"_use_new_zipfile_serialization": False}
            if dataset == "emnist" and node == (0,):
                optimizer = torch.optim.Adam(module.parameters())
                content = {
                    "epoch": 4,
                    "model_state_dict": content,
                    "optimizer_state_dict": optimizer.state_dict(),
                }
            save_on_gpu(patch, content, folder / "model_weights" / f"{name}.pt", **how)
    if dataset == "emnist":  # the other place
        (folder / "model_weights" / "inputs_to_models.json").rename(
            folder / "inputs_to_models.json"
        )
        (folder / "target_map.json").rename(folder / "model_weights" / "target_map.json")
    return dataset, folder, tree, networks, images


def serve(patch, dataset, images, labels):
    """Make these the dataset's test split."""
    examples = Examples(images, np.asarray(labels, np.int32))
    given = Dataset(specs.spec(dataset), examples, examples, "", "", "", "")
    patch.setattr(datasets, "load", lambda name, data_dir: given if name == dataset else None)


# The second layout has three nodes and older files; that the first is read shows the rest.
@pytest.mark.parametrize(
    "made", ["svhn", pytest.param("emnist", marks=pytest.mark.slow)], indirect=True
)
def test_folders_of_the_release_are_classified_by_both(made, tmp_path, monkeypatch, capsys):
    dataset, folder, tree, networks, images = made
    trap = tmp_path / "opened"
    (folder / "tree.pkl").write_bytes(pickle.dumps(Trap(trap)))
    right = [walk(dataset, tree, networks, image) for image in images]
    assert len(set(right)) >= 4, "the images take too few paths to prove anything"
    assert {len(tree.paths[label]) for label in right} >= {1, 2}
    labels = [label if k >= 3 else (label + 1) % 10 for k, label in enumerate(right)]
    serve(monkeypatch, dataset, images, labels)
    report = tmp_path / "report.json"
    code = main(
        [str(folder), "--dataset", dataset, "--backbone", "mobilenet", "--json", str(report)]
    )
    value = json.loads(report.read_text())
    assert value["total"] == value["agree"] == IMAGES
    assert value["correct"] == {"jax": IMAGES - 3, "torch": IMAGES - 3}
    assert all(node["same"] for node in value["nodes"].values())
    assert list(value["nodes"]) == [tree.names[node] for node in tree.nodes]
    order = {"svhn": ["root"], "emnist": ["root", "sg6", "sg1"]}[dataset]
    assert value["tree"] == {"follows_from_groups": True, "names_follow_in_order": order}
    assert (code, value["passed"]) == (0, True)
    printed = capsys.readouterr().out
    assert f"equal predictions: {IMAGES} of {IMAGES}" in printed
    assert f"regrouped in the order {', '.join(order)}" in printed
    assert not trap.exists()


@pytest.mark.parametrize("made", ["svhn"], indirect=True)
def test_what_differs_is_exit_code_1(made, tmp_path, monkeypatch, capsys):
    dataset, original, _, _, images = made
    serve(monkeypatch, dataset, np.concatenate([images, images]), np.zeros(2 * IMAGES))
    command = [str(original), "--dataset", dataset, "--backbone", "mobilenet", "--limit"]
    command.append(str(IMAGES))
    predict = published.trunk_jax.inference.route.predict

    def one_off(*arguments):
        found = predict(*arguments)
        found.labels[1] += 1
        return found

    with monkeypatch.context() as patch:
        patch.setattr("trunk_jax.inference.route.predict", one_off)
        assert main(command) == 1
    assert f"equal predictions: {IMAGES - 1} of {IMAGES}" in capsys.readouterr().out

    # class 0 of the root, which belongs with 6, 8 and 9, is alike to none
    command[0] = str(shutil.copytree(original, tmp_path / "asl"))
    file = tmp_path / "asl" / "model_softmax" / "root_avg_softmax.pt"
    asl = torch.load(file, weights_only=True)
    asl[0, :] = 0
    torch.save(asl, file)
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert f"equal predictions: {IMAGES} of {IMAGES}" in printed
    assert "{0} {1} {2} {3 5} {4} {6 8 9} {7}" in printed
    assert "DIFFER: published {0 6 8 9} {1}" in printed
    assert "target map: follows" in printed

    # two leaves of the first group change places
    command[0] = str(shutil.copytree(original, tmp_path / "map"))
    file = tmp_path / "map" / "target_map.json"
    value = json.loads(file.read_text())
    value["0"], value["6"] = value["6"], value["0"]
    file.write_text(json.dumps(value))
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "target map: DIFFERS" in printed
    assert "DIFFER:" not in printed


def test_names_of_another_order_of_growth():
    tree, named = emnist_tree()
    groups = {
        node: named.get(tree.names[node], tuple((k,) for k in range(count)))
        for node in tree.nodes
        for count in [len(tree.members(node))]
    }
    assert regrouped(tree, groups) == (True, ["root", "sg6", "sg1"])
    renamed = dict(tree.names)
    renamed[(0,)] = "sg99"
    assert regrouped(hierarchy.Tree(tree.paths, renamed), groups) == (True, None)
    assert regrouped(hierarchy.bare(3), {(): ((0,), (1,), (2,))}) == (True, [])
    assert regrouped(tree, groups | {(): ((0, 1, 2), *groups[()][1:], (3,))}) == (False, None)


# --- bad folders


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def truncated(folder, trap):
    file = folder / "model_weights" / "sg1.pt"
    file.write_bytes(file.read_bytes()[:-1000])


def flipped(folder, trap):
    """A byte of the weights themselves, in the middle of the file."""
    file = folder / "model_weights" / "sg1.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


def raw_pickle(folder, trap):
    (folder / "model_weights" / "sg1.pt").write_bytes(pickle.dumps(Trap(trap)))


def saved_object(folder, trap):
    file = folder / "model_weights" / "sg1.pt"
    weights = torch.load(file, weights_only=True, map_location="cpu")
    torch.save({"model_state_dict": weights, "epoch": Trap(trap)}, file)


def saved_object_in_asl(folder, trap):
    torch.save([Trap(trap)], folder / "model_softmax" / "root_avg_softmax.pt")


def changed(change):
    def damage(folder, trap):
        file = folder / "model_weights" / "sg1.pt"
        weights = torch.load(file, weights_only=True, map_location="cpu")
        change(weights)
        torch.save(weights, file)

    return damage


def removed(name):
    return lambda folder, trap: (folder / name).unlink()


def written(name, text):
    return lambda folder, trap: (folder / name).write_text(text)


def models(change):
    def damage(folder, trap):
        file = folder / "model_weights" / "inputs_to_models.json"
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))

    return damage


BAD = [
    (truncated, "sg1.pt cannot be read"),
    (flipped, "has a wrong checksum"),
    (raw_pickle, "sg1.pt is damaged, or holds objects"),
    (saved_object, "sg1.pt is damaged, or holds objects"),
    (saved_object_in_asl, "root_avg_softmax.pt is damaged, or holds objects"),
    (removed("model_weights/sg5.pt"), "sg5.pt is missing"),
    (removed("target_map.json"), "target_map.json is missing"),
    (removed("model_weights/inputs_to_models.json"), "inputs_to_models.json is missing"),
    (removed("root_supergroups.json"), "root_supergroups.json is missing"),
    (removed("model_softmax/sg5_avg_softmax.pt"), "sg5_avg_softmax.pt is missing"),
    (written("target_map.json", '{"0": ['), "target_map.json is not valid JSON"),
    (written("target_map.json", '{"0": [0], "1": [1]}'), "names 13 nodes, the target map has 3"),
    (written("model_weights/sg1.pt", ""), "sg1.pt cannot be read"),
    (written("root_supergroups.json", '{"Group 1": [0, 0]}'), "each of the indices 0 to 9 once"),
    (
        changed(lambda w: w["classifier.0.bias"].fill_(float("nan"))),
        "sg1.pt: classifier.0.bias holds NaN",
    ),
    (changed(lambda w: w.pop("classifier.0.bias")), "missing classifier.0.bias"),
    (changed(lambda w: w.update(extra=torch.zeros(2))), "unexpected extra"),
    (
        changed(lambda w: w.update({"classifier.0.bias": torch.zeros(3)})),
        "classifier.0.bias is 3, not 4",
    ),
    (
        changed(lambda w: w.update({"classifier.0.bias": torch.zeros(4).double()})),
        "classifier.0.bias is float64, not float32",
    ),
    (
        changed(lambda w: w.update({"classifier.0.bias": torch.zeros(4).to(torch.float8_e5m2)})),
        "sg1.pt holds numbers of type float8_e5m2, which has too few digits",
    ),
    (changed(lambda w: w.update(epoch=3)), "holds no state_dict"),
    (models(lambda v: v["sg1"][0].__setitem__(1, 16)), "sg1 takes 32x16x40 inputs, but 32x40x40"),
    (models(lambda v: v["sg1"].__setitem__(1, 5)), "sg1 has 5 outputs, but 4"),
    (models(lambda v: v.__setitem__("sg1", "x")), "sg1 must be [[channels, height, width]"),
]


@pytest.fixture(scope="module")
def svhn_folder(tmp_path_factory):
    """A whole SVHN folder of small files."""
    folder = tmp_path_factory.mktemp("whole") / "folder"
    tree, named = svhn_tree()
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for node, module in write_folder(folder, "svhn", tree, named, 0.70, images).items():
        torch.save(module.state_dict(), folder / "model_weights" / f"{tree.names[node]}.pt")
    assert {tree.names[(0,)], tree.names[(3,)]} == {"sg1", "sg5"}
    return folder


def refused(capsys, *arguments):
    """The one line with which the command ends, exit code 2."""
    with pytest.raises(SystemExit) as left:
        run_command(lambda: main([str(argument) for argument in arguments]))
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(("damage", "said"), BAD)
def test_bad_folders(svhn_folder, tmp_path, capsys, monkeypatch, damage, said):
    monkeypatch.setattr(datasets, "load", None)  # all of this is said before data is looked for
    folder = shutil.copytree(svhn_folder, tmp_path / "folder")
    trap = tmp_path / "code was run"
    damage(folder, trap)
    error = refused(capsys, folder, "--dataset", "svhn", "--backbone", "mobilenet")
    assert said in error
    assert not trap.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("emnist", "mobilenet"), "the tree has 10 classes, emnist has 47"),
        (("cifar10", "mobilenet"), "the weights do not fit the network: missing features.3."),
        (("cifar10", "vgg"), "sg1 takes 32x40x40 inputs, but 64x16x16 in a cifar10 vgg tree"),
        (("svhn", "vgg"), "recipe 'published' has none for svhn vgg"),
        (("mnist", "mobilenet"), "unknown dataset 'mnist'; choose from"),
        (("svhn", "alexnet"), "no backbone 'alexnet'"),
        (("svhn", "mobilenet", "--limit", "-1"), "--limit is -1"),
    ],
)
def test_wrong_flags(svhn_folder, capsys, flags, said):
    dataset, backbone, *more = flags
    error = refused(capsys, svhn_folder, "--dataset", dataset, "--backbone", backbone, *more)
    assert said in error
    if any(word in said for word in ("fit", "classes", "takes")):
        assert "is it of another --dataset or --backbone?" in error


def test_no_folder(tmp_path, capsys):
    command = ("--dataset", "svhn", "--backbone", "mobilenet")
    assert "there is no such folder" in refused(capsys, tmp_path / "none", *command)
    assert "inputs_to_models.json is missing" in refused(capsys, tmp_path, *command)
    assert "required: --dataset, --backbone" in refused(capsys, tmp_path)


# --- the real folder

needs_release = pytest.mark.skipif(
    not REAL.is_dir(), reason="needs the published weights in ../shared"
)


@pytest.fixture(scope="module")
def _cifar10():
    if folders.prepared_folder(specs.spec("cifar10"), folders.data_root()) is None:
        pytest.skip("needs CIFAR-10, prepared")


@needs_release
def test_the_release_under_other_flags(capsys):
    error = refused(capsys, REAL, "--dataset", "svhn", "--backbone", "mobilenet")
    assert "sg1 takes 64x16x16 inputs, but 32x40x40 in a svhn mobilenet tree" in error
    error = refused(capsys, REAL, "--dataset", "cifar10", "--backbone", "mobilenet")
    assert "sg1 takes 64x16x16 inputs, but 32x40x40 in a cifar10 mobilenet tree" in error


def report_on_release(tmp_path, *more):
    file = tmp_path / "report.json"
    command = [str(REAL), "--dataset", "cifar10", "--backbone", "vgg", "--json", str(file)]
    assert main([*command, *more]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow  # made-up folders in its layout are read above
@needs_release
@pytest.mark.usefixtures("_cifar10")
def test_the_release_on_the_first_images(tmp_path):
    value = report_on_release(tmp_path, "--limit", "200")
    assert value["total"] == value["agree"] == 200
    assert value["correct"] == {"jax": 163, "torch": 163}  # of the whole split: see the slow test
    assert value["tree"] == {"follows_from_groups": True, "names_follow_in_order": ["root"]}
    assert [node["volatility"] for node in value["nodes"].values()] == [0.88, *[1.02] * 4]
    assert [node["from_asl"] for node in value["nodes"].values()] == [
        [[0, 8], [1, 9], [2, 4, 7], [3, 5], [6]],
        [[0], [1]],
        [[0], [1]],
        [[0], [1], [2]],
        [[0], [1]],
    ]


@pytest.mark.slow
@needs_release
@pytest.mark.usefixtures("_cifar10")
def test_the_release_reaches_its_published_accuracy(tmp_path):
    """81.53 %: to the image, and both frameworks see every image alike."""
    value = report_on_release(tmp_path)
    assert value["total"] == value["agree"] == 10_000
    assert value["correct"] == {"jax": 8153, "torch": 8153}
