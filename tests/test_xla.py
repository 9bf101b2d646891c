"""XLA's flags and log level, set before JAX loads; compiled programs kept between processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from data.base.errors import UserError
from data.run.options import train_options
from trunk_jax.machine import compile_cache, xla

ROOT = Path(__file__).parents[1]
# what the modules below would read when JAX loads, and whether it has been
SHOW = "import os, sys; print(os.environ['TF_CPP_MIN_LOG_LEVEL'], 'jax' in sys.modules)"


@pytest.mark.parametrize("package", ["trunk_jax", "parity", "benchmarks"])
@pytest.mark.parametrize(("user", "level"), [(None, "3"), ("0", "0")])
def test_the_log_level_is_set_before_jax_loads_but_never_over_the_users_own(package, user, level):
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if user is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = user
    code = f"import {package}; {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout.split() == [level, "False"], done.stderr


def test_flags_come_after_the_users_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=1")
    xla.set_flags("")
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=1"
    xla.set_flags(xla.flags(deterministic=True, autotune=0))
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_gpu_autotune_level=1",
        "--xla_gpu_deterministic_ops=true",
        "--xla_gpu_autotune_level=0",
    ]
    monkeypatch.delenv("XLA_FLAGS")
    xla.set_flags(xla.flags(autotune=4))
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=4"


def test_deterministic_and_autotune_are_not_asked_for_together():
    with pytest.raises(UserError, match="--autotune is of no use with --deterministic"):
        train_options("jax", ["--deterministic", "--autotune", "2"])
    with pytest.raises(UserError, match="--autotune"):
        train_options("jax", ["--autotune", "5"])
    with pytest.raises(UserError, match="--autotune"):
        train_options("torch", ["--autotune", "1"])


@pytest.fixture
def unkept():
    """JAX's settings of its cache put back afterwards."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def test_programs_are_kept_on_accelerators_in_our_cache_and_not_on_cpus(
    tmp_path, monkeypatch, unkept
):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compile_cache.use()  # tests run on a CPU
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    compile_cache.use("gpu")
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compile_cache.use("gpu")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
