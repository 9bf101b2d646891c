"""One way to make tables: 100 columns, numbers whole, no trailing blanks; and who makes them."""

import ast
import json
import re
from pathlib import Path

import pytest

from data.base import tables

ROOT = Path(__file__).parents[1]
LONG = "a path > with {many names of classes} > and another {of them}, and more to say of it"


def test_text_is_folded_and_numbers_are_not():
    columns = ["path", *[f"multiply-adds number {k}" for k in range(5)]]
    text = tables.text(columns, [[LONG, *["1,234,567.891"] * 5]], title="[digits] :smile:")
    lines = text.splitlines()
    assert lines[0] == "[digits] :smile:", "neither markup nor emoji"
    assert max(map(len, lines)) <= tables.WIDTH
    assert text.count("1,234,567.891") == 5
    assert not any(line.endswith(" ") for line in lines)
    found = " ".join(line[:16].strip() for line in lines)
    assert "a path > with" in found


def test_numbers_are_whole_even_where_there_is_no_room():
    text = tables.text(["a", "b"], [["x", "1" * 120]])
    assert "1" * 120 in text


def test_a_long_word_is_folded_at_its_dots_and_underscores():
    """It was cut anywhere: `features.1.running_mea`, `n`."""
    name = "gradient of features.1.running_mean"
    assert tables.folded(name, 20) == ["gradient of", "features.1.running_", "mean"]
    assert tables.folded(f"  {name}", 34) == ["  gradient of", "features.1.running_mean"]
    assert tables.folded("features.10", 22) == ["features.10"]
    assert tables.folded("a/" + "b" * 12, 5) == ["a/bbb", "bbbbb", "bbbb"]
    assert tables.folded("", 5) == [""]
    assert tables.folded("\u6f22\u5b57_\u6f22\u5b57", 5) == ["\u6f22\u5b57_", "\u6f22\u5b57"]
    columns = ["what", *[f"multiply-adds {k}" for k in range(5)]]
    lines = tables.text(columns, [[name, *["1,234,567.89"] * 5]], width=86).splitlines()
    found = [line[:14].strip() for line in lines]
    assert found[-3:] == ["gradient of", "features.1.", "running_mean"]


def test_a_heading_is_not_folded():
    text = tables.text(["a", "b"], ["h" * 90, ["x", "1"], "next", ["y", "2"]])
    assert text.splitlines()[1:] == ["h" * 90, "x  1", "next", "y  2"]


def test_markdown_escapes_bars():
    assert tables.markdown(["a", "b"], [["1|2", "3"]], right=[1]) == (
        "| a | b |\n|---|--:|\n| 1\\|2 | 3 |"
    )
    assert tables.markdown(["", ""], [["x", "y"]]) == "| | |\n|---|---|\n| x | y |"


def test_what_goes_into_a_pipe_has_no_trailing_blanks(capsys):
    tables.print_table("title", ["a", "b"], [["x", "1"], ["longer", "2"]])
    out = capsys.readouterr().out
    assert out.endswith("\n\n")
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_the_parity_table_fits(capsys):
    """It had 166 columns."""
    from parity.checks import report
    from parity.checks.tolerance import Check

    checks = [
        Check(
            "published cifar10 vgg others group, the release's faults on",
            f"features.{k}." * 6,
            "float32",
            1.23e-7,
            4.5e-8,
            "2e-07 of scale, ratio 4",
            k > 0,
            "error of JAX / of PyTorch 1.02; PyTorch 17 u: a sum that cancels in its kernel",
            0.7,
            part="gradients of all parameters and the input" if k > 1 else "",
        )
        for k in range(4)
    ]
    report.print_table(checks)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    assert "4.5e-08" in "\n".join(lines)
    assert sum("FAILED" in line for line in lines) == 1
    assert checks[0].name in lines


STUDIES = sorted((ROOT / "docs" / "studies").glob("*/study.json"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.parent.name)
def test_what_a_study_prints_fits_and_is_plain(file, capsys):
    """Its tables had up to 119 columns, its sentences as many as they liked, and Markdown's **."""
    from parity.study import command, report

    value = json.loads(file.read_text())
    command.say(value, Path("out"))
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > tables.WIDTH] == []
    assert "**" not in out
    assert re.findall(r"(?<![\d.,])1 (?:\w+ )?(?:epoch|point|step|run|stage|unit)s\b", out) == []
    assert value["dataset"] in out
    flat = " ".join(out.split())
    for section in report.sections(value):
        for line in section["lines"]:
            assert line.replace("**", "") in flat, "no word is lost or broken"
        for table in section["tables"]:
            assert table.title in flat
    pictures = [picture.stem for picture in file.parent.glob("*.svg")]
    assert file.with_name("summary.md").read_text() == report.markdown(value, pictures)


def test_studies_are_at_hand():
    assert len(STUDIES) >= 9


def test_no_module_but_one_writes_a_table_of_markdown():
    """By hand a bar in a cell is easily forgotten."""
    packages = ("data", "trunk_jax", "trunk_torch_ref", "parity", "benchmarks")
    writers = {
        file.relative_to(ROOT).as_posix()
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        # of a table in a module's docstring there are several lines
        if node.value == " | " or ("---|" in node.value and "\n" not in node.value)
    }
    assert writers == {"data/base/tables.py"}


@pytest.mark.parametrize("banned", ["rich.table", "jinja2"])
def test_there_is_one_way_to_make_tables_and_one_to_make_pages(banned):
    home = {"rich.table": "data/base/tables.py", "jinja2": "data/base/pages.py"}[banned]
    packages = ("data", "trunk_jax", "trunk_torch_ref", "parity", "benchmarks")
    users = {
        file.relative_to(ROOT).as_posix()
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == banned
    }
    assert users == {home}
