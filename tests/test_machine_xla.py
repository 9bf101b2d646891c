"""XLA's flags and log level, set before JAX loads; compiled programs kept between processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.base import writing
from data.base.errors import UserError
from data.run import runfolder
from data.run.options import train_options
from trunk_jax.layers import forms
from trunk_jax.layers.conv import general
from trunk_jax.layers.norm import normalise
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
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
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
    """No cache of JAX's, whatever a test before set; none afterwards."""
    jax.config.update("jax_compilation_cache_dir", None)
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


def test_train_sets_flags_before_it_loads_jax(tmp_path):
    code = (
        "import os, sys\n"
        "sys.modules['jax'] = None\n"
        "from trunk_jax.train import main\n"
        "try: main(['--deterministic', '--out', sys.argv[1]])\n"
        "except ImportError: print(os.environ['XLA_FLAGS'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        check=False,
    )
    assert done.stdout.strip() == "--xla_gpu_deterministic_ops=true", done.stderr


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_deterministic_is_recorded_kept_on_resuming_and_off_where_it_was_not_asked_for(
    tmp_path, framework
):
    words = ["--out", str(tmp_path)]
    assert train_options(framework, words).flags["deterministic"] is False
    options = train_options(framework, [*words, "--deterministic"])
    assert options.flags["deterministic"] is True
    config = {"format": runfolder.FORMAT, "flags": options.flags}
    writing.write_json(tmp_path / "config.json", config)
    resumed = train_options(framework, [*words, "--resume"])
    assert resumed.deterministic
    assert resumed.flags == options.flags


def test_other_forms_of_a_convolution_and_of_moments_give_the_same_values():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1, 2, (4, 6, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(0, 1, (3, 3, 3, 5)), jnp.float32)
    scale, bias = jnp.asarray(rng.normal(1, 0.1, (2, 3)), jnp.float32)

    def both(x, kernel):
        y, mean, var, _ = normalise(x, scale, bias, 1e-5, None)
        return (general(y, kernel, 1, 1) ** 2).sum(), (mean, var)

    def traced(form):
        with forms.using(form):
            return jax.value_and_grad(lambda *a: both(*a), (0, 1), has_aux=True)(x, kernel)

    plain, others = traced(forms.PLAIN), traced(forms.Forms(channels=8, one_pass=True))
    # float32, sums of 144 values and of 27 products: a few units of 6e-8 of the largest
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(others), strict=True):
        assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
    with forms.using(forms.Forms(channels=8)):
        text = str(jax.make_jaxpr(lambda: general(x, kernel, 1, 1))())
    assert "f32[3,3,8,5]" in text
    assert "f32[3,3,8,5]" not in str(jax.make_jaxpr(lambda: general(x, kernel, 1, 1))())
