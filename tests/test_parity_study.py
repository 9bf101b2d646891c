"""Studies: statistics by hand, the rule, coupled runs with and without planted faults."""

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from conftest import fixed_groups
from scipy import stats

from data.base.errors import UserError
from data.run import runfolder
from data.tree import grouping
from parity.study import command, distances, plants, report, statistics, tasks, trees, verdict
from parity.study.coupled import kappa
from parity.study.jax_runner import JaxRunner
from parity.study.options import options_of
from parity.study.step import flipped
from parity.study.trace import ALL

TINY = ["--limit", "150", "--epochs", "1", "--controls", "2"]

# --- statistics

A, B = (90.0, 91.0, 92.0, 93.0), (90.5, 91.5, 91.5, 92.5)


def test_two_samples_are_compared_as_by_hand():
    found = statistics.compare(A, B, margin=3.0, power=0.8)
    # variances 5/3 and 2/3 of four runs each; Welch's degrees of freedom
    error = np.sqrt(5 / 3 / 4 + 2 / 3 / 4)
    freedom = (7 / 12) ** 2 / ((5 / 12) ** 2 / 3 + (2 / 12) ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * error
    assert found.means == (91.5, 91.5)
    assert found.spreads == pytest.approx((np.sqrt(5 / 3), np.sqrt(2 / 3)))
    assert found.difference == 0
    assert found.interval == pytest.approx((-half, half))
    assert found.p_difference == pytest.approx(1.0)
    assert found.p_equivalence == pytest.approx(stats.t.sf(3.0 / error, freedom))
    assert found.equivalent
    assert not found.different
    # deviations from the medians: 1.5 0.5 0.5 1.5 and 1 0 0 1; F(1, 6) by its definition
    z = np.array([[1.5, 0.5, 0.5, 1.5], [1.0, 0.0, 0.0, 1.0]])
    between = 4 * ((z.mean(1) - z.mean()) ** 2).sum() / 1
    within = ((z - z.mean(1, keepdims=True)) ** 2).sum() / 6
    assert found.p_variance == pytest.approx(stats.f.sf(between / within, 1, 6))


def test_a_difference_of_the_margin_is_not_equivalence():
    shifted = [value + 3.0 for value in A]
    found = statistics.compare(shifted, A, margin=3.0, power=0.8)
    assert found.difference == pytest.approx(3.0)
    assert found.p_equivalence == pytest.approx(0.5)  # on the bound itself
    assert not found.equivalent


def test_runs_without_spread_leave_nothing_to_chance():
    same = statistics.compare((90.0, 90.0), (90.0, 90.0), margin=1.0, power=0.8)
    other = statistics.compare((90.0, 90.0), (92.0, 92.0), margin=1.0, power=0.8)
    assert (same.equivalent, same.different, same.p_variance) == (True, False, None)
    assert (other.equivalent, other.different, other.interval) == (False, True, (-2.0, -2.0))


def test_two_runs_have_no_test_of_variances():
    assert statistics.compare((90.0, 91.0), (90.0, 92.0), 1.0, 0.8).p_variance is None


@pytest.mark.parametrize("spreads", [(1.0, 1.0), (0.5, 1.5)])
def test_power_is_how_often_the_tests_succeed(spreads):
    draws = np.random.default_rng(0).normal(size=(2, 4000, 8)) * np.array(spreads)[:, None, None]
    x, y = draws
    noticed = stats.ttest_ind(x + 1.5, y, equal_var=False, axis=1).pvalue < 0.05
    above = stats.ttest_ind(x + 1.5, y, equal_var=False, axis=1, alternative="greater").pvalue
    below = stats.ttest_ind(x - 1.5, y, equal_var=False, axis=1, alternative="less").pvalue
    equal = np.maximum(above, below) < 0.05
    # 4,000 draws: a standard error of at most 0.008. Estimated degrees of freedom differ from
    # the true ones by more; the TOST's is a lower bound.
    assert statistics.power_of_difference(spreads, 8, 1.5) == pytest.approx(
        noticed.mean(), abs=0.03
    )
    bound = statistics.power_of_equivalence(spreads, 8, 1.5)
    assert equal.mean() - 0.05 < bound < equal.mean() + 0.02


def test_the_number_of_seeds_is_the_smallest_that_gives_the_power():
    def power(n):
        return statistics.power_of_difference((1.0, 1.0), n, 1.0)

    found = statistics.seeds_needed(power, 0.8)
    assert power(found) >= 0.8 > power(found - 1)
    assert found == 17  # the textbook's number for one standard deviation, 5 %, power 0.8
    assert statistics.seeds_needed(lambda n: 0.0, 0.8) is None


# --- distances, groups, agreement


def test_distances_by_hand():
    a = {"w": np.array([3.0, 4.0]), "b": np.array([0.0])}
    b = {"w": np.array([3.0, 0.0]), "b": np.array([0.0])}
    found = distances.whole(a, b)
    assert (found.absolute, found.relative) == (4.0, pytest.approx(0.8))
    assert found.cosine == pytest.approx(1 - 0.6)
    # of `b` the scale is what is usual in the set: sqrt(9 / 3)
    far = distances.each({"w": b["w"], "b": np.array([0.5])}, b)
    assert far == {"w": 0.0, "b": pytest.approx(0.5 / np.sqrt(3))}
    assert distances.gap(2.0, 1.0) == 0.5
    assert distances.gap(float("nan"), 1.0) == float("inf")


def test_small_angles_are_not_lost_in_one():
    a, b = {"w": np.array([1.0, 0.0])}, {"w": np.array([1.0, 1e-12])}
    assert distances.whole(a, b).cosine == pytest.approx(0.5e-24)


def test_agreement_beyond_chance():
    # 6 of 8 equal; by chance 0.5 would be: (0.75 - 0.5) / 0.5
    a, b = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    assert kappa(a, b) == pytest.approx(0.5)
    assert kappa(a[:4], a[:4]) is None


def test_groupings_compared():
    assert trees.adjusted_rand(((0, 1), (2, 3)), ((2, 3), (0, 1))) == 1.0
    assert trees.adjusted_rand(((0, 1, 2, 3),), ((0,), (1,), (2,), (3,))) == 0.0
    # pairs: 1 in common of 2 and 1, of 6: (1 - 1/3) / (1.5 - 1/3)
    half = trees.adjusted_rand(((0, 1), (2, 3)), ((0, 1), (2,), (3,)))
    assert half == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))
    asl = np.array([[0.9, 0.3, 0.1], [0.3, 0.9, 0.0], [0.1, 0.0, 0.9]])
    assert trees.margin(asl, 0.6) == pytest.approx(0.1)  # 0.3 and 0.1 about 0.2


# --- the rule


def first(differences, bands, dtype="float64"):
    table = {kind: {"a.w": 0.0, "b.w": 0.0} for kind in verdict.ORDER} | {"loss": {ALL: 0.0}}
    both = [
        {kind: table[kind] | of.get(kind, {}) for kind in verdict.ORDER}
        for of in (differences, bands)
    ]
    return verdict.first_beyond(7, dtype, *both, ["a.w", "b.w"])


def test_what_the_control_explains_is_no_difference():
    assert first({"weight": {"a.w": 0.99e-6}}, {"weight": {"a.w": 1e-8}}) is None
    found = first({"weight": {"a.w": 1.01e-6}}, {"weight": {"a.w": 1e-8}})
    assert (found.step, found.kind, found.layer) == (7, "weight", "a")


def test_below_the_floor_nothing_counts():
    assert first({"weight": {"a.w": 0.99e-10}}, {}) is None
    assert first({"weight": {"a.w": 1.01e-10}}, {}) is not None
    assert first({"weight": {"a.w": 0.05}}, {}, "float32") is None
    assert first({"weight": {"a.w": 0.06}}, {}, "float32") is not None


def test_what_comes_first_in_a_step_is_named():
    far = {"a.w": 1.0, "b.w": 1.0}
    both = {"gradient": far, "weight": far}
    assert first(both, {}).kind == "gradient"
    assert first(both, {}).tensor == "b.w"  # backward: the last layer first
    assert first({"weight": far}, {}).tensor == "a.w"
    assert first({"loss": {ALL: float("nan")}} | both, {}).kind == "loss"


def test_a_flip_is_one_bit_of_one_weight():
    state = {
        "a.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.ones(2, np.float32),
        "b.weight": np.ones((1, 1), np.float32),
    }
    other, where = flipped(state, 0, "root/class", 1)
    assert where.startswith("a.weight[")
    bits = {key: (state[key].view(np.uint32) ^ other[key].view(np.uint32)) for key in state}
    assert sum(int(np.bitwise_count(value).sum()) for value in bits.values()) == 1
    assert bits["a.weight"].max() == 1
    every = flipped(state, 0, "root/class", 2)[0]
    changed = np.concatenate([(state[key] != every[key]).ravel() for key in state])
    assert 2 <= changed.sum() <= 7  # of 9, each with one chance in two
    assert max(int((state[k].view(np.uint32) ^ every[k].view(np.uint32)).max()) for k in state) == 1


# --- coupled runs


def study(folder, *more):
    code = command.main([*TINY, "--out", str(folder), *more], inline=True)
    return code, runfolder.read_json(folder / "study.json")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Both designs, no fault, both types."""
    folder = tmp_path_factory.mktemp("study") / "plain"
    return folder, *study(folder, "--seeds", "2", "--devices")


def test_without_a_fault_there_is_no_alarm(plain):
    _, code, value = plain
    assert code == 0
    assert [(c["dtype"], c["finding"]) for c in value["coupled"]] == [
        ("float64", None),
        ("float32", None),
    ] * 2
    for coupled in value["coupled"]:
        stage = coupled["stages"][0]
        weights = max(stage["series"]["distance"]["weight"])
        # rounding, grown over three steps; 1e-13 and 3e-5 were measured
        assert 0 < weights < (1e-11 if coupled["dtype"] == "float64" else 1e-2)
        assert coupled["groups"]["root"]["same"]
        assert stage["epochs"][-1]["test"]["pairs"]["jax, torch"]["agree"] >= 145
    assert value["coupled"][0]["stages"][0]["epochs"][-1]["test"]["pairs"]["jax, torch"] == {
        "agree": 150,
        "kappa": 1.0,
    }


def test_controls_differ_by_their_bit(plain):
    stage = plain[2]["coupled"][0]["stages"][0]
    assert set(stage["flips"]) == {f"{name} flip {k}" for name in ("jax", "torch") for k in (1, 2)}
    assert stage["flips"]["torch flip 1"].startswith("features.0.weight[")
    assert stage["flips"]["torch flip 2"] == "half of all weights"
    assert 0 < max(high for _, high in stage["series"]["control"]["weight"]) < 1e-11


def test_independent_runs_are_of_different_seeds(plain):
    both = plain[2]["independent"]
    assert [(run["framework"], run["seed"]) for run in both["runs"]] == [
        ("jax", 0),
        ("torch", 2),
        ("jax", 1),
        ("torch", 3),
    ]
    rights = [100 * run["right"] / run["images"] for run in both["runs"]]
    jax, torch = rights[::2], rights[1::2]
    assert both["comparison"]["difference"] == pytest.approx(
        np.mean(jax) - np.mean(torch), abs=1e-3
    )
    assert both["agreement"]["jax, torch"]["pairs"] == 4


def test_precisions_without_a_gpu_say_what_is_left_out(plain):
    value = plain[2]["devices"]
    errors = {(row["framework"], row["mode"]): row["error"] for row in value["rows"]}
    assert 0 < errors["jax", "float32"] < 1e-6 < errors["jax", "bfloat16"] < 1e-1
    if value["device"]["torch"] == "cpu":
        assert "no GPU" in value["note"]


class Page(HTMLParser):
    """Addresses that a page would fetch, and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Collect addresses."""
        named = dict(attrs)
        self.fetched += [named[k] for k in ("src", "href") if k in named and tag != "use"]

    def handle_data(self, data):
        """Collect text."""
        self.text += data


def test_what_is_written(plain):
    folder, _, value = plain
    page = Page((folder / "report.html").read_text())
    assert [a for a in page.fetched if not a.startswith(("data:", "#"))] == []
    text = (folder / "summary.md").read_text()
    assert text.splitlines()[2] == f"**{report.findings.headline(value)}**"
    assert "no difference beyond rounding was found in float64 and float32" in text
    # tables first: what stands before the first sentence of a section are cells
    assert text.index("| type | seed | stage |") < text.index("\n- ")
    assert text.index("| framework | runs |") < text.index("\n- With these spreads")
    stage = value["coupled"][0]["stages"][0]
    rows = [line for line in text.splitlines() if line.startswith("| float64 | 0 | root/class")]
    cells, told = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows[:2])
    last, answers = stage["series"]["distance"]["weight"][-1], stage["epochs"][-1]["test"]
    right = [f"{answers['right'][name]:,}" for name in ("jax", "torch")]
    assert cells[3:5] == [str(stage["steps"]), f"{last:.1e}"]
    assert cells[6:] == [f"{stage['resolution']['weight']:.1e}"]
    assert told[3:6] == [*right, "150"]
    low, high = value["independent"]["comparison"]["interval"]
    assert f"(95 %: {low:+.2f} to {high:+.2f})" in text
    assert '<th scope="col">weights apart</th>' in (folder / "report.html").read_text()
    for name in re.findall(r"\]\((\w+\.svg)\)", text):
        assert (folder / name).stat().st_size > 1000
    steps = (folder / "coupled-steps.csv").read_text().splitlines()
    stage = value["coupled"][0]["stages"][0]
    assert len(steps) == 1 + 4 * 5 * stage["steps"]  # two seeds, two types; five kinds
    assert len((folder / "independent.csv").read_text().splitlines()) == 5


def ends(*_):
    os._exit(9)


# That a process which dies is told, and that a stop ends the workers, is what
# tests/test_parity_processes.py shows in less time: these two start whole studies.
@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "perform", ends)
    with pytest.raises(UserError, match=r"a process of the study was killed.*--jobs"):
        command.main([*TINY, "--dtype", "float64", "--out", str(tmp_path / "study")])


@pytest.mark.slow
def test_ctrl_c_leaves_no_worker_and_one_word(tmp_path):
    """Python's resource tracker warns of what a pool that was left behind still holds."""
    # enough seeds that work is left when the first epoch of the first is over
    words = [*TINY, "--seeds", "8", "--design", "coupled", "--dtype", "float64"]
    words += ["--out", str(tmp_path / "study")]
    line = [sys.executable, "-m", "parity.study", *words]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.readline()
        while "weights apart" not in said:  # a worker's: it has begun to train
            assert said, "it ended"
            said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()  # until the last process that holds it has ended
    told = f"interrupted; go on with: python -m parity.study {shlex.join(words)}"
    assert (process.returncode, rest.splitlines()[-1]) == (130, told)


# of the stepwise design a quick test shows it (tests/test_parity_stepwise.py)
@pytest.mark.slow
def test_a_study_that_was_cut_off_goes_on(plain, tmp_path, monkeypatch):
    """Only what is missing is computed, and the result is that of an undisturbed study."""
    folder, _, _ = plain
    again = tmp_path / "again"
    done = []
    perform = tasks.perform

    def cut(task, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        perform(task, *rest)
        done.append(task.name)

    monkeypatch.setattr(tasks, "perform", cut)
    few = ["--dtype", "float64", "--seeds", "2"]
    with pytest.raises(KeyboardInterrupt):
        study(again, *few)
    assert done == ["coupled-float64-0", "independent-jax-0"]
    assert not (again / "study.json").exists()
    monkeypatch.setattr(
        tasks, "perform", lambda task, *rest: (perform(task, *rest), done.append(task.name))
    )
    _, value = study(again, *few)
    assert len(done) == len(set(done)) == 6
    whole = runfolder.read_json(folder / "study.json")
    assert value["independent"] == whole["independent"]
    assert value["coupled"] == [c for c in whole["coupled"] if c["dtype"] == "float64"]
    with pytest.raises(UserError, match=r"another|other"):
        study(again, *few, "--batch-size", "32")


def repeated(*case):
    """A case that only repeats, with another fault, what a quick one shows."""
    return pytest.param(*case, marks=pytest.mark.slow)


# A fault of the update is found by `test_a_jump_is_no_finding_and_hides_none` too; one of the
# statistics, and of the moments, by the stepwise design's quick tests; one of the forward pass by
# those of parity.compare.
@pytest.mark.parametrize(
    ("fault", "cause", "layer", "first"),
    [
        repeated(
            "biased-running-variance", "statistics", "features.1", "running variance features.1"
        ),
        repeated("decoupled-weight-decay", "update", "features.0", "weight after the update"),
        repeated("adams-eps-inside-the-root", "update", "features.0", "weight after the update"),
        repeated(
            "batch-norm-eps-outside-the-root", "forward", "features.1", "output of features.1"
        ),
    ],
)
def test_a_planted_fault_is_found_where_it_is(fault, cause, layer, first, tmp_path):
    code, value = study(tmp_path, "--design", "coupled", "--dtype", "float64", "--fault", fault)
    finding = value["coupled"][0]["finding"]
    assert code == 1
    assert (finding["step"], finding["cause"], finding["layer"]) == (1, cause, layer)
    assert finding["first"].startswith(first)
    assert report.findings.headline(value).startswith("The frameworks differ: root/class, step 1")


@pytest.mark.parametrize("faulty_from", [repeated(None), 3])  # the second has the first's jump
def test_a_jump_is_no_finding_and_hides_none(faulty_from, tmp_path, monkeypatch):
    """JAX's weights are moved once, as if by a kink; its steps are right, or wrong from the 3rd."""
    step = JaxRunner.step

    def moved(self, number, masks):
        if number + 1 == faulty_from:
            self.rates = self.rates * (1 + 1e-8)
        made = step(self, number, masks)
        if number == 0:
            network = self.state.network
            params = jax.tree.map(lambda p: p * (1 + 1e-7), network.params)
            self.state = replace(self.state, network=replace(network, params=params))
        return made

    monkeypatch.setattr(JaxRunner, "step", moved)
    code, value = study(tmp_path, "--design", "coupled", "--dtype", "float64", "--batch-size", "32")
    coupled = value["coupled"][0]
    jump, finding = coupled["stages"][0]["jumps"][0], coupled["finding"]
    assert (jump["step"], jump["kind"]) == (2, "mean")
    assert jump["difference"] > 1e-8 > 1e-12 > jump["same_state"]
    if faulty_from is None:
        assert (code, finding) == (0, None)
        assert any(
            "step 2" in line and "grew by a jump" in line
            for line in report.findings.of_coupled(coupled)
        )
    else:
        assert (code, finding["step"], finding["kind"]) == (1, faulty_from, "weight")
        assert finding["cause"] == "update"


def test_every_fault_that_is_offered_can_be_planted():
    for name in plants.names():
        assert callable(plants.find(name))


@pytest.mark.slow
def test_a_whole_tree_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "group", fixed_groups)
    more = ["--design", "coupled", "--dtype", "float64", "--nodes", "tree", "--volatility", "1"]
    code, value = study(tmp_path, *more)
    coupled = value["coupled"][0]
    assert code == 0
    # the root twice (all classes, then groups), and each of the three children
    assert [stage["outputs"] for stage in coupled["stages"]] == [10, 6, 2, 3, 2]
    assert all(group["same"] for group in coupled["groups"].values())
    assert (
        coupled["predictions"]["pairs"]["jax, torch"]["agree"] == coupled["predictions"]["images"]
    )


# --- flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--margin", "-1"], "--margin"),
        (["--margin", "nan"], "--margin"),
        (["--power", "1"], "--power"),
        (["--controls", "1"], "--controls"),
        (["--fault", "none-such"], "the faults:"),
        (["--dataset", "none-such"], "none-such"),
        (["--recipe", "efficient", "--nodes", "tree"], "whole tree"),
        (["--design", "independent"], "--seeds 2"),
    ],
)
def test_flags_that_make_no_sense(flags, words):
    with pytest.raises(UserError, match=words):
        options_of(flags)


def test_two_studies_do_not_share_a_folder(tmp_path):
    with runfolder.lock(tmp_path), pytest.raises(UserError, match=r"in use|another process"):
        study(tmp_path)


def test_the_command_is_told_without_places():
    typed = ["--data-dir", "/home/me/data", "--out=x", "--seeds", "5", "--jobs", "2"]
    assert report.command(typed) == "python -m parity.study --data-dir DIR --seeds 5"
