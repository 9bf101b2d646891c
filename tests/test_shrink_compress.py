"""int8 and structured pruning, of layers, of whole trees, and of the low-power background."""

import contextlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import trunk_torch_ref.evaluate
import trunk_torch_ref.shrink.lowpower
from data.base import writing
from data.base.errors import UserError
from data.recipes import recipe as recipes
from data.run import lowpower as shared
from data.run import runfolder
from data.run.compression import Compression, check
from parity.checks import lowpower as lowpower_check
from parity.checks.lowpower import check_lowpower
from parity.pairs.conversion import convert_run, to_torch
from trunk_jax import compress, evaluate, lowpower, nodes, train
from trunk_jax.layers.basic import Conv, Linear
from trunk_jax.network.exchange import from_state_dict, to_state_dict
from trunk_jax.network.network import apply, cost, dtype_of, split
from trunk_jax.shrink import prune, quantized
from trunk_jax.shrink.lowpower import base
from trunk_jax.training import recover
from trunk_torch_ref.shrink.prune import masked as torch_masked
from trunk_torch_ref.shrink.quantized import quantize_array as torch_quantize_array


def rng(seed=0):
    return np.random.default_rng(seed)


# --- int8


def test_the_nearest_step_halves_to_even():
    x = np.array([[127.0, 0.5, 1.5, -2.5, -0.4], [0, 0, 0, 0, 0], [254, 1, -254, 3, 5]], np.float32)
    expected = [
        [127, 0, 2, -2, 0],
        [0, 0, 0, 0, 0],
        [127, 0, -127, 2, 2],
    ]  # 0.5, 1.5, 2.5 of a step
    q, scale = quantized.quantize_array(jnp.asarray(x), axis=1)
    assert np.asarray(q).tolist() == expected
    assert np.asarray(scale).tolist() == [[1.0], [1.0], [2.0]]
    theirs, their_scale = torch_quantize_array(torch.tensor(x), dim=1)
    assert theirs.tolist() == expected
    assert their_scale.tolist() == [[1.0], [1.0], [2.0]]


def test_int8_layers_are_off_by_half_a_step_a_weight():
    conv, linear = Conv(4, 6, 3, padding=1, rng=rng()), Linear(20, 5, rng=rng(1))
    for layer, small, x in (
        (conv, quantized.QuantizedConv(conv), rng(2).normal(size=(3, 5, 5, 4))),
        (linear, quantized.QuantizedLinear(linear, False), rng(2).normal(size=(3, 20))),
    ):
        step = np.abs(np.asarray(layer.kernel[...])).max(tuple(range(layer.kernel.ndim - 1))) / 127
        assert np.asarray(small.scale[...]) == pytest.approx(step)
        inputs = jnp.asarray(x.astype(np.float32))
        error = np.abs(np.asarray(small(inputs) - layer(inputs))).max(tuple(range(x.ndim - 1)))
        count = np.prod(layer.kernel.shape[:-1])
        assert (error <= 0.5 * step * count * np.abs(x).max()).all()
        assert (error > 0).all()
    grouped = Conv(6, 6, 3, groups=6, bias=False, rng=rng())
    small = quantized.QuantizedConv(grouped)
    x = jnp.asarray(rng(3).normal(size=(1, 5, 5, 6)).astype(np.float32))
    assert np.asarray(small(x)) == pytest.approx(np.asarray(grouped(x)), abs=0.03)


def test_dynamic_sums_are_whole_numbers_and_know_no_batch():
    """By hand in NumPy; an image's result does not depend on its neighbours."""
    linear = Linear(3000, 7, rng=rng())
    layer = quantized.QuantizedLinear(linear, True)
    x = rng(1).normal(size=(4, 3000)).astype(np.float32) * np.array([[1], [100], [0.01], [0]])
    x = x.astype(np.float32)
    step = np.abs(x).max(1, keepdims=True) / np.float32(127)
    step[3] = 1
    q = np.rint(x / step).astype(np.int64)
    kernel, scale = np.asarray(layer.kernel[...]).astype(np.int64), np.asarray(layer.scale[...])
    expected = (q @ kernel).astype(np.float64) * step * scale + np.asarray(linear.bias[...])
    found = np.asarray(layer(jnp.asarray(x)))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    alone = np.concatenate([np.asarray(layer(jnp.asarray(row[None]))) for row in x])
    assert (alone == found).all()


def test_an_int8_network_counts_the_same_and_computes_in_float():
    network = split(nodes.build("digits", "mobilenet", "root", (8, 8, 1), 5, rng=rng()))
    small = quantized.quantize(network)
    assert dtype_of(small) == jnp.float32
    assert cost(small, (8, 8, 1)) == cost(network, (8, 8, 1))
    weights = to_state_dict(small)
    kinds = {key: array.dtype for key, array in weights.items() if array.ndim > 1}
    assert set(kinds.values()) == {np.dtype(np.int8)}
    again = to_state_dict(from_state_dict(quantized.quantize(network), weights))
    assert all(weights[key].tobytes() == again[key].tobytes() for key in weights)


# --- pruning


def test_the_weakest_rows():
    weight = np.array([[3.0, 4.0], [0.0, 1.0], [-6.0, 0.0], [2.0, 2.0], [0.5, 0.0]])
    assert prune.weakest(weight, 0.4).tolist() == [1, 4]
    assert prune.weakest(weight, 0.2).tolist() == [4]
    assert prune.weakest(weight, 0.05).tolist() == []
    assert prune.weakest(weight, 0.99).tolist() == [0, 1, 3, 4]  # one is left


def test_masks_are_those_of_pytorchs_pruning():
    network = split(base(rng()))
    theirs = torch_masked(
        to_torch(network, trunk_torch_ref.shrink.lowpower.base()), 0.2
    ).state_dict()
    ours = prune.masked(network, 0.2)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert (array == theirs[key].numpy()).all(), key
    gone = [key for key in ours if (ours[key].reshape(len(ours[key]), -1) == 0).all(1).any()]
    assert gone == ["classifier.1.weight", "features.0.weight", "features.2.weight"]


def plan(dataset, backbone, node, shape, keep, faults=()):
    network = split(nodes.build(dataset, backbone, node, shape, 5, faults=faults, rng=rng()))
    return network, prune.chains(network, shape, keep)


def test_which_convolutions_can_lose_rows():
    _, vgg = plan("digits", "vgg", "root", (8, 8, 1), True)  # c16 c32 M D, Linear
    assert vgg == [prune.Chain("features.0", ("features.1",), "features.3", 1)]
    _, leaf = plan("digits", "vgg", "root", (8, 8, 1), False)
    assert leaf[1:] == [prune.Chain("features.3", ("features.4",), "classifier.0", 16)]

    # between the two convolutions of a block; what a shortcut reads or adds to stays
    _, blocks = plan("digits", "resnet", "root", (8, 8, 1), True)
    assert blocks == [
        prune.Chain(
            f"features.{k}.residual.0", (f"features.{k}.residual.1",), f"features.{k}.residual.3", 1
        )
        for k in (3, 4)
    ]

    # 16 -> 16 twice: their results, and the stem's, are read by a shortcut
    _, mobile = plan("digits", "mobilenet", "root", (8, 8, 1), True)
    inner = "inverted_residual.{}.{}".format
    wide = [f"features.{k}.{inner(0, 'conv_1x1_block.0')}" for k in (3, 4, 5)]
    assert [chain.producer for chain in mobile] == wide
    assert mobile[0].carriers == tuple(
        f"features.3.{inner(*which)}"
        for which in (
            (0, "conv_1x1_block.1"),
            (1, "depthwise_convolution_block.0"),
            (1, "depthwise_convolution_block.1"),
        )
    )
    assert mobile[0].consumer == f"features.3.{inner(2, 'conv_1x1_block.0')}"

    # with the release's padding no shortcut is taken: all but the features can
    _, padded = plan("digits", "mobilenet", "root", (8, 8, 1), True, ("pointwise_padding",))
    assert len(padded) == 1 + 2 * 3 - 1
    assert padded[0].producer == "features.0"


@pytest.mark.parametrize(
    ("dataset", "backbone", "shape", "faults"),
    [
        ("digits", "vgg", (8, 8, 1), ()),
        ("digits", "mobilenet", (8, 8, 1), ()),
        # the same layers in other places
        pytest.param("cifar10", "vgg", (16, 16, 3), (), marks=pytest.mark.slow),
        pytest.param("cifar10", "mobilenet", (8, 8, 3), (), marks=pytest.mark.slow),
        pytest.param(
            "digits", "mobilenet", (8, 8, 1), ("pointwise_padding",), marks=pytest.mark.slow
        ),
        ("digits", "resnet", (8, 8, 1), ()),
    ],
)
# without the features' channels fewer rows are taken out, of the same layers
@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_taking_out_rows_that_do_nothing_changes_nothing(dataset, backbone, shape, faults, keep):
    """Rows of zeros that stay zero on their way: found as the weakest, and not missed."""
    network, found = plan(dataset, backbone, "root", shape, keep, faults)
    assert found
    weights = {
        key: rng(len(key)).uniform(0.2, 1, array.shape).astype(array.dtype)
        if array.ndim == 1
        else array
        for key, array in to_state_dict(network).items()
    }
    for chain in found:
        rows = len(weights[f"{chain.producer}.weight"])
        dead = rng(rows).permutation(rows)[: round(0.3 * rows)]
        for layer in (chain.producer, *chain.carriers):
            for name in ("weight", "bias", "running_mean"):
                key = f"{layer}.{name}"
                if key in weights and not (name == "weight" and layer != chain.producer):
                    weights[key] = weights[key].copy()
                    weights[key][dead] = 0
    whole = from_state_dict(network, weights)
    fewer = prune.removed(weights, found, 0.3)
    small = from_state_dict(prune.resized(network, shape, fewer), fewer)
    run = jax.jit(lambda network, x: apply(network, x)[0])
    x = jnp.asarray(rng(9).uniform(size=(2, *shape)).astype(np.float32))
    (features, scores), (ours, mine) = (run(n, x) for n in (whole, small))
    assert np.asarray(mine) == pytest.approx(np.asarray(scores), rel=1e-4, abs=1e-5)
    if keep:
        assert np.asarray(ours) == pytest.approx(np.asarray(features), rel=1e-4, abs=1e-5)
    before, after = cost(network, shape), cost(small, shape)
    assert after["parameters"] < 0.95 * before["parameters"]
    assert after["multiply_adds"] < 0.95 * before["multiply_adds"]
    assert sum(a.size for a in jax.tree.leaves(small.params)) == after["parameters"]


def test_shapes_that_do_not_fit_together():
    network, found = plan("digits", "vgg", "root", (8, 8, 1), False)
    weights = prune.removed(to_state_dict(network), found, 0.2)
    weights["features.3.weight"] = weights["features.3.weight"][:, 1:]
    with pytest.raises(UserError, match="do not fit together"):
        prune.resized(network, (8, 8, 1), weights)


# --- a whole tree


def trained(tmp_path_factory, flags):
    """A finished run of vgg nodes on digits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = f"--backbone vgg --batch-size 32 {flags}".split()
    train.main([*words, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory, "--limit 300 --epochs 3 --volatility 1.2")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Of one node, hardly trained."""
    return trained(tmp_path_factory, "--limit 100 --epochs 1 --volatility 1e-9")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name", "smaller"),
    [(["--quantize", "int8"], "int8", 0.5), (["--prune", "0.2"], "prune20", 0.9)],
)
def test_a_compressed_run_evaluates_in_both_frameworks(
    finished, flags, name, smaller, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out, file = tmp_path / "runs" / f"run-{name}", tmp_path / "result.json"
    compress.main([str(finished), *flags, "--json", str(file)])
    value = json.loads(file.read_text())
    assert value["after"]["file_bytes"] < smaller * value["before"]["file_bytes"]
    summary = runfolder.read_json(finished / "summary.json")
    assert value["before"]["accuracy"]["test"] == summary["accuracy"]["test"]
    if name == "int8":  # half a step of 127: at most a borderline image changes
        change = value["after"]["accuracy"]["test"]["correct"]
        assert abs(change - summary["accuracy"]["test"]["correct"]) <= 6
    else:
        mean = value["after"]["paths"]["mean"]["multiply_adds"]
        assert mean < 0.95 * summary["paths"]["mean"]["multiply_adds"]
    counts = []
    for main in (evaluate.main, trunk_torch_ref.evaluate.main):
        main([str(out), "--json", str(file)])
        counts.append(json.loads(file.read_text())["correct"])
    assert counts == [value["after"]["accuracy"]["test"]["correct"]] * 2
    convert_run(out, "torch", tmp_path / "turned")
    trunk_torch_ref.evaluate.main([str(tmp_path / "turned"), "--json", str(file)])
    assert json.loads(file.read_text())["correct"] == counts[0]


def test_mistakes_leave_nothing_behind(small, tmp_path):
    out = tmp_path / "out"
    for flags, text in (
        (["--prune", "0"], "--prune is 0; it must be above 0 and below 1"),
        (["--prune", "nan"], "--prune is nan"),
        ([], "one of the arguments --quantize --prune is required"),
        (["--quantize", "int8", "--prune", "0.2"], "not allowed with"),
    ):
        with pytest.raises(UserError, match=text):
            compress.main([str(small), *flags, "--out", str(out)])
    with pytest.raises(UserError, match="no run folder"):
        compress.main([str(tmp_path / "none"), "--quantize", "int8"])
    compress.main([str(small), "--quantize", "int8", "--out", str(out)])
    with pytest.raises(UserError, match="exists"):
        compress.main([str(small), "--quantize", "int8", "--out", str(out)])
    with pytest.raises(UserError, match="is compressed already"):
        compress.main([str(out), "--prune", "0.2"])
    with pytest.raises(UserError, match="started with other settings"):
        train.main(["--out", str(out), "--resume"])
    config = runfolder.read_json(out / "config.json")
    writing.write_json(out / "config.json", config | {"compression": {"method": "zip"}})
    with pytest.raises(UserError, match="is no compression of ours"):
        evaluate.main([str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    with pytest.raises(UserError, match="it must be one of int8, prune"):
        check(Compression("zip"))


# --- training after pruning


def test_a_pruned_tree_is_trained_as_it_was_trained_last_and_more_gently():
    joint = recover.phase_of(recipes.load("efficient", "digits"), 7)
    assert (joint.epochs, joint.lr, joint.schedule) == (7, pytest.approx(0.02), "onecycle")
    assert (joint.optimizer, joint.weight_decay, joint.nesterov) == ("sgd", 5e-4, True)
    steps = recover.phase_of(recipes.load("published", "cifar10", "vgg"), 3)
    assert (steps.epochs, steps.lr, steps.schedule) == (3, pytest.approx(2e-4), "cosine")
    assert (steps.period, steps.optimizer) == (0, "adam")  # of group, the root's last phase


def test_flags_of_training_after_pruning(small, tmp_path):
    out = tmp_path / "out"
    for flags, text in (
        (["--prune", "0.2", "--epochs", "-1"], "--epochs must be 0 or more, and goes with --prune"),
        (["--quantize", "int8", "--epochs", "2"], "--epochs must be 0 or more, and goes with"),
        (["--prune", "0.2", "0.2"], "--prune has a share twice"),
        (["--prune", "0.2", "--resume"], "--resume goes with --epochs or several shares"),
        (["--prune", "0.2", "1.5"], "--prune is 1.5; it must be above 0 and below 1"),
    ):
        with pytest.raises(UserError, match=text):
            compress.main([str(small), *flags, "--out", str(out)])
    out.mkdir()
    with pytest.raises(UserError, match="out exists; remove it"):
        compress.main([str(small), "--prune", "0.1", "0.2", "--out", str(out)])
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_a_curve_of_shares_with_training_after_pruning(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # short names, which the table does not fold
    out, file = Path("out"), tmp_path / "result.json"
    words = ["--prune", "0.2", "0.5", "--epochs", "3", "--out", str(out), "--json", str(file)]
    compress.main([str(finished), *words])
    value = json.loads(file.read_text())
    before = runfolder.read_json(finished / "summary.json")
    for part, share in value["before"]["accuracy"].items():
        assert share == before["accuracy"][part]
    names = ["prune20-3epochs", "prune50-3epochs"]
    assert [row["share"] for row in value["curve"]] == [0.2, 0.5]
    assert [row["run"] for row in value["curve"]] == [str(out / name) for name in names]
    for row in value["curve"]:
        # this tree had 3 epochs in all, so that 3 more must help more than a fifth of it did
        right = [row[when]["accuracy"]["test"]["correct"] for when in ("untrained", "after")]
        assert right[0] < right[1]
        for name, node in row["untrained"]["nodes"].items():
            for count in ("parameters", "multiply_adds"):
                assert node[count] == row["after"]["nodes"][name][count]
        evaluate.main([row["run"], "--json", str(file)])
        assert json.loads(file.read_text())["correct"] == right[1]
        trunk_torch_ref.evaluate.main([row["run"], "--json", str(file)])
        assert json.loads(file.read_text())["correct"] == right[1]
    small, tiny = (row["after"]["paths"]["mean"]["multiply_adds"] for row in value["curve"])
    assert before["paths"]["mean"]["multiply_adds"] > small > tiny
    stored = runfolder.read_json(out / names[0] / "config.json")["compression"]
    assert stored == {"method": "prune", "share": 0.2, "epochs": 3}
    shown = capsys.readouterr()
    assert f"{names[1]}, not trained" in " ".join(shown.out.split())
    assert "tree/recovery" in shown.err


def test_what_another_process_works_in_is_left_alone(tmp_path, monkeypatch):
    of, state = {"weights_sha256": "x"}, tmp_path / "out.unfinished"
    state.mkdir()
    writing.write_json(state / "of.json", of)

    @contextlib.contextmanager
    def busy(path):
        raise UserError(f"{path} is in use by another process")
        yield

    monkeypatch.setattr(compress, "hold", busy)
    with (
        pytest.raises(UserError, match="in use by another process"),
        compress.unfinished(tmp_path / "out", of, resume=True),
    ):
        pass
    assert (state / "of.json").exists()


@pytest.mark.slow
def test_training_after_pruning_that_is_stopped_goes_on_to_the_same_bits(
    finished, tmp_path, monkeypatch
):
    """Stopped in the second share's second epoch: the first is not done again, no epoch is lost."""
    words = [str(finished), "--prune", "0.2", "0.5", "--epochs", "3", "--out"]
    compress.main([*words, str(tmp_path / "whole")])
    epochs, kept = [], recover.recover

    def stopped(model, count, splits, folder, report):
        def tell(row=None, **progress):
            report(row=row, **progress)
            if row is not None:
                epochs.append(row["epoch"])
                if len(epochs) == 5:  # what Ctrl-C raises
                    raise KeyboardInterrupt

        return kept(model, count, splits, folder, tell)

    out, state = tmp_path / "out", tmp_path / "out.unfinished"
    monkeypatch.setattr(recover, "recover", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress.main([*words, str(out)])
    assert not out.exists()
    with pytest.raises(UserError, match=r"out\.unfinished exists; add --resume to go on with it"):
        compress.main([*words, str(out)])
    with pytest.raises(UserError, match="is of another run or other flags"):
        compress.main([*words[:3], "0.3", *words[4:], str(out), "--resume"])
    assert state.is_dir()
    compress.main([*words, str(out), "--resume"])
    assert epochs == [1, 2, 3, 1, 2, 2, 3]  # the epoch that was cut off has not been saved
    for name in ("prune20-3epochs", "prune50-3epochs"):
        files = sorted(file.name for file in (out / name / "weights").iterdir())
        assert files
        for file in files:
            one, other = (tmp_path / each / name / "weights" / file for each in ("whole", "out"))
            assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
def test_a_fifth_of_the_digits_tree_costs_at_most_half_a_point(tmp_path):
    """The mean of 5 seeds, on the test split."""
    shares = []
    for seed in range(5):
        run, file = tmp_path / f"run{seed}", tmp_path / f"{seed}.json"
        train.main(["--seed", str(seed), "--out", str(run)])
        words = ["--prune", "0.2", "--epochs", "10", "--out", str(tmp_path / f"pruned{seed}")]
        compress.main([str(run), *words, "--json", str(file)])
        found = json.loads(file.read_text())
        shares.append([found[w]["accuracy"]["test"]["accuracy"] for w in ("before", "after")])
    before, after = np.mean(shares, axis=0)
    assert after >= before - 0.005


# --- the low-power background


@pytest.mark.slow
def test_the_published_sizes(tmp_path, capsys):
    """Base 65.55 MB and 16,387,768 parameters, int8 16.40 MB, compressed 17,928 parameters."""
    file = tmp_path / "result.json"
    lowpower.main(["--repeats", "1", "--images", "4", "--json", str(file)])
    forms = json.loads(file.read_text())["forms"]
    assert list(forms) == list(shared.FORMS)
    assert forms["base"]["parameters"] == 16_387_768
    assert round(forms["base"]["bytes"] / 1e6, 2) == 65.55
    assert round(forms["int8"]["bytes"] / 1e6, 2) == 16.40
    assert forms["masked"]["bytes"] == forms["base"]["bytes"]
    assert forms["compressed"]["parameters"] == 17_928
    # 3 of 16 rows gone in either convolution: 13 are left, and 13 x 1024 inputs of the last
    assert forms["removed"]["parameters"] == (27 + 1) * 13 + (117 + 1) * 13 + (13 * 1024 + 1) * 1000
    assert forms["base"]["multiply_adds"] == 1024 * 16 * (27 + 144) + 16384 * 1000
    assert forms["base"]["relative_error"] == 0
    assert 0 < forms["int8"]["relative_error"] < 0.03 < forms["removed"]["relative_error"]
    assert "1e6 bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_both_frameworks_make_the_same_forms():
    checks = check_lowpower(1)
    assert [c for c in checks if not c.passed] == []
    assert sum(c.what == "scores" for c in checks) == 4


def test_int8_weights_do_not_depend_on_a_devices_quotients(monkeypatch):
    """On a GPU XLA's are good to two units in the last place only: weights are made on the host."""
    linear = Linear(3000, 7, rng=rng())
    expected, scale = torch_quantize_array(torch.tensor(np.asarray(linear.kernel[...]).T), dim=1)
    monkeypatch.setattr(quantized.lax, "div", lambda x, y: x / y * jnp.float32(1 - 2**-10))
    made = quantized.QuantizedLinear(linear, True)
    assert np.array_equal(np.asarray(made.kernel[...]).T, expected.numpy())
    assert np.array_equal(np.asarray(made.scale[...]), scale.numpy().ravel())


def test_off_ties_no_value_is_near_half_a_step():
    x = rng(5).normal(size=(3, 5000)).astype(np.float32)
    x[2] = 0
    moved = lowpower_check.off_ties(x)
    steps = moved[:2].astype(np.float64) / (np.abs(x[:2]).max(1, keepdims=True) / 127.0)
    assert np.abs(steps - np.rint(steps)).max() == pytest.approx(0.4, abs=1e-3)
    assert (np.rint(steps) == np.rint(x[:2] / (np.abs(x[:2]).max(1, keepdims=True) / 127))).all()
    assert (moved[2] == 0).all()


def test_wrong_flags():
    for flags in (["--seed", "-1"], ["--images", "0"], ["--repeats", "0"]):
        with pytest.raises(UserError, match="must be"):
            shared.options_of("jax", flags)
