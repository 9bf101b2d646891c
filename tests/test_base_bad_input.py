"""Files from anybody: what is no good is one line and exit code 2, and nothing in it is run.

Each kind of file that a command reads is damaged in many ways. An input is bad if it is refused;
what is accepted must not do harm either. No input may leave a traceback, take longer than
`LONGEST_S` or more than `MOST_MIB` of memory, or run the code that is in it.
"""

import contextlib
import copy
import csv
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fixed_groups
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from test_parity_published import svhn_tree, write_folder
from test_tree_hierarchy import anything

from data.base import reading, writing
from data.base.errors import UserError, run_command
from data.images import cache, datasets, specs
from data.images import files as pictures
from data.recipes import recipe
from data.recipes.recipe import Phase
from data.run import compression, results, runfolder
from data.run.dataset import load_of_run
from data.run.options import train_options
from data.training.epochs import Position
from data.tree import grouping
from parity.pairs import published_files
from trunk_torch_ref.inference.load import load_networks

ROOT = Path(__file__).parents[1]
LONGEST_S = 20.0  # of the processor: a machine may be busy with other things
HANGS_S = 6 * LONGEST_S
MOST_MIB = 1024
BAD: dict[str, set[str]] = {}  # kind of file -> digests of the bad ones


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def run_quietly(action):
    """(exit code, standard error) of a command, within bounds."""

    def late(*_):
        raise AssertionError(f"it takes longer than {LONGEST_S} s")

    errors = io.StringIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocks = {
        signal.ITIMER_PROF: (signal.SIGPROF, LONGEST_S),
        signal.ITIMER_REAL: (signal.SIGALRM, HANGS_S),
    }
    handlers = {number: signal.signal(number, late) for number, _ in clocks.values()}
    for clock, (_, seconds) in clocks.items():
        signal.setitimer(clock, seconds)
    try:
        with (
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(SystemExit) as left,
        ):
            run_command(lambda: print(action()))
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MOST_MIB, f"it takes {grown:.0f} MiB"
    return left.value.code, errors.getvalue()


def attempt(kind, what, action, trap=None):
    """Whether an input is refused; `what` it is, to tell inputs apart."""
    code, said = run_quietly(action)
    assert code in (0, 2), said
    said = "".join(line for line in said.splitlines(True) if not line.startswith("note: "))
    assert trap is None or not trap.exists(), "code in the file was run"
    if code == 0:
        assert said == ""
        return False
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    assert said.endswith("\n")
    assert len(said) < 3000
    BAD.setdefault(kind, set()).add(hashlib.sha256(what).hexdigest())
    return True


def count(kind, least):
    """The number of bad inputs of a kind, which must not become fewer unnoticed."""
    assert len(BAD.get(kind, ())) >= least, (kind, len(BAD.get(kind, ())))


# --- ways to damage


WRONG = (None, True, -1, 0, 1.5, 10**30, "x", "../../x", "\0", [], {}, [[]], {"a": 1})


def damaged_values(value, most=400):
    """Copies of a JSON value with one place changed: another type, absent, or one too many."""
    places = []

    def walk(item, path):
        places.append(path)
        if isinstance(item, dict):
            for key in item:
                walk(item[key], (*path, key))
        elif isinstance(item, list):
            for place in range(min(len(item), 2)):
                walk(item[place], (*path, place))

    walk(value, ())
    made = 0
    for turn in range(len(WRONG) + 2):
        for number, path in enumerate(places):
            if made >= most:
                return
            result = copy.deepcopy(value)
            parent = result
            for step in path[:-1]:
                parent = parent[step]
            which = (turn + number) % (len(WRONG) + 2)
            if not path:
                result = WRONG[which % len(WRONG)]
            elif which < len(WRONG):
                parent[path[-1]] = WRONG[which]
            elif which == len(WRONG):
                del parent[path[-1]]
            elif isinstance(parent, dict):
                parent["one too many"] = 1
            else:
                parent.append(parent[path[-1]])
            made += 1
            yield json.dumps(result).encode()


def no_json(good):
    """Texts that are no JSON, or JSON that no reader should have to bear."""
    text = good.decode()
    yield from (good[: len(good) * k // 7] for k in range(7))
    yield from (b"nul", b"\xff\xfe" + good[:50], text.encode("utf-16")[:-1], b"\0" * 100)
    yield good + b"}"
    yield b"[" * 100_000 + b"]" * 100_000  # deeper than any stack
    yield b"[" * 900 + b"]" * 900  # deeper than ours, not than Python's
    yield b'{"a":' * 40 + b"1" + b"}" * 40
    yield b"[" + b"9" * 5_000 + b"]"
    yield b"[" + b"9" * 200 + b"]"
    yield b"[1e999]"
    yield from (b"[NaN]", b"[Infinity]", b"[-Infinity]")
    start = text.index("{") + 1
    yield (text[:start] + '"twice": 1, "twice": 2, ' + text[start:]).encode()


def no_file(file):
    """In place of a file: nothing, a folder, a pipe, a link out, a link to itself, a huge one."""
    yield "missing", lambda: None
    yield "folder", file.mkdir
    yield "pipe", lambda: os.mkfifo(file)
    yield "link out", lambda: file.symlink_to("/etc/hostname")
    yield "link to a device", lambda: file.symlink_to("/dev/zero")
    yield "link to itself", lambda: file.symlink_to(file.name)
    yield "huge", lambda: sparse(file, 2**40)


def sparse(file, size):
    with open(file, "wb") as content:
        content.truncate(size)


def remove(file):
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)


def try_all(kind, file, contents, action, trap=None):
    """Put each of the contents in place of a file; the file is as before at the end."""
    good = file.read_bytes()
    try:
        for content in contents:
            file.write_bytes(content)
            attempt(kind, content, action, trap)
        for name, make in no_file(file):
            remove(file)
            make()
            attempt(kind, name.encode(), action, trap)
    finally:
        remove(file)
        file.write_bytes(good)
    code, said = run_quietly(action)
    assert code == 0, said  # the whole file is accepted, or nothing above means anything


# --- a run to damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from trunk_torch_ref import train

    folder = tmp_path_factory.mktemp("run") / "run"
    flags = "--backbone vgg --limit 300 --epochs 1 --batch-size 32 --volatility 1"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(grouping, "group", fixed_groups)
        train.main([*flags.split(), "--out", str(folder)])
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def load(run):
    """What evaluate, predict and the others read of a run before they compute."""
    chosen, tree = runfolder.read_recipe(run), runfolder.read_tree(run)
    shape = specs.spec(chosen.dataset).image_shape
    load_networks(run, chosen, tree, shape)


def resume(run):
    """What train --resume reads before it computes."""
    options = train_options("torch", ["--out", str(run), "--resume"])
    with runfolder.lock(run):
        config = runfolder.read_config(run) | {"recipe": recipe.to_json(options.recipe)}
        runfolder.create(run, config, True)


@pytest.mark.slow
def test_configurations(run):
    file = run / "config.json"
    config = json.loads(file.read_bytes())
    contents = [*damaged_values(config, 330), *no_json(file.read_bytes())]
    contents += [b"[" + b"[]," * 5_000_000 + b"[]]", b"[" + b"{}," * 5_000_000 + b"{}]"]
    try_all("config.json", file, contents, lambda: (load(run), resume(run)))
    config["compression"] = {"method": "prune", "share": 0.2}
    changed = [
        json.dumps(config | {"compression": value}).encode()
        for value in (
            1,
            [],
            {},
            {"method": "x", "share": 0.1},
            {"method": "prune", "share": 2},
            {"method": [], "share": 0.1},
            {"method": "prune", "share": "nan"},
            {"method": "prune", "share": 10**30},
            {"method": "int8"},
            "int8",
        )
    ]
    try_all("config.json", file, changed, lambda: compression.read(run))
    count("config.json", 200)


def test_trees(run):
    file = run / "tree.json"
    value = json.loads(file.read_bytes())
    contents = [*damaged_values(value, 120), *no_json(file.read_bytes())]
    for name in ("../x", "/etc/x", "a/b", "a\0b", "..", ".", "", "x" * 65, "root ", "é"):
        other = copy.deepcopy(value)
        (last,) = [n for n, path in value["nodes"].items() if path == [0]]
        other["nodes"] = {name if n == last else n: p for n, p in value["nodes"].items()}
        contents.append(json.dumps(other).encode())
    deep = {"targets": {str(k): [0] * 1500 + [k] for k in range(10)}, "nodes": value["nodes"]}
    wide = {"targets": {str(k): [k] for k in range(200_000)}, "nodes": {"root": []}}
    comb = {
        "targets": {str(k): [1] * min(k, 900) + [0] * (k < 900) for k in range(901)},
        "nodes": {"root": []},
    }
    contents += [json.dumps(each).encode() for each in (deep, wide, comb)]
    try_all("tree.json", file, contents, lambda: load(run))
    count("tree.json", 120)


def test_likelihoods(run):
    file = run / "asl" / "root.json"
    value = json.loads(file.read_bytes())
    value["asl"] = np.round(value["asl"], 3).tolist()
    contents = [*damaged_values(value, 60), *no_json(file.read_bytes())]
    try_all("asl/root.json", file, contents, lambda: runfolder.read_asl(run, "root", 10))
    count("asl/root.json", 60)


def test_summaries_and_manifests(run):
    file = run / "summary.json"

    def read_summary():
        results.lines(results.read_summary(run))

    contents = [*damaged_values(json.loads(file.read_bytes()), 250), *no_json(file.read_bytes())]
    try_all("summary.json", file, contents, read_summary)
    count("summary.json", 180)
    from data.run import card

    file = run / "manifest.json"
    contents = [*damaged_values(json.loads(file.read_bytes()), 250), *no_json(file.read_bytes())]
    try_all("manifest.json", file, contents, lambda: card.card(run, run))
    count("manifest.json", 120)


def test_where_the_data_is_said_to_be(run, monkeypatch, tmp_path):
    """A manifest from elsewhere may name a folder; nothing is written there, nothing fetched."""
    import requests

    def of(name, data_dir):
        load_of_run(run, recipe.load("published", name, "vgg"), data_dir)

    monkeypatch.setattr(requests.Session, "request", None)
    about = runfolder.read_json(run / "manifest.json")
    (tmp_path / "victim").mkdir()
    for folder in (str(tmp_path / "victim"), "/", "\0", "x" * 5000, ".."):
        writing.write_json(
            run / "manifest.json", about | {"dataset": about["dataset"] | {"data_dir": folder}}
        )
        for name in ("svhn", "emnist", "cifar10"):
            what = f"{folder} {name}".encode()
            data_dir = runfolder.data_dir(run) or str(tmp_path / "none")
            assert attempt("data_dir", what, lambda n=name, d=data_dir: of(n, d))
    assert list((tmp_path / "victim").iterdir()) == []
    assert not (tmp_path / "none").exists()


def test_measurements_predictions_and_metrics(run):
    from trunk_jax import report

    cost = {
        "parameters": 1.0,
        "weight_bytes": 4,
        "peak_activation_bytes": 9,
        "multiply_adds": 5.0,
        "flops": 10.0,
        "latency_ms": 1.0,
        "latency_ms_p10": 0.9,
        "latency_ms_p90": 1.1,
        "images_per_second": 5.0,
    }
    value = {
        "device": {"kind": "cpu"},
        "paths": [{"nodes": ["root"], "classes": ["0"], "images": 3, **cost}],
        "depths": [{"depth": 1, "decided": 3, "accuracy": 0.5, "on_path": 0.5}],
        "shortest": cost,
        "longest": cost,
        "mean": cost,
        "images_per_second": 5.0,
        "energy": {"joules_per_image": {"package": 0.5}},
    }
    parity = {
        "passed": True,
        "about": {"made": "today"},
        "checks": [{"name": "a", "what": "b", "passed": True, "max_abs": 0.5, "tolerance": "c"}],
    }
    file, other = run / "measurements.json", run / "report.json"
    writing.write_json(file, value)
    writing.write_json(other, parity)
    page = {
        "recall": {},
        "balanced": None,
        "name": "x",
        "summary": results.read_summary(run),
        "standing": results.standing(run, results.read_summary(run)),
        "config": "",
        "licence": "",
        "manifest": runfolder.read_manifest(run),
        "pictures": {},
        "others": [],
        "titles": {},
        "recipe": runfolder.read_json(run / "config.json")["recipe"],
    }

    def show():
        shown = page | {
            "measured": report._measured(file),
            "parity": report._parity(run / "report.json", asked=True),
            "pictures": {"tree": "", "confusion-test": ""},
        }
        return report.page(shown)

    contents = [*damaged_values(value, 150), *no_json(file.read_bytes())]
    remove_is_fine = [each for each in contents if each]
    good = file.read_bytes()
    for content in remove_is_fine:
        file.write_bytes(content)
        attempt("measurements.json", content, show)
    file.write_bytes(good)
    contents = [*damaged_values(parity, 80), *no_json(other.read_bytes())]
    try_all("report.json", other, contents, show)
    count("measurements.json", 90)
    count("report.json", 50)

    file = run / "predictions-test.csv"
    whole = file.read_text()
    head, first, *_ = whole.splitlines()
    rows = [
        "",
        head,
        whole.replace("label", "lable"),
        f"{head}\n{first.replace(',', ',,')}",
        f"{head}\n0,10,0,1",
        f"{head}\n0,-1,0,1",
        f"{head}\n0,1.5,0,1",
        f"{head}\n0,1,10,1",
        f"{head}\n0,{10**30},0,1",
        f"{head}\n0,\0,0,1",
        f'{head}\n0,"1',
        f"{head}\n0",
        "\n" * 50,
        f"{head}\n" + "x" * 200_000,
        f"{head}\n0,{'9' * 5000},1,1",
    ]
    texts = [row.encode() for row in rows] + [b"\xff\xfe\x00", b"\0" * 10_000]
    csv.field_size_limit(131_072)
    try_all("predictions", file, texts, lambda: results.read_predictions(run, "test", 10))
    count("predictions", 18)


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    whole = Path(recipe.__file__).with_name("corrected.toml")
    file = tmp_path / "corrected.toml"
    text = whole.read_text()
    file.write_text(text)
    texts = [text[: len(text) * k // 23] for k in range(23)]
    for old, new in (
        ("epochs = 6", 'epochs = "6"'),
        ("epochs = 6", "epochs = -1"),
        ("epochs = 6", "epochs = []"),
        ("epochs = 6", "epochs = 6.5"),
        ("epochs = 6, ", ""),
        ("batch_size = 64", "batch_size = 0"),
        ("lr = 3e-3", "lr = nan"),
        ("lr = 3e-3", "lr = inf"),
        ("lr = 3e-3", "lr = -1.0"),
        ('volatility = "auto"', "volatility = 0.0"),
        ('volatility = "auto"', "volatility = nan"),
        ('volatility = "auto"', ""),
        ('volatility = "auto"', "volatility = {}"),
        ("batch_size = 64", "unknown = 1"),
        ("batch_size = 64", 'name = "x"'),
        ("batch_size = 64", "mean = [1.0]"),
        ("batch_size = 64", 'faults = ["x"]'),
        ("batch_size = 64", 'loss = "x"'),
        ("batch_size = 64", "seed = -1"),
        ("batch_size = 64", "seed = 99999999999999999999"),
        ("batch_size = 64", "root = 1"),
        ('optimizer = "adam"', 'optimizer = "x"'),
        ('schedule = "cosine"', 'schedule = "step"'),
        ("[digits.vgg]", "[digits]\nvgg = 1\n[digits.other]"),
        ("[digits.vgg]", "[[digits.vgg]]"),
        ("[digits.vgg.others]", "[digits.vgg.otters]"),
    ):
        assert old in text, old
        texts.append(text.replace(old, new, 1))
    contents = [text.encode() for text in texts]
    contents += [
        b"\xff\xfe",
        b"\0",
        b"a = " + b"[" * 5000,
        b"a = " + b"[" * 500 + b"]" * 500,
        b"x = 1\n" * 2,
        b"a." * 3000 + b"a = 1",
    ]
    try_all("recipe", file, contents, lambda: recipe.load("corrected", "digits", "vgg"))
    count("recipe", 45)


# --- weights and training state


def flipped(content, places):
    for at in places:
        yield content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def safetensors_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_weights(run, monkeypatch):
    from trunk_jax.inference import load as jax_load

    file = run / "weights" / "root.safetensors"
    good = file.read_bytes()
    weights = runfolder.read_weights(run, "root")
    name = "features.0.weight"
    kernel = weights[name]
    bad = kernel.copy()
    bad[0, 0, 0, 0] = np.nan
    variants = [
        weights | {name: value}
        for value in (
            bad,
            kernel * np.float32(np.inf),
            kernel[:-1],
            kernel[None],
            kernel.reshape(-1),
            kernel.astype(np.int64),
            kernel.astype(np.complex64),
            kernel > 0,
            kernel[:0],
            kernel.astype(np.int8),
            np.zeros((), np.float32),
        )
    ]
    variants += [
        {},
        {k: v for k, v in weights.items() if k != name},
        weights | {"more": kernel},
        weights | {"../x": kernel},
        weights | {"": kernel},
    ]
    counter = next(key for key in weights if key.endswith("tracked"))
    variants += [
        weights | {counter: value} for value in (np.array(1.5), np.array([1]), np.array(True))
    ]
    contents = [save(each) for each in variants]
    contents += [good[: len(good) * k // 9] for k in range(9)]
    contents += list(flipped(good, [*range(9), 12, 40, 90]))
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    contents += [
        safetensors_of(header, bytes(8))
        for header in (
            b"{",
            b"[]",
            b"null",
            b"[" * 5000,
            {},
            {"a": 1},
            {"a": row | {"shape": [2**62, 2]}},
            {"a": row | {"shape": [-2]}},
            {"a": row | {"dtype": "F99"}},
            {"a": row | {"dtype": []}},
            {"a": row | {"data_offsets": [0, 2**60]}},
            {"a": row | {"data_offsets": [8, 0]}},
            {"a": row, "b": row},
            {"__metadata__": 1, "a": row},
            b'{"a": 1, "a": 2}',
            {"a": row | {"dtype": "BF16", "shape": [4]}},
            {"a" * 10_000: row},
        )
    ]
    contents += [struct.pack("<Q", size) + bytes(100) for size in (2**63, 2**31, 101, 99)]
    contents += [b"\x80\x04\x95", b"PK\x03\x04" + bytes(60), b"\x93NUMPY\x01\x00" + bytes(60)]
    trap = run.with_name("trap")
    contents.append(pickle.dumps(Payload(trap)))
    try_all("safetensors", file, contents, lambda: load(run), trap)
    count("safetensors", 65)

    chosen, tree = runfolder.read_recipe(run), runfolder.read_tree(run)
    for content in contents[:19]:  # JAX has its own reading of what fits
        file.write_bytes(content)
        action = lambda: jax_load.load_networks(run, chosen, tree, (8, 8, 1))  # noqa: E731
        assert attempt("safetensors", b"jax" + content, action)


def torch_state(steps=1):
    from trunk_torch_ref import nodes
    from trunk_torch_ref.network.network import initial
    from trunk_torch_ref.training.fit import State
    from trunk_torch_ref.training.objective import optimizer, scheduler

    network = initial(lambda: nodes.build("digits", "vgg", "root", (1, 8, 8), 10), seed=1)
    phase = Phase(3)
    moments = optimizer(phase, network.parameters())
    for _ in range(steps):
        network(torch.zeros(2, 1, 8, 8))[1].sum().backward()
        moments.step()
    return State(network, moments, scheduler(phase, moments, 4))


def saved(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def compressed(content):
    """A zip file of the same entries, compressed, and one of a gibibyte of zeros more."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        with new.open("archive/data/bomb", "w", force_zip64=True) as bomb:
            for _ in range(64):
                bomb.write(bytes(2**24))
    return buffer.getvalue()


@pytest.mark.slow
def test_training_state_of_torch(tmp_path):
    from trunk_torch_ref.training.checkpoint import Checkpoints

    state = torch_state()
    checkpoints = Checkpoints(tmp_path / "stage")
    checkpoints.save(state, state.network, Position(2, 1, 0.5), True)
    file, trap = checkpoints.file, tmp_path / "trap"
    good = file.read_bytes()
    content = torch.load(file, weights_only=True)

    def changed(*path, value=None, drop=False):
        result = copy.deepcopy(content)
        parent = result
        for step in path[:-1]:
            parent = parent[step]
        if drop:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        return saved(result)

    kernel = content["best"]["features.0.weight"]
    wrong = (
        None,
        1,
        "x",
        [],
        {},
        kernel[:1],
        kernel.double(),
        kernel * float("nan"),
        kernel.to_sparse(),
        torch.zeros(()),
    )
    contents = [changed("best", "features.0.weight", value=value) for value in wrong]
    contents += [changed("last", "network", "features.0.weight", value=value) for value in wrong]
    contents += [
        changed("last", "optimizer", "state", 0, "exp_avg", value=value) for value in wrong
    ]
    contents += [changed(part, value=value) for part in content for value in (None, 1, [], {})]
    contents += [changed(part, drop=True) for part in content]
    contents += [
        changed("position", key, value=value)
        for key in content["position"]
        for value in (None, -1, "x", 10**30, float("nan"))
    ]
    contents += [changed("last", part, drop=True) for part in content["last"]]
    group = content["last"]["optimizer"]["param_groups"][0]
    contents += [
        changed("last", "optimizer", "param_groups", 0, key, value={"a": 1}) for key in group
    ]
    contents += [good[: len(good) * k // 11] for k in range(11)]
    contents += list(flipped(good, range(40, len(good), len(good) // 12)))
    contents += [
        saved({"last": Payload(trap)}),
        saved(Payload(trap)),
        pickle.dumps(Payload(trap)),
        saved(content | {"more": Payload(trap)}, _use_new_zipfile_serialization=False),
        saved([]),
        saved(content["best"]),
        compressed(good),
        b"",
        b"PK\x05\x06" + bytes(18),
    ]

    def restore():
        fresh = torch_state(0)
        Checkpoints(tmp_path / "stage").restore(fresh, fresh.network)

    try_but_missing("checkpoint.pt", file, contents, restore, trap)
    with zipfile.ZipFile(file) as archive:  # a number that has changed is noticed, whichever
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    for entry in entries[:10]:
        content = next(flipped(good, [entry.header_offset + 30 + len(entry.filename) + 64]))
        file.write_bytes(content)
        assert attempt("checkpoint.pt", content, restore), entry.filename
    file.write_bytes(compressed(good))
    assert attempt("checkpoint.pt", b"compressed", restore)
    count("checkpoint.pt", 75)


def try_but_missing(kind, file, contents, action, trap):
    """As `try_all`, of a file whose absence is no mistake."""
    good = file.read_bytes()
    for content in contents:
        file.write_bytes(content)
        attempt(kind, content, action, trap)
    file.write_bytes(good)
    assert run_quietly(action)[0] == 0


# Orbax's readers are collected with errors that only pytest still hears of
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_training_state_of_jax(tmp_path):
    from test_training_command import network, state

    from trunk_jax.training import checkpoint
    from trunk_jax.training.checkpoint import Checkpoints

    folder = tmp_path / "stage"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state(seed=1), network(seed=2), Position(4, 3, 0.5), True)
    aside = tmp_path / "whole"
    shutil.copytree(folder, aside)
    last, best = state(), network()

    def restore():
        with Checkpoints(folder) as checkpoints:
            checkpoints.restore(last, best)

    def reseal():
        seal = json.loads((folder / "seal.json").read_bytes())
        writing.write_json(
            folder / "seal.json", seal | {"sha256": checkpoint._digest(folder / "4")}
        )

    def again():
        shutil.rmtree(folder)
        shutil.copytree(aside, folder)

    seal = json.loads((folder / "seal.json").read_bytes())
    seal["arrays"] = dict(list(seal["arrays"].items())[:3]) | seal["arrays"]
    for content in [*damaged_values(seal, 30), *no_json((folder / "seal.json").read_bytes())]:
        (folder / "seal.json").write_bytes(content)
        attempt("orbax", content, restore)
        again()
    files = sorted(path.relative_to(folder) for path in (folder / "4").rglob("*") if path.is_file())
    for name in files:
        content = (folder / name).read_bytes()
        for forged in (False, True):  # a seal that agrees with the damage, too
            if not content:
                continue
            (folder / name).write_bytes(next(flipped(content, [len(content) // 2])))
            if forged:
                reseal()
            attempt("orbax", f"{name} {forged}".encode(), restore)
            again()
    assert run_quietly(restore)[0] == 0
    count("orbax", 45)


# --- published folders


@pytest.mark.slow
def test_published_folders(tmp_path):
    folder, trap = tmp_path / "folder", tmp_path / "trap"
    tree, named = svhn_tree()
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for node, module in write_folder(folder, "svhn", tree, named, 0.70, images).items():
        torch.save(module.state_dict(), folder / "model_weights" / f"{tree.names[node]}.pt")

    def layout():
        published_files.read_layout(folder)

    for name, action, most in (
        ("target_map.json", layout, 60),
        ("model_weights/inputs_to_models.json", layout, 80),
        ("root_supergroups.json", lambda: published_files.read_groups(folder, "root", 10), 50),
    ):
        file = folder / name
        value = json.loads(file.read_bytes())
        contents = [*damaged_values(value, most), *no_json(file.read_bytes())]
        try_all("published JSON", file, contents, action)
    count("published JSON", 160)

    file = folder / "model_softmax" / "root_avg_softmax.pt"
    asl = torch.load(file, weights_only=True)
    view = torch.zeros(1).expand(10, 10)
    tensors = (
        asl[:9],
        asl.double() * float("nan"),
        asl.long(),
        asl.to_sparse(),
        view.expand(9, 10, 10),
        asl.to(torch.complex64),
        {"a": asl},
        [asl],
        None,
        Payload(trap),
        asl.bool(),
    )
    with warnings.catch_warnings(action="ignore"):
        contents = [saved(value) for value in tensors]
    good = file.read_bytes()
    contents += [good[: len(good) * k // 9] for k in range(9)]
    contents += [compressed(good), pickle.dumps(Payload(trap)), b"", b"<html></html>"]
    contents.append(saved(Payload(trap), _use_new_zipfile_serialization=False))
    try_all(
        "published .pt", file, contents, lambda: published_files.read_asl(folder, "root", 10), trap
    )

    file = folder / "model_weights" / "root.pt"
    weights = torch.load(file, weights_only=True)
    name = next(iter(weights))
    huge = torch.zeros(1).expand(2**20, 2**20)  # four tebibytes, it says
    contents = [
        saved(dict(weights) | {name: value})
        for value in (None, 1, "x", huge, weights[name].to_sparse(), Payload(trap))
    ]
    contents += [
        saved(value)
        for value in (
            [],
            {},
            {1: weights[name]},
            {"model_state_dict": 1},
            {"model_state_dict": {}},
            {"model_state_dict": Payload(trap)},
        )
    ]
    try_all(
        "published .pt", file, contents, lambda: published_files.read_weights(folder, "root"), trap
    )
    count("published .pt", 40)
    assert not trap.exists()


# --- images


def pictures_to_damage():
    """(name, bytes, may it be read) of images."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    other = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (40, 40), np.uint16))
    good = {}
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        colour.save(buffer, kind)
        good[kind] = buffer.getvalue()
    for name, image, kind in (
        ("16-bit", deep, "PNG"),
        ("16-bit TIFF", deep, "TIFF"),
        ("CMYK", colour.convert("CMYK"), "JPEG"),
        ("CMYK TIFF", colour.convert("CMYK"), "TIFF"),
        ("float", deep.convert("F"), "TIFF"),
        ("YCbCr", colour.convert("YCbCr"), "JPEG"),
        ("1 pixel", colour.crop((0, 0, 1, 1)), "PNG"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        good[name] = buffer.getvalue()
    for name, content in good.items():
        yield name, content, True
        length = len(content)
        for k in range(6):
            yield f"{name} cut to {k}/6", content[: length * k // 6], None
        for place in (0, 1, 9, 17, 22, 30, length // 2):
            yield f"{name} flipped at {place}", next(flipped(content, [place])), None
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        colour.save(buffer, kind, save_all=True, append_images=[other])
        yield f"animated {kind}", buffer.getvalue(), False
    for size in ((0, 40), (40, 0), (2**31 - 1, 2**31 - 1), (100_000, 100_000), (9_000, 9_000)):
        head = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        crc = struct.pack(">I", __import__("zlib").crc32(head))
        yield f"PNG of {size}", good["PNG"][:12] + head + crc + good["PNG"][33:], False
    yield (
        "BMP of 10^5 squared",
        good["BMP"][:18] + struct.pack("<ii", 10**5, 10**5) + good["BMP"][26:],
        False,
    )
    yield "PPM of 10^5 squared", b"P6 100000 100000 255\n" + bytes(100), False
    yield "PPM of none", b"P6 0 0 255\n", False
    yield "GIF of none", b"GIF89a" + bytes(20), False
    for name, content in (
        ("nothing", b""),
        ("text", b"no image"),
        ("zeros", bytes(5000)),
        ("HTML", b"<html></html>"),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
        (
            "PostScript",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
            b"(/tmp/x) (w) file closefile\nshowpage\n",
        ),
        ("PDF", b"%PDF-1.4\n%%EOF\n"),
        ("pickle", pickle.dumps([1])),
        ("NumPy", b"\x93NUMPY\x01\x00"),
        ("XBM", b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};"),
        ("FITS", b"SIMPLE  =                    T" + bytes(3000)),
        ("zip", compressed(saved([]))[:3000]),
        ("ICNS", b"icns" + bytes(100)),
        ("TGA", bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHH", 8, 8, 24) + bytes(192)),
        ("WMF", b"\xd7\xcd\xc6\x9a" + bytes(100)),
    ):
        yield name, content, False


def test_images(tmp_path):
    spec = specs.spec("cifar10")
    file = tmp_path / "image.png"

    def read():
        for name in pictures.files([str(file)]):
            pictures.read(name, spec)

    for name, content, readable in pictures_to_damage():
        file.write_bytes(content)
        found = attempt("image", content, read)
        assert readable is None or found == (not readable), name
    count("image", 100)
    for name, make in no_file(file):
        remove(file)
        make()
        if name != "link out":  # images are named by the user, who may link them
            assert attempt("image", name.encode(), read), name
    remove(file)


@pytest.mark.slow
def test_images_at_the_bound_stay_within_memory(tmp_path):
    """50 million pixels of the kinds that take the most are read; one row more is refused."""
    spec, file = specs.spec("cifar10"), tmp_path / "image.ppm"

    def read():
        pictures.read(str(file), spec)

    for rows, good in ((6250, True), (6251, False)):
        sparse(file, rows * 8000 * 2 + 19)  # 16 bits, in memory 32
        with open(file, "r+b") as content:
            content.write(b"P5 8000 %4d 65535\n" % rows)
        assert attempt("image", b"16 bits, %d rows" % rows, read) == (not good)
    Image.new("LA", (8000, 6250)).save(file.with_suffix(".png"), compress_level=1)
    file = file.with_suffix(".png")
    assert not attempt("image", b"transparent", read)


# --- prepared datasets


@pytest.fixture(scope="module")
def svhn(tmp_path_factory):
    """A folder such as stock TFDS leaves, of 12 and 10 images."""
    import tensorflow_datasets as tfds
    from test_images_datasets import _example, _write_tfrecord

    root = tmp_path_factory.mktemp("tfds")
    builder = tfds.builder("svhn_cropped", data_dir=str(root))
    folder = root / "svhn_cropped" / str(builder.version)
    folder.mkdir(parents=True)
    builder.info.features.save_config(str(folder))
    rng = np.random.default_rng(0)
    splits = []
    for split, sizes in (("train", (7, 5)), ("test", (10,))):
        for place, size in enumerate(sizes):
            images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
            records = [_example(image, k % 10) for k, image in enumerate(images)]
            name = f"svhn_cropped-{split}.tfrecord-{place:05d}-of-{len(sizes):05d}"
            _write_tfrecord(folder / name, records)
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(size) for size in sizes]
        splits.append(
            {"name": split, "numBytes": "1", "shardLengths": lengths, "filepathTemplate": template}
        )
    about = {
        "name": "svhn_cropped",
        "version": str(builder.version),
        "fileFormat": "tfrecord",
        "splits": splits,
        "description": "x",
    }
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return root, folder


def test_prepared_folders(svhn, tmp_path):
    from test_images_datasets import _example, _write_tfrecord

    root = tmp_path / "data"
    shutil.copytree(svhn[0], root)
    folder = root / svhn[1].relative_to(svhn[0])

    def load():
        assert datasets.load("svhn", root, fetch=False).train.images.shape == (12, 32, 32, 3)

    file = folder / "dataset_info.json"
    value = json.loads(file.read_bytes())
    whole, contents = file.read_bytes(), []
    for template in (
        "../../{SPLIT}",
        "/etc/{SPLIT}",
        "{DATASET}",
        "x",
        "",
        "{X}",
        "{SPLIT:>999999999}",
        "{SPLIT.__class__}",
        "{SPLIT!r}",
        "{{",
        "a\0b",
    ):
        other = copy.deepcopy(value)
        other["splits"][0]["filepathTemplate"] = template
        file.write_text(json.dumps(other))
        assert attempt("TFDS", file.read_bytes(), load), template
    file.write_bytes(whole)
    for lengths in (["10000000000000"], ["0", "0"], ["-1"], ["x"], [], ["7", "5", "1"], ["6", "6"]):
        other = copy.deepcopy(value)
        other["splits"][0]["shardLengths"] = lengths
        contents.append(json.dumps(other).encode())
    contents += [*damaged_values(value, 60), *no_json(file.read_bytes())]
    try_all_present("TFDS", file, contents, load)

    shard = folder / "svhn_cropped-train.tfrecord-00001-of-00002"
    good = shard.read_bytes()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    whole = [_example(image, k) for k, image in enumerate(images)]
    contents = [good[: len(good) * k // 9] for k in range(9)]
    contents += list(flipped(good, range(3, len(good), len(good) // 15)))
    contents += [good + good, good + b"\0", struct.pack("<QI", 2**60, 0) + bytes(50)]
    for shape in ((31, 32, 3), (32, 32), (1, 1, 3), (32, 32, 4), (64, 64, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        contents.append(framed([*whole[:4], _example(image, 1)], tmp_path, _write_tfrecord))
    for label in (-1, 10, 2**40):
        contents.append(framed([*whole[:4], _example(images[0], label)], tmp_path, _write_tfrecord))
    contents += [
        framed([*whole[:4], record], tmp_path, _write_tfrecord)
        for record in (b"", b"x", b"\xff" * 50, pickle.dumps(1), bytes(2**20 + 1))
    ]
    try_all("TFDS", shard, contents, load)
    for name in ("features.json",):
        try_all_present("TFDS", folder / name, list(no_json(b'{"a": 1}')), load)
    count("TFDS", 70)


def framed(records, folder, write):
    write(folder / "shard", records)
    return (folder / "shard").read_bytes()


def try_all_present(kind, file, contents, action):
    good = file.read_bytes()
    for content in contents:
        file.write_bytes(content)
        attempt(kind, content, action)
    file.write_bytes(good)
    code, said = run_quietly(action)
    assert code == 0, said


def test_a_cache_from_elsewhere_is_made_anew(tmp_path, monkeypatch):
    """An array of objects is a pickle: it is not loaded, whatever its fingerprint says."""
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    before = datasets.load("digits")
    (entry,) = (tmp_path / "cache" / "datasets").iterdir()
    trap = tmp_path / "trap"
    for name in cache.NAMES:
        for content in (pickle.dumps(Payload(trap)), b"", b"\x93NUMPY" + bytes(9)):
            (entry / f"{name}.npy").write_bytes(content)
            assert datasets.load("digits").fingerprint == before.fingerprint
        array = np.empty(2, object)
        array[:] = Payload(trap)
        np.save(entry / f"{name}.npy", array, allow_pickle=True)
        assert datasets.load("digits").fingerprint == before.fingerprint
    for text in ("[" * 100_000, "{}", "[]", "null", '{"fingerprint": NaN}', ""):
        (entry / "meta.json").write_text(text)
        assert datasets.load("digits").fingerprint == before.fingerprint
    assert not trap.exists()


# --- anything at all


QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@QUICK
@given(anything, st.sampled_from(["config.json", "tree.json", "summary.json", "manifest.json"]))
def test_any_json_in_any_file_of_a_run(finished, tmp_path_factory, value, name):
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        shutil.copytree(finished, folder)
    good = (folder / name).read_bytes()
    content = json.dumps(value).encode()
    (folder / name).write_bytes(content)

    def read():
        load(folder)
        results.read_summary(folder)
        runfolder.read_manifest(folder)

    try:
        assert attempt("any JSON", name.encode() + content, read)
    finally:
        (folder / name).write_bytes(good)


@QUICK
@given(
    st.binary(max_size=300), st.integers(0, 400), st.sampled_from(["JPEG", "PNG", "TIFF", "GIF"])
)
def test_any_bytes_in_an_image(tmp_path_factory, noise, at, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, kind)
    content = buffer.getvalue()
    at %= len(content)
    content = content[:at] + noise + content[at + len(noise) :]
    file = tmp_path_factory.getbasetemp() / "noise"
    file.write_bytes(content)
    spec = specs.spec("digits")
    attempt("any image", content, lambda: pictures.read(str(file), spec) is None)


@QUICK
@given(st.binary(max_size=400))
def test_any_bytes_as_weights(tmp_path_factory, noise):
    file = tmp_path_factory.getbasetemp() / "noise.pt"
    file.write_bytes(noise)
    assert attempt("any weights", noise, lambda: published_files.read_tensors(file))
    assert attempt("any weights", b"s" + noise, lambda: runfolder.read_safetensors(file))


def test_at_least_500_bad_inputs():
    """Runs last in this file; with the file whole. Each kind has its own least number above."""
    if len(BAD) < 15:
        pytest.skip("needs the whole file in one process")
    total = sum(map(len, BAD.values()))
    print({kind: len(digests) for kind, digests in BAD.items()}, total)
    assert total >= 1500


# --- from a shell


@pytest.mark.parametrize(
    ("module", "name", "content"),
    [
        # the next shows this command's line; such nesting in any file of a run is tried above
        pytest.param(
            "trunk_torch_ref.evaluate", "config.json", b"[" * 10_000, marks=pytest.mark.slow
        ),
        ("trunk_torch_ref.evaluate", "weights/root.safetensors", pickle.dumps([1])),
        ("trunk_jax.predict", "image.png", b"%!PS-Adobe-3.0 EPSF-3.0"),
        ("data.table", "summary.json", b'{"accuracy": 1}'),
    ],
)
def test_a_command_ends_in_one_line(run, module, name, content):
    (run / name).write_bytes(content)
    words = [sys.executable, "-m", module, str(run)]
    words += [str(run / name)] if module.endswith("predict") else []
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert name in line


# --- paths


def test_a_run_with_a_link_out_of_it_is_neither_read_nor_written(run, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "root.safetensors").write_bytes(b"precious")
    shutil.rmtree(run / "weights")
    (run / "weights").symlink_to(victim)
    for action in (load, resume):
        assert attempt("links", str(action).encode(), lambda action=action: action(run))
    (run / "weights").unlink()
    (run / "weights").mkdir()
    for name in (".lock", "metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim / "root.safetensors")
        assert attempt("links", name.encode(), lambda: resume(run))
        (run / name).unlink()
    assert (victim / "root.safetensors").read_bytes() == b"precious"
    (run / "inside").symlink_to("config.json")  # within the folder a link does no harm
    assert run_quietly(lambda: resume(run))[0] == 0


def test_reading_needs_no_writable_folder_and_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        reading.json_file(tmp_path / "none.json")
    with pytest.raises(UserError, match="no regular file"):
        reading.content(Path("/dev/null"), 10)


def test_forms():
    form = {"a": int, "b?": [float], "c": (str, None), "d?": ()}
    reading.need({"a": 1, "c": None, "more": {}}, form)
    reading.need({"a": 1, "b": [1, 2.5], "c": "x"}, form)
    for value, said in (
        ({"c": ""}, "lacks a"),
        ({"a": True, "c": ""}, "a is True, no int"),
        ({"a": 1.0, "c": ""}, "a is 1.0"),
        ({"a": 1, "c": 1}, "c is 1"),
        ({"a": 1, "b": ["x"], "c": ""}, r"b\[0\] is 'x', no float"),
        ([], "it is no object"),
        ({"a": 1, "b": {}, "c": ""}, "b is no list"),
        ({"a": 1, "c": "", "d": 1}, "d is 1"),
    ):
        with pytest.raises(ValueError, match=said):
            reading.need(value, form)
