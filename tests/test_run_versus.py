"""Two runs compared on the same test images."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import table, versus
from data.base.errors import UserError
from data.inference import stopping
from data.inference.stopping import Stopping
from data.run import card, results

SHIPPED = Path(__file__).parents[1] / "checkpoints"
TREE, MONOLITH = SHIPPED / "svhn-efficient", SHIPPED / "svhn-efficient-monolith"


def test_mcnemar_is_the_binomial_sum_and_the_interval_that_of_a_mean():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.9, rng.random(500) < 0.85
    found = versus.mcnemar(a, b)
    only_a, only_b = found["only_a"], found["only_b"]
    assert only_a - only_b == a.sum() - b.sum() > 0
    tail = sum(math.comb(only_a + only_b, k) for k in range(only_b + 1))
    # two-sided, and the distribution is symmetric
    np.testing.assert_allclose(found["p"], 2 * tail / 2 ** (only_a + only_b), rtol=1e-12)
    apart = a.astype(float) - b
    half = 1.959963984540054 * apart.std() / math.sqrt(500)
    expected = [apart.mean() - half, apart.mean() + half]
    np.testing.assert_allclose(found["interval"], expected, rtol=1e-12)
    assert found["difference"] == pytest.approx(apart.mean(), rel=1e-12)
    assert versus.mcnemar(a, a) == {
        "only_a": 0,
        "only_b": 0,
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
    }


def test_the_command_agrees_with_what_the_runs_say(tmp_path, capsys):
    versus.main([str(TREE), str(MONOLITH), "--json", str(tmp_path / "out.json")])
    value = json.loads((tmp_path / "out.json").read_text())
    for run, folder in zip(value["runs"], (TREE, MONOLITH), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        assert run["correct"] == summary["accuracy"]["test"]["correct"]
        assert value["images"] == summary["accuracy"]["test"]["total"]
    first, second = (run["correct"] for run in value["runs"])
    assert first - second == value["only_a"] - value["only_b"]
    said = capsys.readouterr().out
    assert f"{value['only_a']:,}, in B alone {value['only_b']:,}" in said
    assert f"p = {value['p']:.2g}" in said


def test_what_early_stopping_gave_takes_the_place_of_the_summary(tmp_path):
    other = Path(shutil.copytree(MONOLITH, tmp_path / "other"))
    plain = results.standing(other, results.read_summary(other))
    assert not plain["stopped"]
    stopping.write(other, Stopping(second=0.25), {})
    results.write_stopped(
        other,
        "test",
        {
            "accuracy": 0.5,
            "correct": 3,
            "total": 6,
            "multiply_adds": 2e6,
            "parameters": 5.0,
            "last": {"root": 1.0},
        },
    )
    found = results.standing(other, results.read_summary(other))
    assert found == {
        "correct": 3,
        "total": 6,
        "multiply_adds": 2e6,
        "parameters": 5.0,
        "stopped": True,
    }
    assert "3 of 6 | 2.0 M" in table.table([other])
    assert "**50.00 %**, 3 of 6, at a mean of 2.0 M" in card.card(other, other)
    assert versus.compare(TREE, other)["runs"][1]["mean_multiply_adds"] == 2e6
    results.write_stopped(other, "test", None)
    assert results.standing(other, results.read_summary(other)) == plain


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(UserError, match="different datasets"):
        versus.compare(TREE, SHIPPED / "cifar10-efficient")
    other = Path(shutil.copytree(MONOLITH, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    _write(other / "config.json", config | {"dataset_sha256": "of other pixels"})
    with pytest.raises(UserError, match="other test images"):
        versus.compare(TREE, other)
    _write(other / "config.json", config)
    versus.compare(TREE, other)
    file = other / "predictions-test.csv"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(UserError, match="other test images"):
        versus.compare(TREE, other)
    file.write_text("nothing\n")
    with pytest.raises(UserError, match="does not hold predictions"):
        versus.compare(TREE, other)
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        versus.compare(TREE, other)


def _write(file, value):
    file.write_text(json.dumps(value))


def test_the_table_ends_with_what_parity_found(tmp_path, capsys):
    """How many images are answered alike is what `parity.check` counted, not what it says."""
    what = "predictions, JAX against PyTorch"
    rows = [
        {"what": "weights of root", "passed": True, "max_abs": 0, "detail": "44 tensors"},
        {"what": what, "passed": False, "max_abs": 4, "detail": "equal: 9 of 9"},
    ]
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"passed": False, "checks": rows}))
    table.main([str(TREE), "--parity", f"{TREE}={file}"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "| PyTorch beside JAX: svhn-efficient | 1 of 2 checks passed |" in last
    assert "| 6,005 of 6,009 predictions equal |" in last
    for wrong in (
        {"passed": True, "checks": rows[:1]},
        {"passed": True, "checks": [rows[1] | {"max_abs": 6010}]},
        {"passed": True, "checks": [{"what": what}]},
        [],
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"is not what `parity.check --checkpoint"):
            table.table([TREE], None, [f"{TREE}={file}"])
    with pytest.raises(UserError, match="as RUN=FILE"):
        table.table([TREE], None, [str(TREE)])
