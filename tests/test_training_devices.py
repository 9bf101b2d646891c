"""Training on several devices, and in several processes, against training on one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.base.errors import UserError
from trunk_jax.machine import devices

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, str(ROOT / "tests" / "devices_program.py")]
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_FLAGS"))}
PLAIN |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def finish(process):
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-3000:]


def numbers(file):
    """{(case, devices): {name: value}} of a file of the program."""
    found = {}
    with np.load(file) as values:
        for name in values.files:
            case, count, rest = name.split(" ", 2)
            found.setdefault((case, int(count)), {})[rest] = values[name]
    return found


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """On one and on eight virtual devices of one process."""
    file = tmp_path_factory.mktemp("devices") / "eight.npz"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [*PROGRAM, str(file), "child64", "child32", "tree64"]
    finish(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=PLAIN | flags))
    return numbers(file)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """In two processes on loopback, which JAX joins as those of a Slurm step."""
    file = tmp_path_factory.mktemp("devices") / "two.npz"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    processes = []
    for rank in ("0", "1"):
        own = PLAIN | slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        command = [*PROGRAM, str(file), "child64"]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own))
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    return numbers(file)


def largest_difference(one, other):
    assert one.keys() == other.keys()
    pairs = [(one[k].astype(float), other[k].astype(float)) for k in one if k != "flops"]
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    np.testing.assert_array_equal(
        *(np.concatenate([np.isnan(v).ravel() for v in vs]) for vs in zip(*pairs, strict=True))
    )
    return max(np.nan_to_num(np.abs(a - b)).max(initial=0) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["child64", "tree64"])
def test_eight_devices_give_what_one_gives_in_float64(eight, case):
    """Weights, statistics, losses, ASL: 20 and 22 images are no multiple of 8."""
    assert largest_difference(eight[case, 1], eight[case, 8]) < 1e-10


@pytest.mark.slow
def test_two_processes_give_what_one_gives_in_float64(eight, two):
    assert largest_difference(eight["child64", 1], two["child64", 2]) < 1e-10


@pytest.mark.slow
def test_float32_on_eight_devices_is_as_near_the_truth_as_on_one(eight):
    truth = eight["child64", 1]

    def error(count):
        return max(
            np.abs(value - truth[name]).max()
            for name, value in eight["child32", count].items()
            if "network" in name
        )

    assert error(8) < 4 * error(1)  # other orders of the same sums
    assert error(1) < 1e-4


@pytest.mark.slow
def test_routing_on_eight_devices_has_the_bits_of_one(eight):
    one, many = eight["tree64", 1], eight["tree64", 8]
    names = [name for name in one if "routed" in name]
    assert len(names) == 2
    for name in names:
        assert one[name].tobytes() == many[name].tobytes()


def test_more_devices_than_there_are_is_one_line():
    with pytest.raises(UserError, match="--devices 99 is more than the 1"):
        devices.choose("99", distributed=False)
