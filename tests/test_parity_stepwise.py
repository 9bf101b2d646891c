"""The stepwise design: PyTorch trains, JAX repeats each step from the same state."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from data.base.errors import UserError
from data.images import datasets
from data.images.splits import split
from data.recipes import recipe as recipes
from data.run import runfolder
from parity.study import bounds, command, jax_runner, lead, moments, overview, stepped, stepwise
from parity.study.bounds import Verdict
from parity.study.jax_runner import JaxRunner
from parity.study.options import options_of
from parity.study.repeat import Repeater

TINY = ["--design", "stepwise", "--limit", "150", "--epochs", "2"]  # two steps an epoch


@pytest.fixture(scope="module")
def images():
    """Recipe, splits: a root of digits, 2 epochs of 2 steps."""
    chosen = recipes.override(
        recipes.load("corrected", "digits", "vgg"),
        epochs=2,
        batch_size=None,
        limit=150,
        seed=0,
        volatility=None,
    )
    return chosen, split(datasets.load("digits"), chosen.protocol, 0, chosen.limit)


@pytest.fixture(scope="module")
def compiled():
    """JAX's steps, compiled once for all tests."""
    return {}


def tried(images, compiled, folder, dtypes=("float64",), **more):
    recipe, parts = images
    return stepwise.tried(recipe, parts, 10, dtypes, folder, compiled, **more)


# --- what is trained and repeated


def test_every_step_has_its_place_in_a_segment():
    whole = lead.segments(0, [5, 3], every=1, most=2)
    assert [(one.epoch, one.start, one.count, one.first) for one in whole] == [
        (1, 0, 2, 1),
        (1, 2, 2, 3),
        (1, 4, 1, 5),
        (2, 0, 2, 6),
        (2, 2, 1, 8),
    ]
    third = lead.segments(0, [5, 3], every=3)
    assert [(one.epoch, one.start, one.first) for one in third] == [(1, 0, 1), (1, 3, 4), (2, 1, 7)]
    assert all(one.count == 1 for one in third)


def weights(folder):
    return {k: v.numpy() for k, v in lead.load(lead.weights_file(folder, 0)).items()}


def test_a_training_that_was_cut_off_ends_as_if_it_was_not(images, tmp_path):
    recipe, parts = images
    lead.lead(recipe, parts, 10, "root", 1, tmp_path / "whole", lambda line: None)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lead.lead(recipe, parts, 10, "root", 1, tmp_path / "cut", stop)
    assert not lead.finished(tmp_path / "cut")
    told = []
    lead.lead(recipe, parts, 10, "root", 1, tmp_path / "cut", told.append)
    assert len(told) == 1  # the second epoch alone
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(np.array_equal(one[key], other[key]) for key in one)
    starts = [sorted(f.name for f in (tmp_path / n / "starts").iterdir()) for n in ("whole", "cut")]
    assert starts[0] == starts[1] == ["000-0001-000000.pt", "000-0002-000000.pt"]


def test_moments_go_to_jax_and_back_unchanged(images):
    recipe, parts = images
    from data.training.stages import Stage
    from data.tree import hierarchy

    stage = Stage(hierarchy.bare(10), (), "class")
    with jax_runner.recording():
        both = Repeater(recipe, parts, stage, [], ("float32",), {})
        theirs = both.torch["float32"]
        rng = np.random.default_rng(0)
        for parameter in theirs.network.parameters():
            value = rng.normal(size=tuple(parameter.shape))
            parameter.grad = torch.tensor(value, dtype=torch.float32)
        theirs.optimizer.step()
        theirs.optimizer.step()
        found = moments.of_torch(theirs.optimizer, theirs.network)
        ours = both.jax["float32"]
        state = moments.to_optax(ours.state.moments, found, ours.state.network)
        back = moments.of_optax(state, ours.state.network)
    assert (found.step, back.step) == (2, 2)
    for name in ("exp_avg", "exp_avg_sq"):
        assert found.tensors[name].keys() == back.tensors[name].keys()
        for key, value in found.tensors[name].items():
            assert np.abs(value).max() > 0
            assert np.array_equal(value, back.tensors[name][key]), key


# --- without a fault, and with one


# What a bound is used up to at the least, by rounding alone: a bound that is a thousand times too
# wide would excuse everything, and no fault that is planted below is so small.
LEAST = {"moment": 1e-2, "weight": 5e-2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The command, both types, in this process."""
    folder = tmp_path_factory.mktemp("stepwise") / "plain"
    code = command.main([*TINY, "--out", str(folder)], inline=True)
    return folder, code, runfolder.read_json(folder / "study.json")


def test_without_a_fault_all_steps_agree(plain):
    folder, code, value = plain
    (one,) = value["stepwise"]
    assert (code, one["steps"], one["judged"], one["agree"], one["open"]) == (0, 4, 4, 4, 0)
    text = (folder / "summary.md").read_text()
    worst = one["types"]["float32"]["worst"]["torch"]
    kind = max(worst, key=worst.get)
    near = f"{100 * worst[kind]:.0f} % | {bounds.WORDS[kind]}"
    row = f"| 0 | float32 | PyTorch | 4 | 4 | 0 | 0 | {near} |"
    assert text.index("| seed | type |") < text.index(row) < text.index("\n- ")
    assert "**All 4 steps of this training agree to rounding, in float32 and float64.**" in text
    # an error of exactly 0 would mean that nothing was compared
    for name, dtype in (("jax", "float32"), ("torch", "float32"), ("jax", "float64")):
        worst = one["types"][dtype]["worst"][name]
        for kind in ("evaluation", "mean", "scores", "gradient", "moment", "weight"):
            assert LEAST.get(kind, 1e-4) < worst[kind] <= 1, (name, dtype, kind)
    assert (folder / "stepwise-steps.csv").read_text().count("\n") == 1 + 4 * 3


def test_every_so_many_steps(images, tmp_path):
    code = command.main(
        [*TINY, "--every", "3", "--dtype", "float64", "--out", str(tmp_path)], inline=True
    )
    (one,) = runfolder.read_json(tmp_path / "study.json")["stepwise"]
    assert (code, one["steps"], one["judged"]) == (0, 4, 2)
    assert "All 2 steps judged of the 4 of this training agree" in stepped.headline([one])


def test_a_study_goes_on_where_it_was_cut_off(plain, tmp_path, monkeypatch):
    done = []
    repeat = stepwise.repeat

    def cut(*given):
        if done:
            raise KeyboardInterrupt
        repeat(*given)
        done.append(given[-1].name)

    line = [*TINY, "--out", str(tmp_path)]
    monkeypatch.setattr(stepwise, "repeat", cut)
    with stepwise.fresh(), pytest.raises(KeyboardInterrupt):
        command.main(line, inline=True)
    monkeypatch.setattr(stepwise, "repeat", lambda *given: (repeat(*given), done.append(given[-1])))
    with stepwise.fresh():
        assert command.main(line, inline=True) == 0
    assert len(done) == 2
    again = runfolder.read_json(tmp_path / "study.json")
    assert again["stepwise"] == plain[2]["stepwise"]
    with pytest.raises(UserError, match=r"another|other"):
        command.main([*line, "--every", "2"], inline=True)


@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        ("biased-running-variance", "variance", "statistics"),
        # a moment that is wrong is named in the test below
        pytest.param("decoupled-weight-decay", "moment", "update", marks=pytest.mark.slow),
    ],
)
def test_a_fault_that_comes_late_is_found_when_it_comes(fault, kind, cause, images, tmp_path):
    found = tried(images, {}, tmp_path, fault=fault, fault_from=3)
    one = found["types"]["float64"]
    assert (found["agree"], one["beyond"]) == (2, 2)
    first = one["first"]
    assert (first["total"], first["kind"], first["cause"]) == (3, kind, cause)
    assert stepped.headline([found]).startswith("The frameworks differ: root/class, step 3")


# Quick are a table and a number; the others differ in which is wrong. float32 by the same rule:
# that it holds where nothing is wrong is the test of `plain`.
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("what", "kind"),
    [
        pytest.param("rate", "rate", marks=pytest.mark.slow),
        ("moment", "moment"),
        pytest.param("weight", "weight", marks=pytest.mark.slow),
        ("count", "count"),
    ],
)
def test_what_is_wrong_in_a_step_is_named(
    what, kind, dtype, images, compiled, tmp_path, monkeypatch
):
    """JAX's step is right but for one thing, by little more than is allowed or by one step."""
    factor = 1 + {"float64": 1e-10, "float32": 1e-4}[dtype]
    taken = JaxRunner.taken

    def changed(self, number, masks, state):
        after, step, seen = taken(self, number, masks, state)
        if what == "weight":
            key = (
                "classifier.2.weight"
                if "classifier.2.weight" in step.state
                else "features.0.weight"
            )
            step = replace(step, state=step.state | {key: step.state[key] * factor})
        return after, step, seen

    def carried(state, network):
        found = of_optax(state, network)
        if what == "moment":
            table = {
                k: v * np.asarray(factor, v.dtype) for k, v in found.tensors["exp_avg_sq"].items()
            }
            found = replace(found, tensors={**found.tensors, "exp_avg_sq": table})
        return replace(found, step=found.step + (what == "count"))

    of_optax = moments.of_optax
    monkeypatch.setattr(moments, "of_optax", carried)
    monkeypatch.setattr(JaxRunner, "taken", changed)
    if what == "rate":
        begin = JaxRunner.begin

        def faster(self, *given):
            begin(self, *given)
            self.rates = self.rates * factor

        monkeypatch.setattr(JaxRunner, "begin", faster)
    first = tried(images, compiled, tmp_path, (dtype,))["types"][dtype]["first"]
    assert (first["total"], first["kind"]) == (1, kind)


# --- the rule, on made-up numbers


def verdict(errors, allowed):
    table = {kind: {"a.w": 0.0, "b.w": 0.0} for kind in bounds.KINDS}
    most = {kind: {"a.w": 1.0, "b.w": 1.0} for kind in bounds.KINDS}
    names = errors.keys()
    return Verdict(
        {name: table | errors[name] for name in names}, dict.fromkeys(names, most | allowed)
    )


def test_what_is_computed_first_is_named():
    far = {"a.w": 2.0, "b.w": 3.0}
    both = verdict({"jax": {"gradient": far, "weight": far}, "torch": {}}, {})
    found = bounds.first(both, ["a.w", "b.w"], "float32")
    assert (found.kind, found.tensor, found.framework) == ("gradient", "b.w", "jax")
    both = verdict({"jax": {"weight": far}, "torch": {"weight": {"a.w": 2.5, "b.w": 0.0}}}, {})
    found = bounds.first(both, ["a.w", "b.w"], "float32")
    assert (found.kind, found.tensor, found.framework) == ("weight", "a.w", "torch")
    assert bounds.first(verdict({"jax": {}}, {}), ["a.w", "b.w"], "float64") is None
    same = verdict({"jax": {"loss": {"a.w": 1.0, "b.w": 0.0}}}, {})
    assert bounds.first(same, ["a.w", "b.w"], "float64") is None  # as much as is allowed
    nan = verdict({"jax": {"loss": {"a.w": float("nan"), "b.w": 0.0}}}, {})
    assert bounds.first(nan, ["a.w", "b.w"], "float64").framework == ""


def test_shares_of_nothing():
    assert bounds.share(0.0, 0.0) == 0.0
    assert bounds.share(1e-30, 0.0) == float("inf")
    assert bounds.share(float("inf"), 1.0) == float("inf")
    assert bounds.share(1.0, 4.0) == 0.25


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--design", "stepwise", "--every", "0"], "--every"),
        (["--every", "2"], "stepwise"),
        (["--design", "stepwise", "--fault-from", "3"], "--fault"),
        (["--design", "stepwise", "--devices"], "--devices"),
        (["--design", "stepwise", "--recipe", "efficient", "--nodes", "tree"], "whole tree"),
    ],
)
def test_flags_that_make_no_sense(flags, words):
    with pytest.raises(UserError, match=words):
        options_of(flags)


def test_jax_is_left_as_it_was():
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("worst", "shown"),
    [(0.984572, "98 %"), (37.5, "3750 %"), (3.7585e8, "3.8e+08 times"), (None, "not finite")],
)
def test_how_much_of_a_bound_an_error_is_stays_short(worst, shown):
    one = {"agree": 1, "beyond": 1, "open": 0, "worst": {"jax": {"weight": worst}}}
    one["on_other_sides"] = {}
    table = overview.of_stepwise([{"seed": 0, "judged": 2, "types": {"float64": one}}])[0]
    assert table.rows[0][7] == shown
