"""The comparison: what is measured, and that nothing is made up."""

import json

import numpy as np
import pytest
from PIL import Image

from data.base.errors import UserError
from data.recipes.baselines import architectures
from data.recipes.baselines.architectures import MobileNetV2
from data.run import runfolder
from trunk_jax import compare, train
from trunk_jax.measure import comparison

TINY = MobileNetV2(rows=((1, 8, 1, 1),), stem=8, last=16)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(architectures.ARCHITECTURES, "mobilenet_v2", TINY)
    monkeypatch.chdir(tmp_path)


def rows(*flags):
    compare.main(["--dataset", "digits", "--images", "4", "--json", "out.json", *flags])
    with open("out.json") as file:
        return {row["name"]: row for row in json.load(file)["rows"]}


def test_a_baseline_without_a_run_has_costs_and_no_accuracy(tmp_path, capsys):
    row = rows("--models", "mobilenet_v2", "--size", "0")["mobilenet_v2"]
    assert row["accuracy"] is None
    assert (row["kind"], row["source"]) == ("baseline", "untrained")
    # stem 4x4 positions of 9*1*8; block: 4x4 of 9*8 and 8*8; last 4x4 of 8*16; head 16*10
    assert row["multiply_adds"] == 16 * (72 + 72 + 64 + 128) + 160
    assert row["latency"] > 0
    assert row["throughput"] > 0
    assert row["memory"] > 4 * row["parameters"]
    printed = capsys.readouterr()
    assert "costs alone" in printed.err
    assert "mobilenet_v2 (baseline)" in printed.out
    with Image.open(tmp_path / "runs" / "compare" / "compare.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "an empty picture"


def test_a_runs_accuracy_is_the_one_that_it_recorded(tmp_path):
    few = ["--epochs", "1", "--limit", "200", "--batch-size", "50"]
    train.main(["--model", "mobilenet_v2", "--recipe", "scratch", "--out", "runs/a", *few])
    summary = runfolder.read_json(tmp_path / "runs" / "a" / "summary.json")
    summary["accuracy"]["test"]["accuracy"] = 0.125
    runfolder.write_json(tmp_path / "runs" / "a" / "summary.json", summary)
    found = rows("--models", "mobilenet_v2")
    assert list(found) == ["mobilenet_v2"], "measured once, as it was trained"
    assert found["mobilenet_v2"]["accuracy"] == 0.125
    assert found["mobilenet_v2"]["source"] == "runs/a"


def test_published_numbers_are_looked_up_by_name():
    assert comparison.published("convnext_base", "svhn") == pytest.approx(0.9703)
    assert comparison.published("vgg", "cifar10") == pytest.approx(0.8153)
    assert comparison.published("resnet50_qat", "cifar10") is None, "the release has no such thing"


def test_nothing_to_compare_is_one_line():
    with pytest.raises(UserError, match="nothing to compare"):
        rows("--models", "none")
    with pytest.raises(UserError, match="no model 'vgg17'"):
        rows("--models", "vgg17")


def test_a_size_that_a_model_cannot_take_is_said_first(tmp_path):
    with pytest.raises(UserError, match="--size 32: vit_b_16 takes 224"):
        compare.main(["--dataset", "digits", "--size", "32", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
