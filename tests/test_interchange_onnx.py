"""Trees as ONNX: they decide as ours do, compute the nodes on the path alone, refuse faults."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import random_trees  # noqa: E402
from flax import nnx  # noqa: E402

from data.base.errors import UserError  # noqa: E402
from data.run import results, runfolder  # noqa: E402
from data.tree.hierarchy import ROOT, ancestors  # noqa: E402
from data.tree.metrics import softmax  # noqa: E402
from trunk_jax import export  # noqa: E402
from trunk_jax.inference import route  # noqa: E402
from trunk_jax.inference.single import compile_single  # noqa: E402
from trunk_jax.interchange import (  # noqa: E402
    decisions,
    exits,
    extra,
    onnx_export,
    onnx_model,
    parts,
    quantize,
    runtime,
)
from trunk_jax.interchange.builder import Builder, Value  # noqa: E402
from trunk_jax.interchange.layers import write  # noqa: E402
from trunk_jax.interchange.trained import of_run  # noqa: E402
from trunk_jax.network.network import merge, split  # noqa: E402
from trunk_jax.shrink.quantized import quantize as as_int8  # noqa: E402

BACKBONES = ("vgg", "mobilenet")
EXITS = "resnet with exits"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {name: random_trees.write_run(folder / name, name) for name in BACKBONES}
    return made | {EXITS: random_trees.write_run(folder / EXITS, "resnet", exits=True)}


@pytest.fixture(scope="module")
def trained(runs):
    return {name: of_run(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def models(trained):
    return {
        name: onnx_model.whole_model(each, onnx_model.node_models(each))
        for name, each in trained.items()
    }


@pytest.fixture(scope="module")
def images():
    return random_trees.test_images().images


@pytest.mark.parametrize("backbone", [*BACKBONES, EXITS])
def test_a_tree_decides_as_ours_does_in_batches_and_alone(trained, models, images, backbone):
    """Probabilities: 2 units of the largest score's rounding a node is 1e-5 with scores of 20."""
    each, running = trained[backbone], runtime.session(models[backbone])
    found = runtime.predict(running, images)
    ours = route.predict(each.model, images)
    compared = decisions.compare(each, images, found)
    assert (found["label"] == ours.labels).all()
    assert not len(compared.different)
    assert not len(compared.ties)
    assert np.allclose(found["probability"], ours.confidence, rtol=0, atol=1e-5)
    assert len(set(ours.labels)) == 10  # all leaves, so all nodes
    for place in range(8):
        alone = runtime.predict(running, images[place : place + 1])
        for name, row in alone.items():
            assert np.allclose(row[0], found[name][place], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_probabilities_are_those_of_the_last_node(trained, models, images, backbone):
    """A row sums to the probability of having come there; what lies elsewhere has none."""
    each = trained[backbone]
    found = runtime.predict(runtime.session(models[backbone]), images)
    tree, seen = each.tree, set()
    for place in range(40):
        path, prior = tree.paths[found["label"][place]], 1.0
        for visit in route.walk(each.model, images[place : place + 1]):
            node, share = visit.node, np.exp(visit.likelihoods[0])
            last, prior = prior, prior * share[path[len(node)]]
        seen.add(len(path))
        expected = np.zeros(10)
        for output in range(len(share)):
            labels = tree.members((*node, output))
            expected[list(labels)] = last * share[output] / len(labels)
        assert np.allclose(found["probabilities"][place], expected, rtol=0, atol=1e-5)
        assert found["probabilities"][place].sum() == pytest.approx(last, abs=1e-5)
    assert seen == {1, 2}


def test_probabilities_of_a_tree_with_exits_are_those_of_the_last_node_that_knows_a_class(
    trained, models, images
):
    each = trained[EXITS]
    found = runtime.predict(runtime.session(models[EXITS]), images)
    ours = each.model.predict(images)
    assert np.allclose(found["probabilities"], ours.probabilities, rtol=0, atol=1e-5)
    assert [len(path) for path in ours.paths] == (1 + (found["path"] >= 0).sum(1)).tolist()
    stopped = found["path"][:, 0] < 0
    assert 150 < stopped.sum() < 330  # half, and those whose branch is a class
    one = int(np.flatnonzero(~stopped)[0])
    (label, share, path) = map(np.asarray, compile_single(each.model)(images[one]))
    assert (label, path.tolist()) == (found["label"][one], found["path"][one].tolist())
    assert np.allclose(share, found["probability"][one], rtol=0, atol=1e-5)


def test_an_image_is_computed_by_the_nodes_on_its_path_alone(trained, models, images, tmp_path):
    """Told by onnxruntime's own profile: which convolutions were run."""
    each = trained["vgg"]
    found = runtime.predict(runtime.session(models["vgg"]), images)
    for label in (1, 0, 2):  # below the root, and in either of its children
        place = int(np.flatnonzero(found["label"] == label)[0])
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        running = onnxruntime.InferenceSession(
            models["vgg"].SerializeToString(), options, ["CPUExecutionProvider"]
        )
        runtime.predict(running, images[place : place + 1])
        events = json.loads(Path(running.end_profiling()).read_text())
        ran = {
            e["name"].split("/")[0]
            for e in events
            if e.get("args", {}).get("op_name") in ("Conv", "FusedConv")
        }
        assert ran == {each.tree.names[node] for node in ancestors(each.tree.paths[label])}


def test_no_images_and_one_class_of_images(models, images):
    running = runtime.session(models["vgg"])
    assert runtime.predict(running, images[:0])["label"].shape == (0,)
    same = np.repeat(images[:1], 5, 0)
    assert len(set(runtime.predict(running, same)["label"])) == 1


def test_a_model_says_what_it_is(models, trained):
    model, tree = models["mobilenet"], trained["mobilenet"].tree
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert [o.version for o in model.opset_import] == [17]
    assert json.loads(props["classes"]) == list("0123456789")
    assert props["recipe"] == "corrected"
    assert props["backbone"] == "mobilenet"
    assert props["commit"] == "0" * 40
    assert props["licence"] == "Apache-2.0"
    assert "CC BY 4.0" in props["data_licence"]
    assert props["test_images_right"].endswith(" of 359")
    assert json.loads(props["tree"])["targets"]["0"] == list(tree.paths[0])
    kinds = {node.op_type for graph in parts.graphs(model.graph) for node in graph.node}
    assert "BatchNormalization" not in kinds
    assert [list_of(o) for o in model.graph.output] == [
        ["batch"],
        ["batch"],
        ["batch", 10],
        ["batch", 2],
    ]
    assert list_of(model.graph.input[0]) == ["batch", 8, 8, 1]


def list_of(info):
    return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]


def test_the_accuracy_that_a_model_tells_is_that_of_its_rule(runs, tmp_path):
    """That of the summary is of images that go on to the end, which this model does not do."""
    run = Path(shutil.copytree(runs[EXITS], tmp_path / "run"))
    assert of_run(run).about["test_images_right"] == of_run(run).about["accuracy"] == "unknown"
    counts = {"accuracy": 0.25, "correct": 90, "total": 360}
    mean = {"multiply_adds": 1.0, "parameters": 2.0, "last": {"root": 1.0}}
    results.write_stopped(run, "test", counts | mean)
    assert of_run(run).about["test_images_right"] == "90 of 360"
    assert of_run(run).about["accuracy"] == "0.250000"
    results.forget_predictions(run)  # as a new rule does
    assert of_run(run).about["accuracy"] == "unknown"
    assert not list(run.glob("stopped-*"))


def test_a_monolith_is_a_tree_of_one_node(tmp_path, images):
    each = of_run(random_trees.write_run(tmp_path / "run", "monolith", flat=True))
    model = onnx_model.whole_model(each, onnx_model.node_models(each))
    found = runtime.predict(runtime.session(model), images)
    assert not len(decisions.compare(each, images, found).different)
    assert {node.op_type for node in model.graph.node}.isdisjoint({"If"})
    assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-5)


# --- the command


def test_export_writes_one_file_and_says_how_it_decides(runs, tmp_path, capsys):
    out = tmp_path / "tree.onnx"
    export.main(
        [str(runs["vgg"]), "--format", "onnx", "--out", str(out), "--json", str(tmp_path / "j")]
    )
    right = runfolder.read_json(runs["vgg"] / "summary.json")["accuracy"]["test"]["correct"]
    result = runfolder.read_json(tmp_path / "j")
    assert (result["images"], result["right"], result["ties"]) == (359, right, 0)
    assert result["bytes"] == out.stat().st_size
    assert f"float32: {right} of 359" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(out), full_check=True)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"tree.onnx exists; remove it, or choose another --out"):
        export.main([str(runs["vgg"]), "--format", "onnx", "--out", str(out)])
    assert out.read_bytes() == before


def test_a_file_a_node_needs_only_the_files_on_the_way(runs, trained, images, tmp_path):
    out = tmp_path / "nodes"
    export.main([str(runs["mobilenet"]), "--format", "onnx", "--per-node", "--out", str(out)])
    about = json.loads((out / "tree.json").read_text())
    assert about["classes"] == list("0123456789")
    ours = route.predict(trained["mobilenet"].model, images[:60]).labels
    loaded = {}

    def follow(image):
        name, x = about["root"], image[None]
        while True:
            node = about["nodes"][name]
            if name not in loaded:
                loaded[name] = onnxruntime.InferenceSession(str(out / node["file"]))
            x, scores = loaded[name].run(None, {node["input"]: x})
            end = node["outputs"][int(scores.argmax())]
            if "label" in end:
                return end["label"]
            name = end["node"]

    assert about["format"] == 1
    first = int(np.flatnonzero(ours == 1)[0])
    assert follow(images[first]) == 1
    assert set(loaded) == {"root"}
    assert [follow(image) for image in images[:60]] == list(ours)
    assert set(loaded) == set(about["nodes"])


def test_without_its_data_a_run_is_tried_on_random_images(runs, tmp_path, capsys, monkeypatch):
    def missing(*_, **__):
        raise UserError("not prepared")

    monkeypatch.setattr(onnx_export, "load_of_run", missing)
    words = [str(runs["mobilenet"]), "--format", "onnx", "--out", str(tmp_path / "x.onnx")]
    export.main(words)
    told = "decides as the run on all 256 random images, for its data is not at hand (not prepared)"
    assert told in capsys.readouterr().out
    with pytest.raises(UserError, match="not prepared"):
        export.main([*words[:-1], str(tmp_path / "y.onnx"), "--int8"])
    with pytest.raises(UserError, match="not prepared"):
        export.main([*words[:-1], str(tmp_path / "y.onnx"), "--data-dir", str(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_int8_is_calibrated_on_training_images_and_states_its_accuracy(
    runs, images, tmp_path, capsys
):
    out, small = tmp_path / "x.onnx", tmp_path / "y.onnx"
    words = [str(runs["vgg"]), "--format", "onnx", "--out"]
    export.main([*words, str(out)])
    export.main([*words, str(small), "--int8", "--json", str(tmp_path / "j")])
    result = runfolder.read_json(tmp_path / "j")
    labels = random_trees.test_images().labels
    found = {
        p: runtime.predict(runtime.session(onnx.load(p)), images)["label"] for p in (out, small)
    }
    assert result["int8"]["right"] == (found[small] == labels).sum()
    assert result["right"] == (found[out] == labels).sum()
    assert result["int8"]["equal"] == (found[small] == found[out]).sum()
    assert result["int8"]["equal"] > 300  # 8 bits lose decisions near a boundary; guessing has 36
    assert f"int8: {result['int8']['right']} of 359" in capsys.readouterr().out
    initial = [c for graph in parts.graphs(onnx.load(small).graph) for c in graph.initializer]
    weights = [c for c in initial if c.data_type == onnx.TensorProto.INT8 and len(c.dims) == 4]
    assert len(weights) == 2 + 3 * 2  # every convolution of the three nodes
    scales = {c.name: c.dims for c in initial if c.name.endswith("weight_0_scale")}
    assert all(dims[0] > 1 for dims in scales.values())  # one an output channel
    assert small.stat().st_size < out.stat().st_size


def test_a_node_that_no_calibration_image_meets_is_left_and_named(
    trained, runs, images, tmp_path, capsys, monkeypatch
):
    each = trained["vgg"]
    labels = route.predict(each.model, images).labels
    leaf = images[np.isin(labels, (1, 4, 7))]  # decided by the root alone
    monkeypatch.setattr(quantize, "calibration", lambda *_: leaf[:8])
    out = tmp_path / "x.onnx"
    export.main([str(runs["vgg"]), "--format", "onnx", "--int8", "--out", str(out)])
    told = "left in float32, for no calibration image comes there: sg1, sg4, sg11\n"
    assert capsys.readouterr().out.endswith(told)


def test_an_int8_run_of_ours_is_written_as_what_it_stands_for(trained, images):
    each = trained["vgg"]
    small = with_networks(each, {n: as_int8(net) for n, net in each.model.networks.items()})
    model = onnx_model.whole_model(small, onnx_model.node_models(small))
    found = runtime.predict(runtime.session(model), images)
    assert not len(decisions.compare(small, images, found).different)
    ours = route.predict(small.model, images)
    assert np.allclose(found["probability"], ours.confidence, rtol=0, atol=1e-5)


# --- what is refused


def test_a_file_of_a_tree_with_exits_decides_as_the_run_in_float32_and_int8(runs, tmp_path):
    words = [str(runs[EXITS]), "--format", "onnx", "--int8", "--json", str(tmp_path / "j")]
    export.main([*words, "--out", str(tmp_path / "x.onnx")])
    result = runfolder.read_json(tmp_path / "j")
    assert (result["ties"], result["int8"]["left_in_float32"]) == (0, [])
    assert result["int8"]["equal"] > 300  # as above


@pytest.mark.parametrize("fault", ["threshold", "temperature", "branch"])
def test_an_export_that_stops_elsewhere_is_refused(runs, tmp_path, monkeypatch, fault):
    real = exits.at_node

    def wrong(tree, rule, graph, node, *rest):
        if fault == "branch":  # the children's classes are exchanged
            return real(replace(tree, paths=tree.paths[::-1]), rule, graph, node, *rest)
        change = {
            "threshold": {"thresholds": {"root": 0.97 * rule.threshold("root")}},
            "temperature": {"temperatures": {}},
        }[fault]
        return real(tree, replace(rule, **change), graph, node, *rest)

    monkeypatch.setattr(exits, "at_node", wrong)
    with pytest.raises(UserError, match=r"nothing is written: .* otherwise than the run on"):
        export.main([str(runs[EXITS]), "--format", "onnx", "--out", str(tmp_path / "x.onnx")])
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_within_rounding_is_a_tie(trained, models, images):
    """The image's largest probability is the threshold itself: it may stop or go on."""
    each = trained[EXITS]
    rule = each.model.stopping
    goes_on = runtime.predict(runtime.session(models[EXITS]), images)
    place = int(np.flatnonzero(goes_on["path"][:, 0] >= 0)[0])
    image, goes_on = images[place : place + 1], _rows(goes_on, place)

    def with_threshold(share):
        stops = replace(rule, thresholds={"root": share})
        return replace(each, model=replace(each.model, stopping=stops))

    always = with_threshold(0.0)
    model = onnx_model.whole_model(always, onnx_model.node_models(always))
    stopped = runtime.predict(runtime.session(model), image)
    assert stopped["path"][0, 0] < 0
    scores = route.scores(each.model, image)[ROOT]
    sure = float(softmax(scores / rule.temperature("root")).max())
    for found in (goes_on, stopped):  # one of them is ours
        assert not len(decisions.compare(with_threshold(sure), image, found).different)
    for share, found in ((0.999 * sure, goes_on), (1.001 * sure, stopped)):
        compared = decisions.compare(with_threshold(share), image, found)
        assert (list(compared.different), list(compared.ties)) == ([0], [])


@pytest.mark.parametrize("fault", random_trees.FAULTS)
def test_an_export_that_decides_otherwise_is_refused(runs, tmp_path, monkeypatch, fault):
    random_trees.plant(monkeypatch, fault)
    words = [str(runs["vgg"]), "--format", "onnx", "--out", str(tmp_path / "x.onnx")]
    match = r"nothing is written: .* otherwise than the run on [0-9]+ of 359 test images"
    with pytest.raises(UserError, match=match):
        export.main(words)
    assert list(tmp_path.iterdir()) == []


def test_a_tie_is_told_from_a_difference(trained, models, images):
    """Two outputs of the root with equal scores: either decision is right; ours is the first."""
    each = trained["vgg"]
    found = runtime.predict(runtime.session(models["vgg"]), images)
    place = int(np.flatnonzero(found["label"] == 1)[0])
    found = _rows(found, place)
    (before,) = found["path"][:, 0]
    found["label"][:], found["path"][:] = 7, each.tree.paths[7] + (-1,)
    after = each.tree.paths[7][0]
    assert before < after
    compared = decisions.compare(each, images[place : place + 1], found)
    assert (list(compared.different), list(compared.ties)) == ([0], [])
    module = merge(each.model.networks[ROOT])
    layer = module.classifier[0]
    for variable in (layer.kernel, layer.bias):
        variable.set_value(variable[...].at[..., after].set(variable[..., before]))
    tied = with_networks(each, {**each.model.networks, ROOT: split(module)})
    compared = decisions.compare(tied, images[place : place + 1], found)
    assert (list(compared.different), list(compared.ties)) == ([], [0])


def with_networks(each, networks):
    return replace(each, model=replace(each.model, networks=networks))


def _rows(found, place):
    return {name: rows[place : place + 1] for name, rows in found.items()}


def test_an_unknown_layer_is_refused_by_name():
    class Strange(nnx.Module):
        pass

    with pytest.raises(UserError, match="the layer Strange cannot be written as ONNX"):
        write(Strange(), Builder("x/"), Value("x", (1, 2, 2)))


def test_a_missing_extra_is_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(extra, "_is_installed", lambda name: name != "onnx")
    with pytest.raises(UserError, match=r"needs onnx, .*pip install 'trunk-jax\[onnx\]'"):
        export.main([str(runs["vgg"]), "--format", "onnx", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="are for --format onnx"):
        export.main(
            [str(runs["vgg"]), "--format", "folder", "--int8", "--out", str(tmp_path / "x")]
        )
