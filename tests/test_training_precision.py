"""Training steps in bfloat16: near to float32's, with parameters and statistics in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_fit import RECIPE, SHORT, one_step

from data.base.errors import UserError
from data.recipes import recipe
from data.run import options, runfolder
from trunk_jax import nodes, train
from trunk_jax.layers.basic import BatchNorm, LogSoftmax, Mode
from trunk_jax.network.exchange import to_state_dict
from trunk_jax.network.network import split
from trunk_jax.training import fit


def test_a_step_in_bfloat16_is_near_to_one_in_float32():
    rng = np.random.default_rng(0)  # SVHN's root has no dropout
    network = split(nodes.build("svhn", "vgg", "root", (8, 8, 1), 4, rng=rng))
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 1)).astype(np.float32)
    targets = np.arange(16) % 4
    after = {}
    for precision in recipe.PRECISIONS:
        phase = dataclasses.replace(SHORT, optimizer="sgd", momentum=0.0, precision=precision)
        program = fit.program_of(RECIPE, phase, network)
        state = fit.State(network, fit.optimizer(phase).init(network.params))
        state, value, _ = one_step(program, state, x, targets, None, jax.random.key(0), 1.0)
        after[precision] = to_state_dict(state.network) | {"loss": np.asarray(value)}
    wide, half = after["float32"], after["bfloat16"]
    before = to_state_dict(network) | {"loss": np.float32(0)}
    differ = 0
    for key, value in wide.items():
        assert half[key].dtype == value.dtype
        moved = np.linalg.norm(np.float64(value) - before[key])
        error = np.linalg.norm(np.float64(half[key]) - value)
        if key.endswith("bias") and "classifier" not in key and moved < 1e-4:
            continue  # of a convolution before batch norm: its gradient is 0 but for rounding
        # bfloat16 has 8 bits: each of some 20 operations in a row adds up to 0.4 %, and signs
        # of near-zero inputs of the ReLUs change
        assert error <= 0.3 * moved, key
        differ += error > 0
    assert differ > 5
    assert abs(half["loss"] - wide["loss"]) < 0.05 * wide["loss"]


def test_the_flag_is_the_recipes_where_it_is_not_given():
    plain = options.train_options("jax", [])
    assert plain.flags["precision"] is None
    chosen = options.train_options("jax", ["--precision", "bfloat16"])
    assert chosen.flags["precision"] == "bfloat16"
    for row in (chosen.recipe.root, chosen.recipe.others):
        assert (row.class_phase.precision, row.group_phase.precision) == ("bfloat16",) * 2
    assert recipe.from_json(recipe.to_json(chosen.recipe)) == chosen.recipe
    with pytest.raises(UserError, match="unrecognized"):
        options.train_options("torch", ["--precision", "bfloat16"])


def test_on_a_cpu_a_line_says_that_it_is_slow(tmp_path, capsys):
    flags = "--backbone vgg --precision bfloat16 --epochs 1 --limit 100 --volatility 1e-9"
    train.main([*flags.split(), "--out", str(tmp_path / "run")])
    assert "bfloat16 is for GPUs" in capsys.readouterr().err
    runfolder.read_json(tmp_path / "run" / "summary.json")


def test_sums_over_many_values_stay_in_float32():
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 4)).astype(jnp.bfloat16)
    norm = BatchNorm(4)
    y = norm(jnp.asarray(x), Mode(train=True))
    assert y.dtype == jnp.bfloat16
    exact = np.float64(x)
    # 2,048 values: a sum of half precision would be off in the second digit
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    assert LogSoftmax()(jnp.asarray(x)).dtype == jnp.float32
