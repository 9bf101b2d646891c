"""The comparison: what is measured, and that nothing is made up."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.base import writing
from data.base.errors import UserError
from data.images import specs
from data.recipes import recipe
from data.recipes.baselines import architectures
from data.recipes.baselines import models as recipes
from data.recipes.baselines.architectures import MobileNetV2
from data.run import runfolder
from data.tree import hierarchy
from trunk_jax import compare, train
from trunk_jax.measure import comparison
from trunk_jax.measure.comparison import Row
from trunk_jax.pictures.comparison import _box as box_of
from trunk_jax.pictures.comparison import comparison_picture

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
    assert (row["group"], row["source"]) == ("baselines, untrained", "untrained")
    # stem 4x4 positions of 9*1*8; block: 4x4 of 9*8 and 8*8; last 4x4 of 8*16; head 16*10
    assert row["multiply_adds"] == 16 * (72 + 72 + 64 + 128) + 160
    assert row["latency"] > 0
    assert row["throughput"] > 0
    assert row["memory"] > 4 * row["parameters"]
    printed = capsys.readouterr()
    assert "costs alone" in printed.err
    assert "baselines, untrained\n  mobilenet_v2 " in printed.out
    with Image.open(tmp_path / "runs" / "compare" / "compare.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "an empty picture"


@pytest.mark.slow
def test_a_runs_accuracy_is_the_one_that_it_recorded(tmp_path):
    few = ["--epochs", "1", "--limit", "200", "--batch-size", "50"]
    train.main(["--model", "mobilenet_v2", "--recipe", "scratch", "--out", "runs/a", *few])
    summary = runfolder.read_json(tmp_path / "runs" / "a" / "summary.json")
    summary["accuracy"]["test"]["accuracy"] = 0.125
    writing.write_json(tmp_path / "runs" / "a" / "summary.json", summary)
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


def test_models_that_cannot_take_the_images_are_left_out_and_named(capsys):
    """vgg16 halves digits' 8 pixels five times; it ended in a ZeroDivisionError."""
    found = rows("--models", "mobilenet_v2,vgg16,convnext_base", "--size", "16")
    assert list(found) == ["mobilenet_v2"]
    said = capsys.readouterr().err
    assert "left out: --size 16: vgg16 takes 32 or more" in said
    assert "left out: --size 16: convnext_base takes 32 or more" in said
    with open("out.json") as file:
        assert len(json.load(file)["left_out"]) == 2
    good, left = compare.fitting(
        recipes.MODELS, specs.spec("digits"), None
    )  # all flags at their defaults
    assert set(good) & {"vgg16", "vgg16_pruned", "convnext_base"} == set()
    assert "vgg16 takes 32 or more pixels, and digits has 8; choose --size 32" in left


def test_nothing_that_fits_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nothing to compare.*vit_b_16 takes 224"):
        rows("--models", "vit_b_16", "--size", "32")
    assert not (tmp_path / "runs").exists()


def row(name, group, accuracy=0.9, cost=1e6, model="vgg"):
    return Row(name, group, model, f"runs/{name}", accuracy, None, cost / 1e6, 1.0, 1, cost, 1e3)


def test_runs_are_grouped_and_named(tmp_path):
    vgg = recipe.load("corrected", "digits", "vgg")
    grown = hierarchy.regroup(hierarchy.bare(10), (), ((0, 1), *((k,) for k in range(2, 10))))
    flat, alone = hierarchy.bare(10), recipe.load("efficient", "digits", "monolith")
    member = tmp_path / "ablation-digits" / "v0.2"
    writing.write_bytes(member.with_name("ablation.csv"), b"")
    told = [
        comparison.identity(tmp_path / "a", vgg, grown),
        comparison.identity(tmp_path / "b", vgg, flat),
        comparison.identity(tmp_path / "c", alone, flat),
        comparison.identity(member, recipe.override(vgg, volatility=0.2), grown),
    ]
    assert told == [
        ("vgg tree of 2 nodes", comparison.TREES),
        ("vgg, one node", comparison.MONOLITHS),
        ("monolith", comparison.MONOLITHS),
        ("vgg, volatility 0.2", "ablation digits"),
    ]
    twice = [row("x", "trees"), replace(row("x", "trees"), source="runs/y", multiply_adds=1)]
    assert [each.name for each in comparison.distinct(twice)] == ["x (y)", "x (x)"]


def test_no_label_lies_on_another():
    """18 of them did: each tree of an ablation had one."""
    near = [row(f"tree number {k}", comparison.TREES, 0.9 + k / 1e4, 1e6 + k) for k in range(8)]
    near += [row(f"v{k}", "ablation digits", 0.8 + k / 100, 1e6 * (1 + k / 9)) for k in range(10)]
    near += [row(f"model {k}", comparison.UNTRAINED, None, 1e7 + 1e4 * k) for k in range(6)]
    drawing = comparison_picture(near, "title")
    for axes in drawing.axes:
        names = [text for text in axes.texts if text.get_text()]
        words = [text.get_text() for text in names]
        assert len(words) == 8 + 1 + 6, "a label for each network, and one for the ablation"
        places = [box_of(text) for text in names]
        for a, b in itertools.combinations(places, 2):
            assert not a.overlaps(b)


def test_the_table_fits_and_has_a_heading_a_group(capsys):
    some = [row("t" * 30, comparison.TREES), row("m", comparison.MONOLITHS)]
    comparison.print_table("title", some)
    lines = capsys.readouterr().out.splitlines()
    assert comparison.TREES in lines
    assert max(map(len, lines)) <= 100
