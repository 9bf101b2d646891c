"""`python -m trunk_jax.metrics`: where images are lost, energy counters, and the command."""

import json

import numpy as np
import pytest

from data.base.errors import UserError
from data.run import runfolder
from data.tree import attrition, hierarchy
from data.tree.metrics import node_accuracy
from trunk_jax import metrics, train
from trunk_jax.measure import costs, energy, timing

# 0 and 3 alone; {1, 2, 4} below, {1, 4} below that
TREE = hierarchy.regroup(
    hierarchy.regroup(hierarchy.bare(5), (), ((0,), (1, 2, 4), (3,))), (1,), ((0, 2), (1,))
)


def test_the_tree_of_these_tests():
    assert TREE.paths == ((0,), (1, 0, 0), (1, 1), (2,), (1, 0, 1))


def test_each_error_is_lost_at_one_node_and_one_depth():
    labels = np.array([0, 0, 1, 1, 1, 2, 4, 4, 3, 1])
    guess = np.array([0, 1, 1, 4, 2, 2, 4, 0, 3, 1])  # wrong at: 1 root, 3 below, 4 middle, 7 root
    names = dict(TREE.names)
    lost = attrition.by_node(TREE, labels, guess)
    assert lost["root"] == {"reached": 10, "lost": 2, "lost_share": 0.2, "accuracy": 0.8}
    assert lost[names[(1,)]] == {"reached": 6, "lost": 1, "lost_share": 0.1, "accuracy": 5 / 6}
    assert (lost[names[(1, 0)]]["reached"], lost[names[(1, 0)]]["lost"]) == (4, 1)
    assert sum(row["lost"] for row in lost.values()) == int((labels != guess).sum())
    depths = attrition.by_depth(TREE, labels, guess)
    assert [row["decided"] for row in depths] == [10, 6, 4]
    assert [row["right"] for row in depths] == [8, 5, 3]
    assert [row["on_path"] for row in depths] == [0.8, 0.7, 0.6]
    assert depths[-1]["on_path"] == (labels == guess).mean()
    assert node_accuracy(TREE, labels, guess).keys() == lost.keys()


def test_traffic_and_paths():
    counts = attrition.traffic(TREE, np.array([0, 1, 1, 4, 2, 3]))
    assert counts[()] == 6
    assert counts[(1,)] == 4
    assert counts[(1, 0)] == 3
    assert counts[(1, 0, 1)] == 1
    assert counts[(2,)] == 1
    assert attrition.sequences(TREE) == {
        ((),): (0, 3),
        ((), (1,)): (2,),
        ((), (1,), (1, 0)): (1, 4),
    }


def test_extremes_weigh_the_mean_by_images():
    rows = [
        {"nodes": ["root"], "images": 1, "multiply_adds": 10, "parameters": 5},
        {"nodes": ["root", "sg1"], "images": 3, "multiply_adds": 30, "parameters": 9},
    ]
    found = costs.extremes(rows[::-1])
    assert found["shortest"] is rows[0]
    assert found["longest"] is rows[1]
    assert found["mean"] == {"multiply_adds": 25.0, "parameters": 8.0}


def zone(folder, name, value, span="262143328850"):
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(value)
    (folder / "max_energy_range_uj").write_text(span)


def test_rapl_counts_joules_a_package_and_survives_a_wrap(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", "5000000\n", "9000000")
    zone(tmp_path / "intel-rapl:0:0", "core", "1")
    found, reason = energy.counters("cpu", tmp_path)
    assert [counter.name for counter in found] == ["RAPL package-0"]
    assert reason == ""
    before = found[0].read()
    assert before == 5.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("8500000")
    assert found[0].since(before) == 3.5
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")  # past 9 J it starts anew
    assert found[0].since(before) == 5.0


def test_energy_that_cannot_be_had_has_a_reason(tmp_path):
    assert energy.counters("cpu", tmp_path) == (
        [],
        f"the machine shows no RAPL counters ({tmp_path} has none)",
    )
    zone(tmp_path / "intel-rapl:0", "package-0", "junk")
    found, reason = energy.rapl(tmp_path)
    assert not found
    assert "energy_uj cannot be read" in reason
    assert energy.counters("tpu")[1] == "no energy counter is known for tpu"


def test_joules_are_those_of_one_image(monkeypatch):
    monkeypatch.setattr(timing, "_ENERGY_SECONDS", 0.01)
    done = []
    counter = energy.Counter("meter", lambda: 2.0 * len(done))
    found = timing.joules(lambda: done.append(1) or 8, [counter])
    assert found == {"meter": 0.25}  # 2 J a call of 8 images; the first call is not counted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [
        "--backbone",
        "vgg",
        "--epochs",
        "2",
        "--limit",
        "300",
        "--batch-size",
        "32",
        "--volatility",
        "1.2",
    ]
    train.main([*flags, "--out", str(folder)])
    return folder


def test_the_command(finished, capsys, tmp_path):
    out = tmp_path / "result.json"
    metrics.main(
        [
            str(finished),
            "--repeats",
            "2",
            "--membership",
            "7",
            "--json",
            str(out),
            "--out",
            str(tmp_path / "made"),
        ]
    )
    shown, value = capsys.readouterr().out, json.loads(out.read_text())
    assert value == runfolder.read_json(tmp_path / "made" / "measurements.json")
    assert not (finished / "measurements.json").exists()
    assert max(map(len, shown.splitlines())) <= 100 + len(str(tmp_path)) * 2
    assert not any(line.endswith(" ") for line in shown.splitlines())
    titles = runfolder.read_tree(finished).titles(tuple("0123456789"))
    assert len(titles) > 1
    for title in titles.values():  # in the table of nodes, where there is room for it
        assert any(line.startswith(title) for line in shown.splitlines()), title
    summary = runfolder.read_json(finished / "summary.json")
    assert value["accuracy"] == summary["accuracy"]["test"]["accuracy"]
    for name in ("shortest", "longest", "mean"):
        for key in ("parameters", "multiply_adds"):
            assert value[name][key] == pytest.approx(summary["paths"][name][key], rel=1e-12)
    assert sum(row["images"] for row in value["paths"]) == value["images"]
    assert all(row["latency_ms"] > 0 and row["images_per_second"] > 0 for row in value["paths"])
    root = value["root"]
    assert np.allclose(np.sum(root["untrained"], 1), 1, atol=1e-6)
    assert np.allclose(np.sum(root["trained"], 1), 1, atol=1e-6)
    # an untrained network tells nothing apart; two epochs on the diagonal stands out
    assert np.trace(root["untrained"]) < 0.3 * 10
    assert np.trace(root["trained"]) > np.trace(root["untrained"])
    assert (tmp_path / "made" / "figures" / "asl-root.png").stat().st_size > 10_000
    assert "energy: " in shown
    assert "on images of 7, at the root" in shown
    assert "1e6 bytes" in shown


def test_wrong_flags(finished, tmp_path):
    for arguments, text in (
        ([str(tmp_path)], "no run folder"),
        ([str(finished), "--repeats", "-1"], "--repeats is -1"),
        ([str(finished), "--membership", "dog"], "no class 'dog'; the classes: 0, 1"),
        ([str(finished), "--membership", "10"], "no class '10'"),
    ):
        with pytest.raises(UserError, match=text):
            metrics.main(arguments)
