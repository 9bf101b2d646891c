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
    # the one that asks where our packages lie has their names in a list, and loads none of them
    paths = [path for path in ROOT.glob("*.py") if path.name != "trunk_sisters.py"]
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


def said_by(code):
    """The words that a program prints, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


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
    assert said_by(code) == []


def test_no_command_needs_an_optional_package_to_start():
    """`make demo` installs no extra: each command loads without what extras bring."""
    commands = [
        f"{package}.{file.stem}"
        for package in ("data", "trunk_jax", "trunk_torch_ref", "parity")
        for file in sorted((ROOT / package).glob("*.py"))
        if not file.stem.startswith("__")
    ]
    commands += ["trunk_jax.pictures.__main__", "parity.study.__main__", "parity.checks.checkpoint"]
    extras = (
        "onnx",
        "onnxruntime",
        "huggingface_hub",
        "tensorboard",
        "transformers",
        "beartype",
        "hypothesis",
        "datasets",
    )
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({extras}))\n"
        f"for name in {commands}: importlib.import_module(name)\n"
    )
    said_by(code)


# --- the house: no circle of imports, and none that runs back up

HOUSE = ("data", "trunk_jax", "trunk_torch_ref", "parity")


def imports_between(packages):
    """{module: the modules of these packages that it imports, wherever in the file}."""
    files = {name: path for package in packages for name, path in named(package)}
    found = {}
    for name, path in files.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {t if t in files else node.module for t in whole}
        found[name] = targets & files.keys() - {name}
    return found


def named(package):
    return zip(modules(package), sources(package), strict=True)


def room(module):
    """A module's folder: a package's commands are one room, each folder below it another."""
    parts = module.split(".")
    here = ROOT.joinpath(*parts)
    return module if here.is_dir() and len(parts) > 1 else ".".join(parts[:-1]) or module


def circles(graph):
    """The sets of two or more places that reach each other."""
    reach = {place: set(after) for place, after in graph.items()}
    for middle in reach:
        for after in reach.values():
            if middle in after:
                after |= reach[middle]
    return {frozenset(b for b in reach[a] if a in reach[b]) | {a} for a in reach if a in reach[a]}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {frozenset("abc")}


def test_no_circle_of_modules():
    assert circles(imports_between(HOUSE)) == set()


def test_no_circle_of_rooms_so_no_import_runs_back_up():
    graph = {}
    for module, targets in imports_between(HOUSE).items():
        graph.setdefault(room(module), set()).update(room(target) for target in targets)
    for place in graph:
        graph[place].discard(place)
    assert circles(graph) == set()


def test_the_files_at_the_top_of_a_package_are_its_commands():
    values = {"__init__", "__main__", "model", "framework"}
    for package in HOUSE:
        for path in (ROOT / package).glob("*.py"):
            command = "python -m " in path.read_text().partition("\n")[0]
            assert command or path.stem in values, path
