"""What all tests share."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# Shapes and types that annotations state are checked at each call of the first, in tests; of the
# others shapes and types of arrays alone, for tests put stand-ins in the place of other values.
CHECKED = ("trunk_jax.layers", "trunk_jax.nodes", "trunk_torch_ref.nodes")
ARRAYS_CHECKED = ("data.images", "data.inference", "data.tree")
install_import_hook(CHECKED, "typechecked.check")
install_import_hook(ARRAYS_CHECKED, "typechecked.check_arrays")

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine and in every run, however slow the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None)
# The same, but a failing example is not made smaller: mutation testing only asks whether one fails.
settings.register_profile(
    "mutation", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


_NEEDS_TORCH = {"torch", "transformers", "trunk_torch_ref", "parity", "benchmarks"}


def _names(file):
    """The packages that a file names in imports, wherever they stand, and in commands."""
    text = file.read_text(encoding="utf-8")
    found = set(re.findall(r"^ *(?:from|import) (\w+)", text, re.MULTILINE))
    return found | set(re.findall(r"\b(trunk_torch_ref|parity|torch)\b(?=[.\"'])", text))


# `make test-newest` has no PyTorch: what does not need it is tested.
if importlib.util.find_spec("torch") is None:
    collect_ignore = [
        file.name for file in Path(__file__).parent.glob("test_*.py") if _names(file) & _NEEDS_TORCH
    ]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded datasets go to a folder of the test session, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        if "TRUNK_CACHE_DIR" not in os.environ:
            patch.setenv("TRUNK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_step_is_long():
    """What a test sees on standard error does not depend on how quick the machine is."""
    from data.base import progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_STEP_S", 3600.0)
        yield


@pytest.fixture(autouse=True)
def _precision():
    """The checks ask for exact products in the whole process: of a run that is a setting."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_default_matmul_precision is not None:
        jax.config.update("jax_default_matmul_precision", None)


def pytest_addoption(parser):
    """What `make test` asks for, so that its tests spend less on compiling."""
    parser.addoption(
        "--quick-compile",
        action="store_true",
        help="compile without what takes XLA's and LLVM's optimisers long; commands in processes "
        "of their own compile as a user's do",
    )


@pytest.fixture(scope="session", autouse=True)
def _compiling(request):
    """Of what the tests compile in this process; see `--quick-compile`."""
    if not request.config.getoption("--quick-compile"):
        yield
        return
    import jax

    from trunk_jax.machine import settings

    # the commands would switch it off, and a run that a process goes on with would tell of it
    name, now = "jax_disable_most_optimizations", settings._now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_now", lambda which, *more: which != name and now(which, *more))
        jax.config.update(name, True)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published files and prepared datasets beside the repository."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared")
    return folder


def fixed_groups(asl, *_):
    """In place of `grouping.group`: a tree of two levels, however little it was trained."""
    if len(asl) == 10:
        return ((0, 6), (1,), (2, 3, 5), (4,), (7,), (8, 9))
    return tuple((index,) for index in range(len(asl)))


def by_name(tree):
    """The paths of all nodes and named leaves."""
    return {name: path for path, name in tree.names.items()}


def group_paths(tree, node):
    """The groups of local class indices that `node`'s outputs stand for."""
    labels = tree.members(node)
    outputs = {}
    for index, label in enumerate(labels):
        outputs.setdefault(tree.paths[label][len(node)], []).append(index)
    return tuple(tuple(outputs[output]) for output in sorted(outputs))
