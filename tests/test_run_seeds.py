"""`train --seeds N`, and accuracy by class."""

import json

import numpy as np
import pytest

import trunk_torch_ref.train
from data.base.errors import UserError
from data.run import results, seeds
from data.tree import metrics

FLAGS = ["--backbone", "monolith", "--epochs", "1", "--limit", "100"]


def test_interval_is_students():
    """Of three values t(2) is 4.303: by hand from a table."""
    found = seeds.interval([0.90, 0.92, 0.91])
    half = 4.302653 * 0.01 / np.sqrt(3)
    np.testing.assert_allclose([*found.values()], [0.91, 0.91 - half, 0.91 + half], rtol=1e-6)


def test_an_interval_ends_where_nothing_can_be():
    value = {
        "dataset_title": "D",
        "backbone": "resnet",
        "recipe": "auto",
        "seeds": [0, 1],
        "values": {
            what: seeds.possible(what, seeds.interval(each)) | {"each": each}
            for what, each in {
                "test accuracy": [0.55, 0.8389],
                "nodes": [2, 3],
                "validation accuracy": [0.9, 0.901],
            }.items()
        },
    }
    found = value["values"]
    assert [found["test accuracy"][end] for end in ("low", "high")] == [0.0, 1.0]
    assert found["test accuracy"]["cut"] == ["low", "high"]
    assert (found["nodes"]["low"], found["nodes"]["cut"]) == (0.0, ["low"])
    assert found["nodes"]["high"] == pytest.approx(2.5 + 12.7062 * 0.5, rel=1e-4)
    assert found["validation accuracy"]["cut"] == []
    said = seeds.lines(value)
    assert any("100.00 % (cut)" in line and "55.00 %, 83.89 %" in line for line in said)
    assert said[-1].startswith("  cut: ")
    del found["test accuracy"], found["nodes"]
    assert "cut" not in "".join(seeds.lines(value))


def test_each_seed_is_a_run_and_all_make_a_summary(tmp_path, capsys):
    out = tmp_path / "all"
    words = [*FLAGS, "--seed", "3", "--seeds", "2", "--out", str(out)]
    trunk_torch_ref.train.main([*words, "--json", str(tmp_path / "j.json")])
    value = json.loads((out / "seeds.json").read_text())
    assert value == json.loads((tmp_path / "j.json").read_text())
    assert value["seeds"] == [3, 4]
    each = [results.read_summary(out / f"seed{seed}") for seed in (3, 4)]
    assert [run["seed"] for run in each] == [3, 4]
    expected = [run["accuracy"]["test"]["accuracy"] for run in each]
    assert value["values"]["test accuracy"]["each"] == expected
    assert value["values"]["test accuracy"]["mean"] == pytest.approx(np.mean(expected))
    said = capsys.readouterr().out
    assert "2 seeds (3 to 4)" in said
    assert "95 % from" in said
    alone = tmp_path / "alone"
    trunk_torch_ref.train.main([*FLAGS, "--seed", "4", "--out", str(alone)])
    same = (alone / "weights" / "root.safetensors").read_bytes()
    assert same == (out / "seed4" / "weights" / "root.safetensors").read_bytes()
    with pytest.raises(UserError, match="seed3 exists; add --resume"):
        trunk_torch_ref.train.main(words)
    trunk_torch_ref.train.main([*words, "--resume"])  # all are finished


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_folders_of_seeds_and_flags_that_do_not_fit(framework):
    found = seeds.runs(framework, ["--seeds", "3"])
    assert [str(each.out) for each in found] == [
        f"runs/digits-resnet-efficient-seeds0-2-{framework}/seed{seed}" for seed in range(3)
    ]
    assert [each.recipe.seed for each in found] == [0, 1, 2]
    assert len(seeds.runs(framework, [])) == 1
    with pytest.raises(UserError, match="must be 2 or more"):
        seeds.runs(framework, ["--seeds", "1"])


def test_recall_is_by_class_and_a_class_without_images_has_none():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    assert metrics.recall(labels, predicted, ("a", "b", "c")) == {
        "a": {"recall": 0.75, "correct": 3, "total": 4},
        "b": {"recall": 0.5, "correct": 1, "total": 2},
        "c": {"recall": None, "correct": 0, "total": 0},
    }
    assert metrics.accuracy(labels, predicted, balanced=True) == 0.625
    found = metrics.recall(labels, predicted, ("a", "b", "c"))
    assert results.weakest(found) == "least often right: b 50.00 %, a 75.00 %"
