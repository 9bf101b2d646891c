"""Conversion between the frameworks: layouts by hand, round trips, refusals, whole runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_trees
import torch
from flax import nnx
from safetensors.numpy import load
from torch import nn

import trunk_jax.evaluate
import trunk_jax.network.exchange
import trunk_jax.nodes
import trunk_jax.train
import trunk_torch_ref.evaluate
import trunk_torch_ref.network.exchange
import trunk_torch_ref.nodes
import trunk_torch_ref.train
from data.base import writing
from data.base.errors import UserError, run_command
from data.run import results, runfolder
from parity.checks.baselines import SMALL, build
from parity.convert import convert_file, main
from parity.pairs.conversion import convert_run, to_jax, to_torch
from trunk_jax.baselines import layers as own
from trunk_jax.export import export
from trunk_jax.layers import basic as layers
from trunk_jax.network.network import Network, apply, merge, split
from trunk_jax.shrink import quantized
from trunk_torch_ref.shrink import quantized as torch_quantized

FAMILIES = [
    ("svhn", "mobilenet", "root", (32, 32, 3)),
    ("emnist", "mobilenet", "sg1", (16, 16, 32)),
    ("cifar10", "mobilenet", "sg1", (16, 16, 32)),
    ("cifar10", "vgg", "root", (32, 32, 3)),
    ("cifar10", "vgg", "sg5", (16, 16, 64)),
    ("digits", "vgg", "root", (8, 8, 1)),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Several threads only wait for each other on small images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(dataset, backbone, name, shape, outputs=3):
    flax = trunk_jax.nodes.build(
        dataset, backbone, name, shape, outputs, rng=np.random.default_rng(0)
    )
    module = trunk_torch_ref.nodes.build(dataset, backbone, name, (shape[2], *shape[:2]), outputs)
    return split(flax), module


def randomised(network, dtype="float32"):
    """Every array filled with numbers of its own; counts 0 to 999, variances above 0."""
    generator = np.random.default_rng(1)

    def fill(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return jax.numpy.asarray(generator.integers(1000, size=leaf.shape), leaf.dtype)
        return jax.numpy.asarray(generator.uniform(0.1, 0.2, leaf.shape), dtype)

    return Network(network.graph, *(jax.tree.map(fill, v) for v in (network.params, network.stats)))


def assert_same_state(one, two):
    assert set(one) == set(two)
    for key, array in one.items():
        assert (array.dtype, array.shape) == (two[key].dtype, two[key].shape), key
        assert array.tobytes() == two[key].tobytes(), key


# --- one network


def test_layouts_by_hand():
    """Square layers, where a wrong transposition would fit: each number at its own place."""

    class Ours(nnx.Module):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.blocks = nnx.List(
                [layers.Conv(3, 3, 3, rng=rng), layers.BatchNorm(3), layers.Linear(3, 3, rng=rng)]
            )

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 3)])

    network = randomised(split(Ours()))
    module = to_torch(network, Theirs())
    conv, norm, linear = module.blocks
    ours = network.params["blocks"]
    for row, column, i, o in np.ndindex(3, 3, 3, 3):
        assert conv.weight[o, i, row, column].item() == ours[0]["kernel"][row, column, i, o].item()
    for i, o in np.ndindex(3, 3):
        assert linear.weight[o, i].item() == ours[2]["kernel"][i, o].item()
    assert conv.bias.tolist() == ours[0]["bias"].tolist()
    assert linear.bias.tolist() == ours[2]["bias"].tolist()
    assert norm.weight.tolist() == ours[1]["scale"].tolist()
    assert norm.bias.tolist() == ours[1]["bias"].tolist()
    stats = network.stats["blocks"][1]
    assert norm.running_mean.tolist() == stats["mean"].tolist()
    assert norm.running_var.tolist() == stats["var"].tolist()
    assert norm.num_batches_tracked.item() == stats["count"].item() > 0


# By hand: each PyTorch tensor of a layer as it must come out of the layer's arrays.
BY_HAND = {
    own.PatchConv: {"weight": lambda layer: layer.kernel[...].transpose(3, 2, 0, 1)},
    own.LayerNorm: {
        "weight": lambda layer: layer.scale[...],
        "bias": lambda layer: layer.bias[...],
    },
    own.MultiHeadAttention: {
        "in_proj_weight": lambda layer: layer.kernel[...].T,
        "in_proj_bias": lambda layer: layer.bias[...],
    },
    own.LayerScale: {"gamma": lambda layer: layer.gamma[...]},
    own.ChannelScale: {"": lambda layer: np.moveaxis(layer.value[...], -1, 0)},
    own.Token: {"": lambda layer: layer.value[...]},
    own.MaskToken: {"": lambda layer: layer.value[...]},
    quantized.QuantizedConv: {
        "weight": lambda layer: layer.kernel[...].transpose(3, 2, 0, 1),
        "scale": lambda layer: layer.scale[...].ravel(),
        "bias": lambda layer: layer.bias[...],
    },
    quantized.QuantizedLinear: {
        "weight": lambda layer: layer.kernel[...].T,
        "scale": lambda layer: layer.scale[...].ravel(),
        "bias": lambda layer: layer.bias[...],
    },
}


@pytest.mark.parametrize(
    ("model", "count"),
    [("convnext_base", 3), ("vit_b_16", 4), ("dinov2_vitb14_reg", 5), ("int8", 2)],
)
def test_layouts_of_the_other_layers_by_hand(model, count):
    if model == "int8":
        network, module = pair("digits", "vgg", "root", (8, 8, 1))
        network = randomised(network)
        module = torch_quantized.quantize(to_torch(network, module))
        network = quantized.quantize(network)
    else:
        built = build(next(case for case in SMALL if case.model == model), 0)
        network, module = built.jax, built.torch
    state = trunk_jax.network.exchange.to_state_dict(network)
    theirs = trunk_torch_ref.network.exchange.to_state_dict(module)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in theirs.items()}
    seen = set()
    for path, layer in nnx.iter_modules(merge(network)):
        for name, wanted in BY_HAND.get(type(layer), {}).items():
            if name == "bias" and layer.bias is None:
                continue
            key = ".".join(str(word) for word in (*path, name) if word != "")
            np.testing.assert_array_equal(state[key], wanted(layer), err_msg=key)
            np.testing.assert_array_equal(theirs[key], wanted(layer), err_msg=key)
            seen.add(type(layer))
    assert len(seen) == count
    back = trunk_jax.network.exchange.from_state_dict(network, state)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(network), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_arrays_of_an_unknown_layer_are_not_left_behind():
    class Other(nnx.Module):
        def __init__(self):
            self.norm = layers.BatchNorm(3)
            self.mine = nnx.Param(jax.numpy.ones(3))

    with pytest.raises(TypeError, match=r"^1 arrays belong to layers"):
        trunk_jax.network.exchange.to_state_dict(split(Other()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join(f[:3]))
def test_round_trip_is_bit_exact(family, dtype):
    with jax.enable_x64(dtype == "float64"):
        network, module = pair(*family)
        network = randomised(network, dtype)
        before = trunk_jax.network.exchange.to_state_dict(network)
        converted = to_torch(network, module)
        assert converted is module
        assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}
        assert_same_state(before, trunk_torch_ref.network.exchange.to_state_dict(module))
        empty, _ = pair(*family)
        back = to_jax(module, empty)
        assert jax.tree.structure(back) == jax.tree.structure(network)
        for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(network), strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)


def test_a_double_module_becomes_single_with_the_network():
    network, module = pair(*FAMILIES[-1])
    to_torch(network, module.double())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_converted_networks_compute_the_same():
    network, module = pair(*FAMILIES[-1])
    x = np.random.default_rng(2).normal(size=(4, 8, 8, 1)).astype(np.float32)
    to_torch(randomised(network), module)
    (_, ours), _ = apply(to_jax(module, network), jnp.asarray(x))
    with torch.no_grad():
        _, theirs = module.eval()(torch.tensor(x.transpose(0, 3, 1, 2)))
    # float32, sums of up to 512 positive terms: a few hundred roundings of 6e-8 at the worst
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_float64_is_not_rounded_in_silence():
    network, module = pair(*FAMILIES[-1])
    with pytest.raises(UserError, match=r"bit for bit: .*classifier\.0\.weight \(float64\)"):
        to_jax(module.double(), network)


@pytest.mark.parametrize("direction", ["torch", "jax"])
def test_all_offending_tensors_are_listed(direction):
    """A convolution fewer, and another number of outputs."""
    small, large = "root", "sg1"  # digits vgg: c16 c32 M D, and c32 c64 D
    network, module = (
        pair("digits", "vgg", name, (8, 8, 1), outputs)[which]
        for which, (name, outputs) in enumerate(((small, 3), (large, 4)))
    )
    module.double()  # a refused module keeps its type, too
    before = {key: value.clone() for key, value in module.state_dict().items()}
    convert = (
        (lambda: to_torch(network, module))
        if direction == "torch"
        else (lambda: to_jax(module, network))
    )
    with pytest.raises(UserError) as refused:
        convert()
    shapes = ("16x1x3x3", "32x1x3x3") if direction == "torch" else ("32x1x3x3", "16x1x3x3")
    for text in (
        f"features.0.weight is {shapes[0]}, not {shapes[1]}",
        "features.4.running_var is",
        "classifier.0.weight is",
        "classifier.0.bias is",
    ):
        assert text in str(refused.value)
    assert "\n" not in str(refused.value)
    after = module.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())


@pytest.mark.parametrize("direction", ["torch", "jax"])
def test_missing_and_extra_tensors_are_refused(direction):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.GroupNorm(2, 16))

    network, _ = pair(*FAMILIES[-1])
    convert = to_jax if direction == "jax" else (lambda module, network: to_torch(network, module))
    with pytest.raises(UserError) as refused:
        convert(Other(), network)
    ours = "missing" if direction == "jax" else "unexpected"
    for key in ("features.1.running_mean", "features.4.weight", "classifier.0.bias"):
        assert f"{ours} {key}" in str(refused.value)
    assert "features.1.weight" not in str(refused.value)  # it has one, of the same shape


# --- a whole run

TINY = ["--backbone", "vgg", "--limit", "100", "--batch-size", "50", "--epochs", "1"]
EVALUATE = {"jax": trunk_jax.evaluate.main, "torch": trunk_torch_ref.evaluate.main}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run by framework; the volatility gives PyTorch's a second level."""
    folder = tmp_path_factory.mktemp("runs")
    deeper = ["--epochs", "8", "--volatility", "1.2"]
    trunk_torch_ref.train.main([*TINY, *deeper, "--out", str(folder / "torch")])
    trunk_jax.train.main([*TINY, "--volatility", "0.12", "--out", str(folder / "jax")])
    return folder


def predictions(run):
    with open(run / "predictions-test.csv") as file:
        rows = list(csv.DictReader(file))
    return [row["predicted"] for row in rows], [float(row["confidence"]) for row in rows]


def states(run):
    return {
        file.stem: runfolder.read_weights(run, file.stem) for file in (run / "weights").iterdir()
    }


@pytest.mark.parametrize(("origin", "to"), [("torch", "jax"), ("jax", "torch")])
def test_a_converted_run_works_in_the_other_framework(runs, tmp_path, capsys, origin, to):
    run, out, back = runs / origin, tmp_path / "there", tmp_path / "back"
    main([str(run), "--to", to, "--out", str(out)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{out}: {len(states(run))} nodes, ")
    assert printed[1:] == ["training checkpoints are not carried over"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    if origin == "torch":
        assert len(states(run)) > 1, "the tree is flat; choose another volatility"

    assert not (out / "checkpoints").exists()
    assert set(states(out)) == set(states(run))
    for node, state in states(run).items():
        assert_same_state(state, states(out)[node])
    for name in ("tree.json", "metrics.jsonl", "asl/root.json", "confusion-test.csv"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    for name in ("config.json", "summary.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (run, out))
        assert before["framework"] == origin
        assert "settings" not in after, "they are those of the framework that trained it"
        before.pop("settings", None)
        assert after == before | {"framework": to}
    before, after = (json.loads((f / "manifest.json").read_text()) for f in (run, out))
    entry = after.pop("converted")
    assert after == before | {"framework": to}
    assert [(e["from"], e["run"]) for e in entry] == [(origin, str(run))]

    labels, confidence = predictions(run)
    (out / "predictions-test.csv").unlink()
    EVALUATE[to]([str(out)])
    theirs, their_confidence = predictions(out)
    assert theirs == labels
    assert len(set(labels)) > 2
    # probabilities of float32 scores through two networks, printed with six digits
    np.testing.assert_allclose(their_confidence, confidence, atol=1e-5, rtol=0)

    main([str(out), "--to", origin, "--out", str(back)])
    assert {p.name for p in back.glob("[!.]*")} == {p.name for p in out.glob("[!.]*")}
    config = json.loads((run / "config.json").read_text())
    assert config.pop("settings")
    assert json.loads((back / "config.json").read_text()) == config
    for node, state in states(run).items():
        assert_same_state(state, states(back)[node])
    manifest = json.loads((back / "manifest.json").read_text())
    assert [e["from"] for e in manifest["converted"]] == [origin, to]


def test_a_converted_run_stops_where_the_original_does(tmp_path):
    run = random_trees.write_run(tmp_path / "run", "resnet", exits=True)
    stopped = {"accuracy": 0.5, "correct": 1, "total": 2, "multiply_adds": 1.0, "parameters": 1.0}
    results.write_stopped(run, "test", stopped | {"last": {"root": 1.0}})
    main([str(run), "--to", "torch", "--out", str(tmp_path / "out")])
    for name in ("stopping.json", "stopped-test.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()


def test_a_converted_run_is_a_finished_one(runs, tmp_path, capsys):
    """`train --resume` finds nothing left to do, though there are no checkpoints."""
    out = tmp_path / "converted"
    convert_run(runs / "torch", "jax", out)
    files = sorted(out.rglob("*"))
    trunk_jax.train.main(["--resume", "--out", str(out)])
    assert f"run folder {out}" in capsys.readouterr().out
    assert [path for path in sorted(out.rglob("*")) if path.name != ".lock"] == files


def copy_of(run, folder):
    """The parts of a run that conversion reads, for a test to damage."""
    for file in run.rglob("*"):
        if file.is_file() and "checkpoints" not in file.parts:
            target = folder / file.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


def without_a_tensor(run):
    weights = runfolder.read_weights(run, "root")
    del weights["classifier.0.bias"]
    runfolder.write_weights(run, "root", weights)


def with_nan(run):
    weights = runfolder.read_weights(run, "root")
    weights["classifier.0.bias"] = np.full_like(weights["classifier.0.bias"], np.nan)
    runfolder.write_weights(run, "root", weights)


def foreign(run):
    writing.write_json(run / "config.json", runfolder.read_config(run) | {"framework": "keras"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "summary.json").unlink(), "is not finished"),
        (lambda run: (run / "weights" / "root.safetensors").unlink(), "root.safetensors is missi"),
        (lambda run: (run / "tree.json").write_text("{"), "tree.json is not valid JSON"),
        (lambda run: (run / "manifest.json").write_text("[]"), "manifest.json"),
        (lambda run: (run / "config.json").unlink(), "is no run folder"),
        (without_a_tensor, "missing classifier.0.bias"),
        (with_nan, "classifier.0.bias holds NaN"),
        (foreign, "names no framework: 'keras'"),
    ],
)
def test_nothing_is_written_when_a_run_is_refused(runs, tmp_path, capsys, damage, said):
    run = copy_of(runs / "jax", tmp_path / "run")
    damage(run)
    with pytest.raises(SystemExit) as left:
        run_command(lambda: main([str(run), "--to", "torch"]))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_default_folder_and_what_is_there_already(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = copy_of(runs / "jax", tmp_path / "run")
    main([f"{run}/", "--to", "torch"])
    assert runfolder.read_config(tmp_path / "runs" / "run-torch")["framework"] == "torch"
    with pytest.raises(UserError, match="run-torch exists"):
        main([str(run), "--to", "torch"])
    with pytest.raises(UserError, match="is a jax run already"):
        main([str(run), "--to", "jax"])
    with pytest.raises(UserError, match="--to is missing"):
        main([str(run)])
    with pytest.raises(UserError, match=r"none\.pth is missing: name a run folder, or a file"):
        main(["none.pth"])


def test_a_tensor_that_changes_on_the_way_is_noticed(runs, tmp_path, monkeypatch):
    """The loaded networks are compared, not the files: here the other framework loses a bit."""
    load = trunk_torch_ref.network.exchange.from_state_dict

    def lossy(network, weights):
        bias = weights["classifier.0.bias"]
        return load(network, weights | {"classifier.0.bias": np.nextafter(bias, np.float32(9))})

    monkeypatch.setattr("trunk_torch_ref.inference.load.from_state_dict", lossy)
    with pytest.raises(UserError, match=r"bit for bit: classifier\.0\.bias \(float32\)"):
        convert_run(runs / "jax", "torch", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_go_where_a_user_says_and_no_folder_is_made_for_them(tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(2)}, tmp_path / "p.pth")
    monkeypatch.chdir(tmp_path)
    for place in ("no/such/x.safetensors", "gs://b/x.safetensors"):
        with pytest.raises(UserError, match="cannot write"):
            main(["p.pth", "--out", place])
        with pytest.raises(UserError, match="cannot write"):
            export(tmp_path / "p.pth", Path(place), kind="onnx")
    with pytest.raises(UserError, match="cannot write"):  # before the weights are read
        convert_file(tmp_path / "q.pth", Path("no/such/x.safetensors"))
    with pytest.raises(UserError, match="it is an address"):
        export(tmp_path / "p.pth", Path("gs://b/x"), kind="folder")
    with pytest.raises(UserError, match="would be standard output"):
        export(tmp_path / "p.pth", Path("-"), kind="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["p.pth"]
    (tmp_path / "link").symlink_to("behind.safetensors")
    assert convert_file(tmp_path / "p.pth", tmp_path / "link") == 1
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "behind.safetensors").is_file()


@pytest.mark.parametrize("place", ["-", "/dev/stdout"])
def test_weights_go_to_standard_output(tmp_path, place):
    torch.save({"weight": torch.ones(2)}, tmp_path / "p.pth")
    command = [sys.executable, "-m", "parity.convert", str(tmp_path / "p.pth"), "--out", place]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment)
    assert load(done.stdout)["weight"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["p.pth"]
