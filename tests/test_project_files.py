"""The files around the code agree with each other."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def test_constraints_pin_each_dependency_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:  # extras of our own
            continue
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text
    assert pins["torch"] == "2.13.0"  # no "+cpu": that names a build which not every index has


def test_every_python_of_the_metadata_is_admitted_and_described():
    wanted = re.compile(r"Programming Language :: Python :: (\d\.\d+)")
    stated = [match[1] for each in PROJECT["classifiers"] if (match := wanted.fullmatch(each))]
    admitted, page = SpecifierSet(PROJECT["requires-python"]), ROOT / "docs" / "platforms.md"
    table = [line.split("|")[1:3] for line in page.read_text().splitlines() if "|" in line]
    assert len(stated) >= 3
    for version in stated:
        assert admitted.contains(version)
        assert any("Linux" in system and version in python for system, python in table), version
    major, minor = map(int, stated[-1].split("."))
    assert admitted.contains(f"{major}.{minor + 1}")  # nothing says that a newer one cannot be


def test_the_newest_versions_are_asked_for_by_names_that_an_index_has():
    """`make test-newest` installs the JAX side's packages, its extras' among them, one by one."""
    show = f"show:;@{sys.executable} -c $(JAX_SIDE)"
    said = subprocess.run(
        ["make", "--silent", "--eval", show, "show"], cwd=ROOT, capture_output=True, text=True
    )
    names = {Requirement(line).name for line in said.stdout.splitlines()}
    assert {"jax", "flax", "pytest", "onnxruntime", "datasets"} <= names, said.stderr
    assert not names & {PROJECT["name"], "torch", "transformers", "mypy", "ruff"}


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_the_licence_is_the_one_that_the_metadata_names():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "APPENDIX: How to apply" in text  # to the end


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readmes_commands_exist():
    """Its table has them without `python -m`; whole lines are tested where they are documented."""
    names = set(re.findall(r"`((?:data|parity|benchmarks|trunk_\w+)\.\w+)`", README))
    assert len(names) >= 20, "the pattern has gone stale"
    for name in names:
        assert importlib.util.find_spec(name), name


def test_where_to_find_what_is_true_and_complete():
    """Each place of docs/design.md's table is there, and each folder of code is one of them."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.split("## Where to find what", 1)[1].split("\n## ", 1)[0]
    frameworks = ("trunk_jax", "trunk_torch_ref")
    named = set()
    for cell in re.findall(r"^\|[^|]*\|(.*)\|$", table, re.MULTILINE):
        for place in re.findall(r"`([\w/]+/|[\w/]+\.py)`", cell):
            own = place.split("/")[0] in (*frameworks, "data", "parity", "benchmarks")
            named |= {place} if own else {f"{package}/{place}" for package in frameworks}
    assert len(named) > 60
    assert [place for place in sorted(named) if not (ROOT / place).exists()] == []
    covered = {part.rsplit("/", 1)[0] for part in named}
    folders = {
        str(file.parent.relative_to(ROOT))
        for package in (*frameworks, "data", "parity", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
    }
    assert sorted(folders - covered - {"data", "parity"}) == []  # these hold commands
