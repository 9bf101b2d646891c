"""Weights as people have them: half precision, prefixes, wrappers, PyTorch's files, a hub."""

import itertools
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from data.base import reading, writing
from data.base.errors import UserError
from data.base.weights import note, read_safetensors
from data.recipes import recipe
from data.recipes.baselines import models
from data.run import runfolder
from data.tree import hierarchy
from parity import convert
from parity.pairs import published_files
from trunk_jax.network import exchange
from trunk_jax.network.network import split
from trunk_jax.nodes import build

# exact in bfloat16, so that reading it back must give the very numbers
NUMBERS = {
    "features.0.weight": np.array([[1.5, -0.0078125]], np.float32),
    "classifier.0.bias": np.array([2.0**-100, -3.0], np.float32),
}


@pytest.fixture(autouse=True)
def _each_line_again():
    note.cache_clear()


def same(found, wanted=NUMBERS):
    return found.keys() == wanted.keys() and all(
        found[k].dtype == wanted[k].dtype and np.array_equal(found[k], wanted[k]) for k in wanted
    )


def as_torch(kind=torch.float32):
    return {key: torch.tensor(value).to(kind) for key, value in NUMBERS.items()}


def test_bfloat16_is_read_as_float32_with_a_line(tmp_path, capsys):
    file = tmp_path / "half.safetensors"
    file.write_bytes(save_torch(as_torch(torch.bfloat16)))
    assert same(read_safetensors(file))
    assert capsys.readouterr().err == f"note: {file}: bfloat16 read as float32\n"
    read_safetensors(file)
    assert capsys.readouterr().err == "", "the line comes once"


def test_float16_is_read_as_float32(tmp_path, capsys):
    half = {key: value.astype(np.float16) for key, value in NUMBERS.items()}
    file = tmp_path / "half.safetensors"
    file.write_bytes(save(half | {"count": np.array(7)}))
    found = read_safetensors(file)
    assert found.pop("count").dtype == np.int64
    assert same(found, {key: value.astype(np.float32) for key, value in half.items()})
    assert "float16 read as float32" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_refused_by_name(tmp_path, kind):
    file = tmp_path / "x.safetensors"
    file.write_bytes(save_torch({"layer.weight": torch.ones(4).to(kind)}))
    with pytest.raises(UserError, match=r"layer\.weight is of type F8_E\dM\d.*export it as float"):
        read_safetensors(file)
    torch.save({"layer.weight": torch.ones(4).to(kind)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"numbers of type float8_e.*export it as float"):
        published_files.read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("modern", [True, False])
def test_a_file_of_pytorchs_is_named_and_the_command_that_turns_it(tmp_path, modern):
    file, out = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save(as_torch(), file, _use_new_zipfile_serialization=modern)
    with pytest.raises(UserError, match=rf"PyTorch file.*parity\.convert {file} --out"):
        read_safetensors(file)
    with pytest.raises(UserError, match="PyTorch file"):  # before any work
        models.load("resnet50", "svhn", weights=str(file))
    convert.main([str(file)])
    assert same(read_safetensors(out))
    with pytest.raises(UserError, match="exists"):
        convert.main([str(file)])
    with pytest.raises(UserError, match="--to is for run folders"):
        convert.main([str(file), "--to", "jax"])


def test_a_safetensors_header_may_be_as_long_as_a_pickle_begins(tmp_path):
    """Its length, 0x0280, is the two bytes with which a pickle of protocol 2 begins."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "w.safetensors"
    content = struct.pack("<Q", 0x280) + header.ljust(0x280) + struct.pack("<f", 1.0)
    assert content.startswith(b"\x80\x02")
    file.write_bytes(content)
    assert read_safetensors(file)["a"] == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_prefix_of_all_names_is_taken_off_with_a_line(tmp_path, capsys, prefix):
    file = tmp_path / "w.safetensors"
    file.write_bytes(save({prefix + key: value for key, value in NUMBERS.items()}))
    assert same(read_safetensors(file))
    assert f"without the prefix {prefix!r}" in capsys.readouterr().err
    some = {prefix + "a": NUMBERS["classifier.0.bias"], "b": NUMBERS["classifier.0.bias"]}
    file.write_bytes(save(some))
    assert read_safetensors(file).keys() == some.keys(), "not all have it: it is part of a name"


WRAPPERS = ("state_dict", "model", "model_state_dict")


@pytest.mark.parametrize(("wrapper", "prefix"), [*itertools.product(WRAPPERS, ("", "module."))])
def test_a_wrapped_state_dict_is_unwrapped_with_a_line(tmp_path, capsys, wrapper, prefix):
    file = tmp_path / "w.pth"
    inner = {prefix + key: value for key, value in as_torch(torch.bfloat16).items()}
    torch.save({wrapper: inner, "epoch": 3}, file)
    assert same(published_files.read_state_dict(file))
    said = capsys.readouterr().err
    assert f"what is under {wrapper!r}" in said
    assert "bfloat16 read as float32" in said
    assert ("without the prefix" in said) == bool(prefix)


@pytest.mark.parametrize("path", [("net",), ("module",), ("model", "state_dict"), ("mine",)])
def test_wrappers_around_wrappers_are_unwrapped(tmp_path, capsys, path):
    file, value = tmp_path / "w.pth", as_torch()
    for key in reversed(path):
        value = {key: value}
    torch.save(value, file)
    assert same(published_files.read_state_dict(file))
    assert " in ".join(map(repr, reversed(path))) in capsys.readouterr().err


def test_the_keys_of_what_is_no_state_dict_are_named(tmp_path):
    torch.save({"mine": as_torch(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="its keys: 'mine', 'epoch'; save the state_dict alone"):
        published_files.read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_in_the_same_words(tmp_path, value):
    array = np.array([1, value], np.float32)
    torch.save({"layer.weight": torch.tensor(array)}, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(save({"layer.weight": array}))
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(UserError, match=f"{name}: layer.weight holds NaN or infinite values$"):
            published_files.read_state_dict(tmp_path / name)


def test_missing_batch_counters_are_zero_in_both_frameworks():
    from trunk_torch_ref import nodes
    from trunk_torch_ref.network import exchange as torch_exchange

    ours = split(build("digits", "vgg", "root", (8, 8, 1), 10, rng=np.random.default_rng(0)))
    weights = exchange.to_state_dict(ours)
    counters = [key for key in weights if key.endswith("num_batches_tracked")]
    assert counters
    without = {key: value for key, value in weights.items() if key not in counters}
    theirs = nodes.build("digits", "vgg", "root", (1, 8, 8), 10)
    for found in (
        exchange.to_state_dict(exchange.from_state_dict(ours, without)),
        torch_exchange.to_state_dict(torch_exchange.from_state_dict(theirs, without)),
    ):
        assert found.keys() == weights.keys()
        assert all(found[key] == 0 and found[key].dtype == np.int64 for key in counters)
    del without["features.0.weight"]
    with pytest.raises(UserError, match=r"missing features\.0\.weight"):
        exchange.from_state_dict(ours, without)


# --- a Hugging Face cache


def snapshot(tmp_path):
    """A run as the hub's cache has it: links to blobs beside the snapshots."""
    repository = tmp_path / "hub" / "models--someone--tree"
    folder, blobs = repository / "snapshots" / "abc123", repository / "blobs"
    plain = tmp_path / "plain"
    chosen = recipe.load("corrected", "digits", "vgg")
    config = {"format": 1, "framework": "jax", "flags": {}, "recipe": recipe.to_json(chosen)}
    writing.write_json(plain / "config.json", config)
    runfolder.write_tree(plain, hierarchy.bare(10))
    runfolder.write_weights(plain, "root", NUMBERS)
    blobs.mkdir(parents=True)
    for place, file in enumerate(sorted(p for p in plain.rglob("*") if p.is_file())):
        (blobs / f"{place}").write_bytes(file.read_bytes())
        link = folder / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        depth = len(link.relative_to(repository).parts) - 1
        link.symlink_to("/".join([*[".."] * depth, "blobs", f"{place}"]))
    return folder


def test_a_snapshot_of_a_hub_is_read(tmp_path):
    folder = snapshot(tmp_path)
    assert runfolder.read_config(folder)["framework"] == "jax"
    assert same(runfolder.read_weights(folder, "root"))
    assert reading.is_snapshot(folder)


def test_links_elsewhere_are_still_refused(tmp_path):
    folder = snapshot(tmp_path)
    (tmp_path / "secret").write_text("{}")
    (folder / "tree.json").unlink()
    (folder / "tree.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"tree\.json is a link that leads out"):
        runfolder.read_config(folder)
    # a folder called blobs makes no cache
    run = tmp_path / "a" / "b" / "run"
    run.mkdir(parents=True)
    (tmp_path / "a" / "blobs").mkdir()
    (tmp_path / "a" / "blobs" / "x").write_text("{}")
    (run / "config.json").symlink_to(tmp_path / "a" / "blobs" / "x")
    with pytest.raises(UserError, match="leads out"):
        runfolder.read_config(run)


def test_weights_in_a_snapshot_are_found_by_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(save(NUMBERS))
    found = models.load("resnet50", "svhn", weights=str(tmp_path)).baseline.weights
    assert found.startswith(f"{tmp_path / 'model.safetensors'}#")
