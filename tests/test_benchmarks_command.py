"""The benchmark command without its clocks: rows, bars, and files that are gone on with."""

import json
from pathlib import Path

import pytest

from benchmarks import reading, run
from benchmarks.cases import FORMS, PAIRS, Case, cases, recipe_of, tree_of
from data.base import machine
from data.base.errors import UserError

CASE = Case("step", "svhn", "mobilenet", FORMS, 0.9)


def answers(seconds):
    """A side that takes the given seconds in turn, and has 2e6 multiply-adds at a peak of 1e9."""

    def ask(request, *more):
        if isinstance(request, str):
            return {"multiply_adds": 2_000_000, "peak": 1e9, "platform": "cpu"}.get(request)
        value = seconds[more[0]].pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    return ask


def test_a_row_has_medians_and_the_best_form_counts(tmp_path):
    theirs = {
        "eager": [0.4, 0.1, 0.3],
        "channels_last": [1.0, 1.0, 1.0],
        "compile": [0.2, 0.25, 9.0],
    }
    row = run.measure(CASE, answers({"ours": [0.1, 0.9, 0.2]}), answers(theirs), 3, tmp_path)
    assert (row["ours_s"], row["theirs_s"], row["best"]) == (0.2, 0.25, "compile")
    assert row["ratio"] == pytest.approx(0.8)
    assert not run.missed(row)
    assert run.missed(row | {"ratio": 0.91})
    run.share([row, {"name": "other", "peak": 2e9}])
    assert row["share_of_peak"] == pytest.approx(3 * 2e6 / 0.2 / 2e9)


def test_a_form_that_does_not_run_is_left_out_and_named(tmp_path):
    theirs = {"eager": [0.4], "channels_last": [0.5], "compile": [RuntimeError("no compiler")]}
    row = run.measure(CASE, answers({"ours": [0.2]}), answers(theirs), 1, tmp_path)
    assert row["best"] == "eager"
    assert row["failed"] == {"compile": "no compiler"}


def test_every_case_has_a_recipe_a_name_of_its_own_and_a_node_to_time():
    for accelerator in (False, True):
        every = cases(accelerator)
        assert len({case.name for case in every}) == len(every)
        assert {(case.dataset, case.backbone) for case in every} == set(PAIRS)
        for case in every:
            assert recipe_of(case).backbone == case.backbone
            if case.kind in ("epoch", "deep"):
                deep = 2 if case.kind == "deep" else 1
                assert max(len(node) for node in tree_of(case).nodes) == deep
    assert [case.kind for case in every if case.limit_s] == ["grow"]
    assert [case.bar for case in every if case.theirs == ("compile",)] == [0.7] * len(PAIRS)


def test_rows_go_on_in_the_file_but_not_on_another_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.worker, "start", lambda name, folder: lambda *request: "cpu")
    measured = []

    def measure(case, *_):
        measured.append(case.name)
        return {
            "name": case.name,
            "ours_s": 0.1,
            "theirs_s": 0.2,
            "ratio": 0.5,
            "bar": case.bar,
            "best": "eager",
        }

    monkeypatch.setattr(run, "measure", measure)
    file, table = tmp_path / "cpu.json", tmp_path / "cpu.md"
    flags = ["--json", str(file), "--table", str(table)]
    run.main(["--only", "svhn vgg", *flags])
    assert len(measured) == 3
    run.main(["--only", "vgg", "--missing", *flags])
    assert len(measured) == len(set(measured)) == 14
    rows = json.loads(file.read_text())["rows"]
    order = [case.name for case in cases()]
    assert [row["name"] for row in rows] == [name for name in order if name in measured]
    assert table.read_text().count("\n| ") == 1 + len(rows)
    monkeypatch.setattr(machine, "processor", lambda: "another")
    with pytest.raises(UserError, match="another processor"):
        run.main(["--only", "svhn vgg", *flags])
    with pytest.raises(UserError, match="no case"):
        run.main(["--only", "mnist vgg on Mars"])
    with pytest.raises(UserError, match="--missing needs"):
        run.main(["--missing"])


@pytest.mark.slow
def test_reading_counts_images_of_both_ways_in_both_frameworks(tmp_path, monkeypatch, capsys):
    """256 images in a median of 4 s: 64 a second."""
    monkeypatch.setattr(reading, "_seconds", lambda *_: [2.0, 4.0, 6.0])
    words = ["--images", "256", "--size", "16", "--budget", "300e3", "--folder", str(tmp_path)]
    reading.main([*words, "--json", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["bytes"] == 256 * 16 * 16 * 3
    assert found["rates"] == {key: {"memory": 64.0, "disk": 64.0} for key in ("JAX", "PyTorch")}
    assert "256 images of 16x16" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(UserError, match="--images must be 256 or more"):
        reading.main(["--images", "255"])


def test_the_table_of_switches_is_what_was_measured():
    """docs/speed.md against benchmarks/sweep-cpu.json; a variant without a row crashed."""
    root = Path(__file__).parents[1]
    measured = json.loads((root / "benchmarks" / "sweep-cpu.json").read_text())["results"]
    found = {}
    for each in measured:
        (row,) = each["rows"]
        key = (each["variant"], each["pair"])
        found.setdefault(key, []).append((each["turn"], f"{1e6 * row['seconds']:,.0f}"))
    text = (root / "docs" / "speed.md").read_text().split("<!-- sweep -->")[1].split("<!--")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]
    pairs = ("cifar10-vgg", "svhn-vgg", "emnist-vgg")
    assert {row[0].strip("`") for row in rows[2:]} == {variant for variant, _ in found}
    for variant, *cells in rows[2:]:
        for pair, cell in zip(pairs, cells, strict=True):
            turns = sorted(found.get((variant.strip("`"), pair), []))
            assert cell == (" and ".join(value for _, value in turns) or "crashes"), (variant, pair)
