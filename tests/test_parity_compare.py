"""`parity.compare`: planted faults found, located and named; nothing reported without a fault."""

import json
from pathlib import Path

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from data.base.errors import UserError
from parity import compare as command
from parity.comparing import diagnosis, values
from parity.comparing.comparison import compare
from parity.comparing.diagnosis import Finding
from parity.comparing.report import Report, Section
from tests.compared import faults, models
from tests.compared.fault_free import one

HERE = Path(__file__).parent / "compared"
TRAIN = {
    "momentum",
    "running variance",
    "running statistics in training",
    "gradient stopped",
    "decoupled weight decay",
    "weight decay",
    "place of epsilon",
    "nesterov",
}
# One of a constant, of an order and of what is missing: the others, of the same kinds, differ in
# the cause that is tried. (Of activations a tanh GELU is named in a pure function, below.)
QUICK = {
    "epsilon under the root",
    "gates i f o g",
    "a bias forgotten",
}


def reported(fault):
    """What `compare` says of a planted fault."""
    theirs, ours, x = faults.made(fault.model, 0, fault.both, fault.jax, fault.torch)
    if fault.spoil is not None:
        faults.carried(theirs, ours, x)
        fault.spoil(ours)
    return compare(
        theirs,
        ours,
        x,
        carry=fault.spoil is None,
        optimizer=fault.optimizer,
        train=fault.cause in TRAIN,
    )


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[] if fault.name in QUICK else pytest.mark.slow)
        for fault in faults.FAULTS
    ],
)
def test_a_planted_fault_is_found_located_and_named(fault):
    report = reported(fault)
    first = report.first_difference
    assert not report.passed
    assert (first.cause, fault.where in first.path) == (fault.cause, True), str(report)
    # with the cause taken away the models agree to rounding: nothing is named by guess
    assert first.after is not None
    assert first.after <= values.SAME


# The quick test of each other model is the one above: with its fault taken away it is the same.
@pytest.mark.parametrize(
    "seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 9))]
)
def test_nothing_is_reported_without_a_fault(seed):
    result = one(seed, train=seed == 3)
    assert result["found"] == []
    assert result["passed"]


def test_what_is_committed_of_comparisons_without_a_fault():
    known = json.loads((HERE / "fault-free.json").read_text())
    assert known["comparisons"] == len(known["results"])
    assert known["reported"] == 0
    assert max(result["worst"] for result in known["results"]) <= values.SAME


def test_a_report_goes_where_a_user_says(tmp_path):
    theirs, ours, x = faults.made("lstm")
    report = compare(theirs, ours, x, train=False)
    (tmp_path / "link.json").symlink_to("behind.json")
    report.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "behind.json").read_text())["passed"]
    with pytest.raises(UserError, match="no/such does not exist; make it"):
        report.save(tmp_path / "no" / "such" / "x.html")


def test_nothing_of_the_caller_is_changed():
    theirs, ours, x = faults.made("lstm")
    before = (torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    kernel = np.array(ours.head.kernel[...])
    assert compare(theirs, ours, x, train=False).passed
    assert (torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64) == before
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in state.items())
    np.testing.assert_array_equal(ours.head.kernel[...], kernel)
    assert theirs.training


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))


def test_a_pure_function_with_a_tree():
    tree = {
        "one": {"w": np.zeros((3, 4)), "b": np.zeros(4)},
        "two": {"w": np.zeros((4, 2)), "b": np.zeros(2)},
    }

    def apply(tree, x, exact=True):
        x = jax.nn.gelu(x @ tree["one"]["w"] + tree["one"]["b"], approximate=not exact)
        return x @ tree["two"]["w"] + tree["two"]["b"]

    assert compare(net(), (apply, tree), torch.randn(5, 3)).passed
    wrong = compare(net(), (lambda t, x: apply(t, x, exact=False), tree), torch.randn(5, 3))
    assert wrong.first_difference.cause == "tanh GELU"
    assert wrong.first_difference.path == "1"


def test_a_linen_module_through_the_bridge():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.gelu(linen.Dense(4)(x), approximate=False))

    x = torch.randn(5, 3)
    ours = nnx.bridge.ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(jnp.asarray(x.numpy()))
    report = compare(net(), ours, x)
    assert report.passed, str(report)


class TwoHeads(nnx.Module):
    def __init__(self):
        self.b = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(x) * 2 + self.a(x)


class TorchTwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) + self.b(x) * 2


def test_names_tell_layers_apart_that_order_does_not():
    theirs, ours, x = TorchTwoHeads(), TwoHeads(), torch.randn(4, 3)
    found = compare(theirs, ours, x, train=False)
    assert not found.passed
    assert any("order of their use alone: a, b" in line for line in found.weights)
    assert compare(theirs, ours, x, {"a": "a", "b": "b"}).passed
    assert compare(theirs, ours, x, lambda name: name).passed
    with pytest.raises(UserError, match="the JAX model lacks; it has a, b"):
        compare(theirs, ours, x, {"a": "c"})


FACTORIES = """
from flax import nnx
from tests.compared import models
def theirs(): return models.TorchLSTM()
def ours(): return models.LSTM(rngs=nnx.Rngs(0))
def wrong(): return 3
def fails(): raise ValueError("no")
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_command(factories, capsys):
    page, result = factories / "report.html", factories / "report.json"
    flags = ["--input", "2x4x5", "--html", str(page), "--json", str(result)]
    assert command.main(["their_models:theirs", "their_models:ours", *flags]) == 0
    assert "Same: nothing differs beyond rounding." in capsys.readouterr().out
    assert json.loads(result.read_text())["passed"] is True
    assert "lstm" in page.read_text()
    flags = ["--input", "2x4x5", "--own-weights", "--evaluation"]
    assert command.main(["their_models:theirs", "their_models:ours", *flags]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["their_models:none", "their_models:ours", "--input", "2x4x5"], "has no function none"),
        (
            ["nothing_here:x", "their_models:ours", "--input", "2x4x5"],
            "importing nothing_here fails",
        ),
        (["their_models", "their_models:ours", "--input", "2x4x5"], "write module:function"),
        (
            ["their_models:fails", "their_models:ours", "--input", "2x4x5"],
            "it fails: ValueError: no",
        ),
        (["their_models:wrong", "their_models:ours", "--input", "2x4x5"], "not a torch.nn.Module"),
        (
            ["their_models:theirs", "their_models:wrong", "--input", "2x4x5"],
            "give a Flax NNX module",
        ),
        (["their_models:theirs", "their_models:ours", "--input", "2,4"], "write a shape like"),
        (["their_models:theirs", "their_models:ours", "--input", "2x4x6"], "fails on this input"),
        (
            ["their_models:theirs", "their_models:ours", "--input", "2x4x5", "--weights", "no.pt"],
            "no such file",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(factories, arguments, line):
    with pytest.raises(UserError, match=line) as error:
        command.main(arguments)
    assert "\n" not in str(error.value)


def test_values_are_matched_by_what_they_hold():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4))
    theirs = values.prints([x.transpose(2, 0, 1), x + 1e-6, np.repeat(x, 3)])
    ours = values.prints([x, x + 1e-6, x + 1e-3, np.where(x > 0, x, -np.inf)])
    assert values.matches(ours, theirs) == [0, 1, -1, -1]
    # what is masked does not hide what is not
    masked = values.prints([np.where(x > 0, x, -1e300), np.where(x > 0, x + 1e-3, -np.inf)])
    assert values.matches(ours, masked)[3] == 0
    hidden = values.prints([np.where(x > 0, x, -1e9), np.where(x > 0, x + 1e-3, -65504)])
    assert values.matches(ours, hidden)[3] == 0
    assert values.turned(x.transpose(2, 0, 1), x, 1e-12) == (1, 2, 0)
    assert values.turned(x.reshape(4, 2, 3), x, 1e-12) is None
    # one number of many is enough
    assert not values.same_numbers(np.arange(100.0), np.arange(100.0) + 1e-6 * np.eye(100)[7], 1e-7)


def found(path, operation="layer_norm", cause="epsilon", after=1e-15):
    return Finding("evaluation", path, operation, "", "", "", 1e-3, cause, "words", after)


def test_differences_of_one_cause_are_told_once():
    given = [found("a"), found("b", after=2e-15), found("c", "batch_norm"), found("d", cause="")]
    merged = diagnosis.merged([*given, found("e", cause="")])
    assert [(one.path, one.places) for one in merged] == [("a", 2), ("c", 1), ("d", 1), ("e", 1)]
    assert merged[0].after == 2e-15


def test_a_report_passes_if_all_of_it_does():
    same = Section("loss", "", 0.0, passed=True)
    assert Report("", [same]).passed
    assert not Report("", [same], [found("a")]).passed
    beyond = Report("", [same, Section("gradients", "", 1.0, passed=False)])
    assert not beyond.passed
    assert beyond.verdict.startswith("Different")


def test_axes_are_turned_where_the_shapes_leave_no_other_way_or_the_numbers_say_so():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 4, 5))
    last = np.moveaxis(image, 1, -1)
    np.testing.assert_array_equal(values.aligned(last, image), image)
    square = rng.normal(size=(2, 4, 4))
    assert not values.channels_first(square + 1e-3, square)
    assert values.channels_first(square.transpose(0, 2, 1) + 1e-3, square)
    assert values.aligned(image[:, :, :1, 0], image[:, :, 0, 0]).shape == (2, 3)
    assert values.aligned(image[:, :2], image).shape == (2, 2, 4, 5)
    given = {"b": 1, "a": [2, {"d": 3, "c": 4}]}
    assert values.in_order(given) == [[2, [4, 3]], 1]


def test_what_masks_are_filled_with_is_told_from_large_numbers():
    filled = values.bounded(np.array([1.0, -2.0, -1e9]))
    np.testing.assert_array_equal(filled, [1.0, -2.0, -4.0])
    for usual in ([1.0, -2.0, 1e9], [-1e9, -2e9], [100.0, -1e4]):
        np.testing.assert_array_equal(values.bounded(np.array(usual)), usual)


def test_models_are_those_of_users():
    assert len(faults.FAULTS) >= 40
    assert {fault.cause for fault in faults.FAULTS} <= set(faults.CAUSES)
    assert models.ViT is faults.PAIRS["vit"][1]
