"""Who may import whom: the two frameworks never meet outside parity, tests and benchmarks."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "trunk_jax"}
TORCH = {"torch", "torchvision", "torchaudio", "timm", "transformers", "trunk_torch_ref"}
TENSORFLOW = {"tensorflow", "keras"}
FORBIDDEN = {
    "data": JAX | TORCH | TENSORFLOW | {"parity"},
    "trunk_jax": TORCH | TENSORFLOW | {"parity"},
    "trunk_torch_ref": JAX | TENSORFLOW | {"parity"},
}
BOTH = {"parity", "tests", "benchmarks"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(source):
    """The top-level names of all modules that a source imports, wherever and however."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides what is imported"
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__", "find_spec"):
                name = node.args[0]
                assert isinstance(name, ast.Constant), "an import by a name made at run time"
                yield name.value.split(".")[0]


def test_imports_are_found_wherever_they_are():
    source = """
import a.b, c as d
from e.f import g
def function():
    import h
    if True:
        from i import j
    importlib.import_module("k.l")
    __import__("m")
"""
    assert set(imported(source)) == {"a", "c", "e", "h", "i", "k", "m"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_no_framework_but_its_own(package):
    assert sources(package), "the package has moved"
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources(package)
        if (found := set(imported(path.read_text())) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_only_parity_tests_and_benchmarks_import_both():
    folders = (path for path in ROOT.iterdir() if path.is_dir() and path.name not in BOTH)
    paths = list(ROOT.glob("*.py"))
    for folder in folders:
        if not folder.name.startswith(".") and folder.name not in ("build", "dist", "runs"):
            paths += sources(folder)
    assert ROOT / "data" / "base" / "errors.py" in paths
    for path in paths:
        names = set(imported(path.read_text()))
        assert not (names & JAX and names & TORCH), path


def modules(package):
    for path in sources(package):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("data", ("jax", "flax", "torch", "tensorflow")),
        ("trunk_jax", ("torch", "trunk_torch_ref", "tensorflow")),
        ("trunk_torch_ref", ("jax", "flax", "optax", "orbax", "chex", "trunk_jax", "tensorflow")),
    ],
)
def test_nothing_loads_the_other_framework_by_a_detour(package, absent):
    """What the dependencies import on their own shows only when they are loaded."""
    code = (
        "import importlib, sys\n"
        f"for name in {list(modules(package))}: importlib.import_module(name)\n"
        f"print(*[name for name in {absent} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
