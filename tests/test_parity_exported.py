"""The third runtime in the proof: onnxruntime passes, and faults planted in the file are caught."""

import functools
from dataclasses import replace

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import random_trees

from data.base.errors import UserError
from data.run import runfolder
from parity import check
from parity.checks.exported import check_exported
from parity.checks.exported_nodes import check_node
from parity.pairs.families import FAMILIES
from trunk_jax.interchange import exits, layers, onnx_model
from trunk_jax.interchange.trained import of_run
from trunk_torch_ref.inference import load

# Where the scores are far off every image is too close to call, and the error itself is caught.
CAUGHT_BY = {
    "children": {"predictions"},
    "normalisation": {"error of scores", "normalised pixels"},
    "epsilon": {"error of scores"},
    "fold": {"error of scores"},
    "order": {"predictions"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run by backbone, written when it is asked for."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda name: random_trees.write_run(folder / name, name))


def subject_of(run):
    """What is exported of a run, and the same networks in PyTorch."""
    return of_run(run), load.load(run)


@pytest.fixture(scope="module")
def vgg(runs):
    return subject_of(runs("vgg"))


def checks_of(subject, count=96):
    trained, theirs = subject
    model = onnx_model.whole_model(trained, onnx_model.node_models(trained))
    test = random_trees.test_images()
    return check_exported("digits", theirs, model, test.images[:count], test.labels[:count])


# tests/test_interchange_onnx.py has both backbones' decisions
@pytest.mark.parametrize("backbone", ["vgg", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_the_third_runtime_is_within_rounding_of_the_truth(runs, backbone):
    checks = checks_of(subject_of(runs(backbone)))
    assert [c.what.split(",")[0] for c in checks] == [
        "predictions",
        "paths",
        "error of scores",
        "normalised pixels",
        "probabilities",
    ]
    assert all(check.passed for check in checks), checks
    assert 0 < checks[2].share < 4  # an error was measured, and it is within the model
    assert "0 of 96 images are closer" in checks[0].detail


@pytest.mark.slow  # tests/test_interchange_onnx.py refuses a file that stops elsewhere
def test_a_tree_with_exits_and_a_rule_that_the_file_does_not_follow(tmp_path, monkeypatch):
    subject = subject_of(random_trees.write_run(tmp_path / "run", "resnet", exits=True))
    checks = checks_of(subject)
    assert all(check.passed for check in checks), checks
    real = exits.at_node

    def later(tree, rule, *rest):
        share = min(1.0, 1.03 * rule.threshold("root"))
        return real(tree, replace(rule, thresholds={"root": share}), *rest)

    monkeypatch.setattr(exits, "at_node", later)
    failed = {check.what.split(",")[0] for check in checks_of(subject) if not check.passed}
    assert failed >= {"paths", "probabilities"}


@pytest.mark.parametrize("fault", random_trees.FAULTS)
def test_a_fault_planted_in_the_file_is_caught(vgg, monkeypatch, fault):
    random_trees.plant(monkeypatch, fault)
    failed = {check.what.split(",")[0] for check in checks_of(vgg) if not check.passed}
    assert failed >= CAUGHT_BY[fault]


@pytest.mark.parametrize("name", ["digits vgg root", "digits mobilenet sg1", "digits resnet root"])
def test_each_kind_of_node(name, monkeypatch):
    family = next(family for family in FAMILIES if family.name == name)
    checks = check_node(family, 0)
    assert [check.what for check in checks] == ["features, onnxruntime", "scores, onnxruntime"]
    assert all(check.passed for check in checks), checks
    real = layers.gain_and_shift

    def unfolded(norm):
        gain, shift = real(norm)
        return np.ones_like(gain), shift * 0

    monkeypatch.setattr(layers, "gain_and_shift", unfolded)
    assert not any(check.passed for check in check_node(family, 0))


def test_the_command(runs, tmp_path, capsys):
    run = runs("vgg")
    words = ["--checkpoint", str(run), "--runtime", "onnxruntime", "--jobs", "1"]
    assert check.main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = runfolder.read_json(tmp_path / "out" / "report.json")["checks"]
    found = {row["what"]: row for row in rows if "onnxruntime" in row["what"]}
    assert len(found) == 6
    right = runfolder.read_json(run / "summary.json")["accuracy"]["test"]["correct"]
    assert f"right: {right};" in found["predictions, onnxruntime against truth"]["detail"]
    small = found["predictions, onnxruntime in int8"]
    assert small["detail"].startswith(f"right: float32 {right}, int8 ")
    assert small["detail"].endswith(" of 359")
    with pytest.raises(UserError, match="--runtime goes with --checkpoint, or alone"):
        check.main(["--runtime", "onnxruntime", "--self-test"])
