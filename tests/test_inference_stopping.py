"""Early stopping without a framework: what `evaluate` sets, keeps and refuses, and what is a tie.

The tree's nodes are told by the nearest mean of training images, the root in few pixels: so it is
unsure of some images, and its children know better.
"""

import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.base import writing
from data.base.errors import UserError
from data.images.datasets import load
from data.images.splits import split
from data.inference import curve, hub, stopping
from data.inference.closeness import too_close
from data.inference.model import Model, group_shares, predictions
from data.inference.stopping import NEVER, Stopping
from data.recipes import recipe as recipes
from data.recipes.recipe import Exits
from data.run import card, derived, results, runfolder
from data.run.options import evaluate_options
from data.training.evaluate import evaluate
from data.training.framework import Framework
from data.tree import hierarchy
from data.tree.hierarchy import ROOT
from trunk_jax.interchange import folder
from trunk_jax.predict import line, row_of

GROUPS = ((0, 6, 8), (1,), (2, 3), (4,), (5, 7, 9))
TREE = hierarchy.regroup(hierarchy.bare(10, exits=True), ROOT, GROUPS)
RECIPE = replace(recipes.load("efficient", "digits"), exits=Exits())
COSTS = {
    TREE.names[node]: {"multiply_adds": cost, "parameters": 7 * cost}
    for node, cost in zip(TREE.nodes, (1000, 3000, 5000, 9000), strict=True)
}


@cache
def parts(protocol="holdout"):
    return split(load("digits"), protocol, RECIPE.seed)


@pytest.fixture(autouse=True)
def _few_rules(monkeypatch):
    """Every fifth of the thresholds, and three probabilities of the second branch."""
    monkeypatch.setattr(curve, "_STEPS", 12)
    monkeypatch.setattr(curve, "_BOTH_FROM", (0.4, 0.2, 0.1))


def seen(images, node):
    """The pixels that a node looks at: the root at 16, others at all 64."""
    pixels = np.asarray(images, np.float64)[..., 0] / 255
    if node == ROOT:
        pixels = pixels.reshape(-1, 4, 2, 4, 2).mean((2, 4))
    return pixels.reshape(len(pixels), -1)


@cache
def means(root):
    train, node = parts().train, ROOT if root else (0,)
    return np.stack([seen(train.images[train.labels == c], node).mean(0) for c in range(10)])


@dataclass(frozen=True, repr=False)
class Nearest(Model):
    """Scores are squared distances to the classes' means, in which float32 is exact enough."""

    def scores(self, images):
        found = {}
        for node in self.tree.nodes:
            apart = ((seen(images, node)[:, None] - means(node == ROOT)) ** 2).sum(2)
            groups = [(c,) for c in self.tree.members(node)]
            if not self.tree.exits:
                groups = list(self.tree.branches(node))
            found[node] = -np.stack([apart[:, list(g)].min(1) for g in groups], axis=1)
        return found

    def visits(self, pixels):
        return curve.visits(self.tree, self.scores(pixels), self.stopping)


def model_of(run):
    tree = runfolder.read_tree(run)
    return Nearest(runfolder.read_recipe(run), tree, {}, run, stopping.read(run, tree))


def _none(*_):
    raise AssertionError("not asked for")


FRAMEWORK = Framework[Nearest](
    name="jax",
    device=_none,
    free=_none,
    grow=_none,
    load=model_of,
    predict=lambda m, images: predictions(m.tree, m.visits(images), len(images)),
    scores=lambda m, images: m.scores(images),
    costs=lambda m: COSTS,
    out_of_memory=lambda error: False,
    settings=_none,
    int8=_none,
)


def write_run(place, tree=TREE, recipe=RECIPE):
    config = {"format": runfolder.FORMAT, "framework": "jax", "recipe": recipes.to_json(recipe)}
    writing.write_json(
        place / "config.json", config | {"dataset_sha256": load("digits").fingerprint}
    )
    runfolder.write_tree(place, tree)
    test = parts(recipe.protocol).test
    found = FRAMEWORK.predict(model_of(place), test.images).labels
    summary = results.summary("jax", recipe, load("digits"), tree, COSTS, {"test": (test, found)})
    writing.write_json(place / "summary.json", summary)
    return place


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def ask(run, *flags):
    evaluate(FRAMEWORK, evaluate_options("torch", [str(run), *map(str, flags)]))


def files(run):
    return {f.name: f.read_bytes() for f in run.iterdir() if f.name != ".lock"}


def test_a_wanted_cost_is_kept_on_validation_and_is_what_images_cost(run, tmp_path, capsys):
    report = tmp_path / "report.json"
    ask(run, "--stop-at", "4000", "--curve", "--json", report)
    found, kept = json.loads(report.read_text()), json.loads((run / stopping.FILE).read_text())
    rule, images = stopping.read(run, TREE), parts().test
    assert rule == model_of(run).stopping
    assert rule.second is None
    assert kept["about"]["stop_at"] == 4000
    # counted from the ways of the images, one by one
    told = model_of(run).predict(images.images)
    for key, value in found["mean"].items():
        if key != "last":
            costs = [sum(COSTS[name][key] for name in path) for path in told.paths]
            assert value == pytest.approx(np.mean(costs), rel=1e-12)
    ends = [path[-1] for path in told.paths]
    assert found["mean"]["last"] == pytest.approx(
        {name: ends.count(name) / len(ends) for name in COSTS}, rel=1e-12
    )
    assert 0.05 < found["mean"]["last"]["root"] < 0.95
    assert found["correct"] == (told.labels == images.labels).sum()
    stopped = json.loads((run / "stopped-test.json").read_text())
    assert stopped == found["mean"] | {k: found[k] for k in ("accuracy", "correct", "total")}
    # the point that was chosen on validation is what happens there
    ask(run, "--split", "validation", "--json", report)
    there = json.loads(report.read_text())
    assert kept["about"]["validation"]["correct"] == there["correct"]
    assert kept["about"]["validation"]["multiply_adds"] == there["mean"]["multiply_adds"] <= 4000
    # with its own rule the curve has the point of it on test
    (mine,) = [p["test"] for p in found["curve"] if p["validation"] == kept["about"]["validation"]]
    assert (mine["correct"], mine["multiply_adds"]) == (
        found["correct"],
        found["mean"]["multiply_adds"],
    )
    assert "ended at root" in capsys.readouterr().out


def test_the_test_images_decide_nothing(run, monkeypatch):
    """With other test images the rules are the same, to the last bit."""
    ask(run, "--stop-at", "4000", "--beam", "2", "--curve")
    first = (run / stopping.FILE).read_bytes()
    real = Nearest.scores
    validation = len(parts().validation.labels)

    def other(self, images):
        found = real(self, images)
        return found if len(images) == validation else {n: s[::-1] / 3 for n, s in found.items()}

    monkeypatch.setattr(Nearest, "scores", other)
    ask(run, "--stop-at", "4000", "--beam", "2", "--curve")
    assert (run / stopping.FILE).read_bytes() == first


def test_under_the_protocol_published_it_is_said_that_test_images_decide(tmp_path, capsys):
    run = write_run(tmp_path / "run", recipe=replace(RECIPE, protocol="published"))
    ask(run, "--stop-at", "4000")
    assert "where images stop was chosen on TEST" in capsys.readouterr().err
    ask(run)
    assert "chosen on TEST" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--stop-at", "nonsense"], "'nonsense' is neither a mean cost such as 25M nor a share"),
        (["--stop-at", "inf"], "'inf' is neither"),
        (["--stop-at", "nan"], "'nan' is neither"),
        (["--stop-at", "0"], "'0' is neither"),
        (["--stop-at=-5M"], "'-5M' is neither"),
        (["--stop-at", "95"], r"at least 0\.0010M, or an accuracy from 0 to 1"),
        (["--stop-at", "1"], "no threshold gives that accuracy on validation images"),
        (["--beam", "3"], "invalid choice: 3"),
        (["--beam", "0"], "invalid choice: 0"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_changes_nothing(run, flags, match):
    ask(run, "--stop-at", "4000")
    before = files(run)
    with pytest.raises(UserError, match=match) as caught:
        ask(run, *flags)
    assert len(str(caught.value).splitlines()) == 1
    assert files(run) == before


@pytest.mark.parametrize("cost", [1_234_567.0, 1_234_000.0, 62_112.4, 3.0])
def test_the_least_cost_and_the_best_accuracy_that_are_named_can_be_asked_for(cost):
    points = [curve.Point(Stopping(), 2, 3, cost, 0.0, {})]
    with pytest.raises(UserError, match="give at least") as caught:
        curve.chosen(points, 2.0)
    least = str(caught.value).split("at least ")[1].split("M,")[0]
    assert curve.chosen(points, 1e6 * float(least)) == points[0]
    with pytest.raises(UserError, match="the best is") as caught:
        curve.chosen(points, 1.0)
    assert curve.chosen(points, float(str(caught.value).split("best is ")[1].split(",")[0]))
    with pytest.raises(UserError, match="1: no threshold gives that accuracy"):
        curve.chosen(points, 1)


def test_of_points_of_one_cost_the_best_is_on_the_frontier():
    points = [curve.Point(Stopping(), right, 9, 5.0, 0.0, {}) for right in (3, 7, 7, 5)]
    assert curve.frontier(points) == [points[1]]


def test_where_nodes_score_groups_or_there_is_one_network_flags_are_refused(tmp_path):
    groups = write_run(tmp_path / "groups", tree=replace(TREE, exits=False))
    with pytest.raises(UserError, match=r"--stop-at is for trees with exits; .*--beam 2 is for"):
        ask(groups, "--stop-at", "4000")
    ask(groups, "--beam", "2")
    assert model_of(groups).stopping.thresholds == {}
    one = write_run(tmp_path / "one", tree=hierarchy.bare(10, exits=True))
    for flags in (["--curve"], ["--beam", "1"], ["--stop-at", "0.5"]):
        with pytest.raises(UserError, match="is one network: no image can stop early"):
            ask(one, *flags)


def test_second_branches_are_tried_where_they_are_asked_for(run, monkeypatch):
    real, tried = curve.rules, []

    def noted(*arguments, **named):
        found = real(*arguments, **named)
        tried.append({rule.second for rule in found})
        return found

    monkeypatch.setattr(curve, "rules", noted)
    for flags in (["--curve"], ["--beam", "1"], ["--stop-at", "4000"], ["--beam", "2"]):
        ask(run, *flags)
    assert tried == [{None}] * 3 + [{None, 0.4, 0.2, 0.1}]


def test_another_rule_forgets_the_predictions_of_the_one_before(run):
    ask(run, "--stop-at", "4000")
    ask(run, "--split", "validation")
    before = files(run)
    assert {"predictions-test.csv", "predictions-validation.csv"} <= before.keys()
    ask(run, "--split", "validation", "--stop-at", "4000")  # the same: the others stay
    assert files(run).keys() == before.keys()
    ask(run, "--split", "validation", "--stop-at", "1300")
    assert "predictions-test.csv" not in files(run)
    assert "stopped-test.json" not in files(run)
    # a rule taken out by hand: what was predicted by it is no number of the run any more
    ask(run)
    (run / stopping.FILE).unlink()
    with pytest.raises(UserError, match=r"no stopping.json any more, but predictions"):
        results.standing(run, results.read_summary(run))
    ask(run)
    assert not results.standing(run, results.read_summary(run))["stopped"]


def test_a_folder_that_is_handed_on_stays_as_it_is(run, tmp_path, monkeypatch, capsys):
    """And no number stands by a rule that is kept nowhere."""
    monkeypatch.chdir(tmp_path)
    (run / "README.md").write_text("a card")
    before = files(run)
    ask(run, "--stop-at", "4000")
    assert "is handed on as it is" in capsys.readouterr().err
    assert files(run) == before
    assert not Path("runs").exists()
    ask(run)
    assert "handed on" not in capsys.readouterr().err
    assert files(run) == before
    assert sorted(p.name for p in Path("runs/run").iterdir()) == [
        "confusion-test.csv",
        "derived-from.json",
        "predictions-test.csv",
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperatures": {"root": 0}}, "temperature of root is 0; it must be 0.001 to 1000"),
        ({"temperatures": {"root": 1e-30}}, "temperature of root is 1e-30"),
        ({"temperatures": {"root": 1e30}}, r"temperature of root is 1e\+30"),
        ({"thresholds": {"root": 1.5}}, "threshold of root is 1.5; it must be 0 to 1, or 2"),
        ({"thresholds": {"root": -0.5}}, "threshold of root is -0.5"),
        ({"thresholds": {"sg77": 0.5}}, "no node 'sg77'"),
        ({"thresholds": {"root": "0.5"}}, "no float"),
        ({"thresholds": [0.5]}, "no object"),
        ({"second": 1.5}, "second is 1.5; it must be 0 to 1, or null"),
        ({"second": True}, "second is True"),
        ({"second": float("nan")}, "NaN is no number"),
    ],
)
def test_a_file_of_no_rule_is_refused_and_can_be_made_anew(run, change, match):
    stopping.write(run, Stopping({"root": 2.0}, {"root": NEVER}, 0.25), {})
    assert stopping.read(run, TREE).threshold("root") == NEVER
    value = json.loads((run / stopping.FILE).read_text())
    (run / stopping.FILE).write_text(json.dumps(value | change))
    with pytest.raises(UserError, match=match) as caught:
        ask(run)
    assert "remove it, and make it anew with evaluate --stop-at" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    (run / stopping.FILE).unlink()  # as it says
    ask(run, "--stop-at", "4000")
    ask(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 200 + "]" * 200, '{"second": null}'])
def test_a_damaged_file_says_what_to_do(run, text):
    (run / stopping.FILE).write_text(text)
    with pytest.raises(UserError, match=r"does not say where images stop .*; remove it, and make"):
        ask(run)


def test_predict_shows_where_an_image_stopped(run):
    ask(run, "--stop-at", "4000")
    model, images = model_of(run), parts().test.images
    told, titles = model.predict(images), TREE.titles(model.classes)
    stayed = next(k for k, path in enumerate(told.paths) if path == ("root",))
    went = next(k for k, path in enumerate(told.paths) if path == ("root", "sg1"))
    row = row_of(model, images[stayed])
    assert row["class"] == told.names[stayed]
    (step,) = row["path"]
    assert (step["node"], step["output"]) == ("root", told.names[stayed])
    assert step["probability"] == max(step["outputs"].values()) == pytest.approx(row["probability"])
    row = row_of(model, images[went])
    first, last = row["path"]
    assert (first["output"], last["node"], last["output"]) == ("sg1", "sg1", told.names[went])
    assert first["probability"] == pytest.approx(sum(first["outputs"][c] for c in "068"))
    assert row["probability"] == pytest.approx(first["probability"] * last["probability"])
    said = line({"file": "x.png"} | row, titles, [])
    assert said.startswith(f"x.png: {told.names[went]} ")
    assert "(root: sg1 {0 6 8} " in said
    assert f" > sg1: {told.names[went]} " in said


def test_the_card_says_what_was_calibrated(run):
    assert card._calibrated(run) == "not been calibrated"
    ask(run, "--stop-at", "4000")
    assert "calibrated on validation images alone" in card._calibrated(run)
    shutil.copy(run / stopping.FILE, run / "kept")
    stopping.write(run, Stopping(second=0.5), {})
    assert card._calibrated(run) == "not been calibrated"


def test_what_comes_from_the_hub_stops_where_it_was_sent_to(monkeypatch, tmp_path):
    asked = []

    def download(name, *, allow_patterns, **_):
        asked.extend(allow_patterns)
        return str(tmp_path)

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "_library", lambda: SimpleNamespace(snapshot_download=download))
    assert hub.fetch("hub:someone/tree") == tmp_path
    assert {*folder.KEPT, stopping.FILE, derived.CARD, "weights/*.safetensors"} <= set(asked)


# --- what is too close to call


@pytest.mark.parametrize("exits", [True, False])
def test_at_a_threshold_an_image_stops_and_of_equals_the_first_is_taken(exits):
    """One image has a class or branch of 0.5, the other two branches of 0.5, of a quarter each."""
    tree = replace(TREE, exits=exits)
    rows = np.full((2, tree.width(ROOT)), 1e-300)
    rows[0], rows[0, 0] = 0.5 / (rows.shape[1] - 1), 0.5
    rows[1, [0, 2, 3, 6] if exits else [0, 2]] = 0.25
    scores = {ROOT: np.log(rows)}
    share = float(np.exp(curve.log_softmax(scores[ROOT])).max(1)[0])
    rule = Stopping({}, {"root": share} if exits else {}, second=0.5)
    visit = next(curve.visits(tree, scores, rule))
    assert visit.chosen.tolist() == [-1 if exits else 0, 0]
    assert visit.second.tolist() == [-1, 2]
    above = replace(rule, thresholds={"root": share * (1 + 1e-15)} if exits else {})
    assert next(curve.visits(tree, scores, above)).chosen.tolist() == [0, 0]
    more = replace(rule, second=0.5 * (1 + 1e-12))
    assert next(curve.visits(tree, scores, more)).second.tolist() == [-1, -1]


def closeness(tree, rule, scores, error):
    met = predictions(tree, curve.visits(tree, scores, rule), len(scores[ROOT])).met
    errors = {node: np.full(len(met), error) for node in tree.nodes}
    return too_close(tree, rule, scores, errors, met)


def logs(*rows):
    return np.log(np.array(rows))


CHILDREN = {(0,): logs([0.98, 0.01, 0.01]), (2,): logs([0.7, 0.3]), (4,): logs([0.5, 0.3, 0.2])}
# of classes 0 to 9; branches are {0 6 8}, {1}, {2 3}, {4}, {5 7 9}
SURE = [0.30, 0.01, 0.15, 0.15, 0.02, 0.01, 0.15, 0.03, 0.15, 0.03]  # 0.6 and 0.3
TWO = [0.17, 0.001, 0.004, 0.004, 0.001, 0.16, 0.17, 0.16, 0.17, 0.16]  # 0.51 and 0.48
THREE = [0.17, 0.001, 0.13, 0.13, 0.001, 0.08, 0.17, 0.08, 0.16, 0.078]  # 0.5, 0.26 and 0.238
# An error moves a probability by four of it (two, and as much to be safe), a comparison of two by
# eight: at the last number something is too close, and at the one before nothing is.
COMPARED = {
    "a class and the threshold": (SURE, Stopping({}, {"root": 0.3 * 1.001}), 2e-4, 3e-4),
    "a branch and the second's": (SURE, Stopping({}, {}, second=0.3 * 1.001), 2e-4, 3e-4),
    "the best two branches": (TWO, Stopping(), 7e-3, 8e-3),
    "the second and the third": (THREE, Stopping({}, {}, second=0.1), 1e-2, 1.2e-2),
}


@pytest.mark.parametrize("what", COMPARED)
def test_what_is_compared_is_too_close_within_its_errors(what):
    row, rule, far, near = COMPARED[what]
    scores = {ROOT: logs(row)} | CHILDREN
    assert not closeness(TREE, rule, scores, far).any()
    assert closeness(TREE, rule, scores, near).all()
    hot = replace(rule, temperatures=dict.fromkeys(TREE.names.values(), 2.0))
    heated = {node: 2 * mine for node, mine in scores.items()}
    assert not closeness(TREE, hot, heated, 2 * far).any()
    assert closeness(TREE, hot, heated, 2 * near).all()


@pytest.mark.parametrize("exits", [True, False])
def test_answers_of_two_branches_are_too_close_where_products_are(exits):
    """0.6 of the root's times 0.45 against 0.4 times 0.675 at the children: equal."""
    tree = replace(TREE, exits=exits)
    rows = {True: [0.3, 0, 0.4, 0, 0, 0, 0.2, 0, 0.1, 0], False: [0.6, 0, 0.4, 0, 0]}
    scores = {ROOT: np.log(np.maximum([rows[exits]], 1e-9))} | CHILDREN
    rule = Stopping({}, {}, second=0.1)
    for share, close in ((0.675, True), (0.69, False)):
        scores |= {(0,): logs([0.45, 0.35, 0.2]), (2,): logs([share, 1 - share])}
        found = predictions(tree, curve.visits(tree, scores, rule), 1)
        assert found.met.sum() == 3
        assert closeness(tree, rule, scores, 1e-5).tolist() == [close]
    if not exits:
        shares = group_shares(tree, curve.visits(tree, scores, rule), 1)
        assert shares[0, 2] == pytest.approx(0.4 * 0.69)


def test_a_softmax_has_an_error_of_its_own():
    """Scores that are right to the last bit do not make float32's probabilities so."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 10)).astype(np.float32) * np.float32(8)
    apart = rows - rows.max(1, keepdims=True)
    shares = np.exp(apart - np.log(np.exp(apart).sum(1, keepdims=True))).max(1)
    scores = {ROOT: rows.astype(np.float64)}
    scores |= {n: np.zeros((len(rows), TREE.width(n))) for n in TREE.nodes[1:]}
    exact = np.exp(curve.log_softmax(scores[ROOT])).max(1)
    decided = 0
    for share in np.quantile(exact, np.linspace(0.1, 0.9, 40), method="nearest"):
        share *= 1 + 3e-8  # half of float32's last digit
        rule = Stopping({}, {"root": float(share)})
        differ = (shares < np.float32(share)) != (exact < share)
        close = closeness(TREE, rule, scores, 0.0)
        assert not (differ & ~close).any()
        decided += int(differ.sum())
    assert decided > 5  # or it would test nothing
