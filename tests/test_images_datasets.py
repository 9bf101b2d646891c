"""Datasets: the four specs, reading and preparing TFDS folders, the cache, and the errors."""

import ast
import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data.base import writing
from data.base.errors import UserError
from data.images import cache, datasets, folders, specs, stand_ins

ROOT = Path(__file__).parents[1]
STAND_INS = ROOT.parent / "shared" / "tfds-standin"
# Found before the fixture below gives every test a home of its own.
PREPARED = folders.data_root()

needs_stand_ins = pytest.mark.skipif(
    not STAND_INS.is_dir(), reason="needs the stand-in folders in ../shared"
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for variable in ("TFDS_DATA_DIR", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    (tmp_path / "data").mkdir()  # a folder that a user names must be there
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))


# --- originals as their publishers serve them, but small, from a server on this machine


def _pixels(count, shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


# 300 images and more, so that the PNG shards exceed array_record's smallest file, 64 KiB.
ORIGINALS = {
    "svhn": {
        "train": (_pixels(300, (32, 32, 3)), np.arange(300) % 10 + 1),
        "test": (_pixels(40, (32, 32, 3)), np.arange(40) % 10 + 1),
    },
    "emnist": {
        "train": (_pixels(301, (28, 28, 1)), np.arange(301) % 47),
        "test": (_pixels(94, (28, 28, 1)), np.arange(94) % 47),
    },
    "cifar10": {
        "train": (_pixels(305, (32, 32, 3)), np.arange(305) * 3 % 10),
        "test": (_pixels(41, (32, 32, 3)), np.arange(41) * 3 % 10),
    },
}


def _mat(images, labels):
    buffer = io.BytesIO()
    content = {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)}
    scipy.io.savemat(buffer, content)
    return buffer.getvalue()


def _idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def _emnist_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, (images, labels) in ORIGINALS["emnist"].items():
            stem = f"gzip/emnist-balanced-{split}"
            archive.writestr(f"{stem}-images-idx3-ubyte.gz", _idx(images[..., 0]))
            archive.writestr(f"{stem}-labels-idx1-ubyte.gz", _idx(labels))
        archive.writestr("gzip/emnist-byclass-train-images-idx3-ubyte.gz", b"not for us")
    return buffer.getvalue()


def _cifar_tar():
    train, test = ORIGINALS["cifar10"]["train"], ORIGINALS["cifar10"]["test"]

    def rows(images, labels):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([labels[:, None].astype(np.uint8), planes], 1).tobytes()

    names = "\n".join(specs.spec("cifar10").class_names) + "\n\n"
    files = {"batches.meta.txt": names.encode(), "test_batch.bin": rows(*test)}
    for i in range(5):
        part = slice(61 * i, 61 * (i + 1))
        files[f"data_batch_{i + 1}.bin"] = rows(train[0][part], train[1][part])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@functools.cache
def _site():
    return {
        "/train_32x32.mat": _mat(*ORIGINALS["svhn"]["train"]),
        "/test_32x32.mat": _mat(*ORIGINALS["svhn"]["test"]),
        "/extra_32x32.mat": b"1.3 GB that nobody asked for",
        "/gzip.zip": _emnist_zip(),
        "/cifar-10-binary.tar.gz": _cifar_tar(),
    }


@contextlib.contextmanager
def _server(files, behave=None):
    """Serve `files`; yields the address and the list of (method, path) that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            self.sent = asked
            if behave is None or not behave.__qualname__.startswith("_with_ranges"):
                asked.append((self.command, self.path))
            if behave and behave(self):
                return
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _point_builders_at(monkeypatch, address):
    """Change the addresses (and EMNIST's sizes) in TFDS's builders, and nothing else of theirs."""
    from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
    from tensorflow_datasets.image_classification import cifar, mnist

    monkeypatch.setattr(svhn_cropped_dataset_builder, "URL", address)
    monkeypatch.setattr(mnist.EMNIST, "URL", f"{address}gzip.zip")
    (balanced,) = [c for c in mnist.EMNIST.BUILDER_CONFIGS if c.name == "balanced"]
    for split, (_, labels) in ORIGINALS["emnist"].items():
        monkeypatch.setattr(balanced, f"{split}_examples", len(labels))
    official = cifar.Cifar10._cifar_info.fget
    url = f"{address}cifar-10-binary.tar.gz"
    monkeypatch.setattr(
        cifar.Cifar10, "_cifar_info", property(lambda self: official(self)._replace(url=url))
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with the three small datasets, prepared through the whole of our code."""
    root = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch, _server(_site()) as (address, asked):
        patch.setenv("TRUNK_CACHE_DIR", str(root / "cache"))
        patch.setenv("NO_PROXY", "127.0.0.1")
        _point_builders_at(patch, address)
        (root / "data").mkdir()
        loaded = {name: datasets.load(name, root / "data") for name in ORIGINALS}
    return root / "data", loaded, asked


def _pairs(images, labels):
    return sorted((i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True))


def _one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is known of the datasets


def test_specs_match_the_papers():
    shapes = {name: (s.image_shape, len(s.class_names)) for name, s in specs.SPECS.items()}
    assert shapes == {
        "digits": ((8, 8, 1), 10),
        "svhn": ((32, 32, 3), 10),
        "emnist": ((28, 28, 1), 47),
        "cifar10": ((32, 32, 3), 10),
    }
    emnist = specs.spec("emnist").class_names
    assert (emnist[9], emnist[10], emnist[35], emnist[36:]) == ("9", "A", "Z", tuple("abdefghnqrt"))
    assert len(set(emnist)) == 47


def test_unknown_dataset_lists_the_choices():
    with pytest.raises(
        UserError,
        match="'mnist' is no dataset; give one of digits, svhn, emnist, cifar10, a folder",
    ):
        datasets.load("mnist")


def test_data_root_argument_then_variable_then_home(tmp_path, monkeypatch):
    assert folders.data_root() == tmp_path / "home" / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert folders.data_root() == Path("/somewhere")
    assert folders.data_root("~/here") == tmp_path / "home" / "here"


def test_newest_complete_version_is_used(tmp_path):
    for version in ("3.9.0", "3.10.0", "3.11.0.incompleteX1"):
        folder = tmp_path / "svhn_cropped" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    (tmp_path / "svhn_cropped" / "4.0.0").mkdir()
    found = folders.prepared_folder(specs.spec("svhn"), tmp_path)
    assert found == tmp_path / "svhn_cropped" / "3.10.0"
    assert folders.prepared_folder(specs.spec("emnist"), tmp_path) is None


# --- digits


def test_digits_are_scikit_learns_stretched_and_split_by_class():
    from sklearn.datasets import load_digits

    original = load_digits()
    loaded = datasets.load("digits")
    # In whole numbers: v * 255 / 16 rounded, halves up (127.5 is the only half).
    expected = ((original.images.astype(int) * 255 + 8) // 16)[..., None]
    members = {image.tobytes(): i for i, image in enumerate(expected.astype(np.uint8))}
    assert len(members) == 1797  # no two alike, so that an image names its row
    rows = []
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        index = np.array([members[image.tobytes()] for image in split.images])
        assert np.array_equal(split.labels, original.target[index])
        assert (np.diff(index) > 0).all()  # in scikit-learn's order
        rows.append(index)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(1797))
    counts = np.bincount(original.target)
    # A fifth of a class to the nearest image: half an image off at most.
    assert np.abs(np.bincount(loaded.test.labels) - counts / 5).max() <= 0.5
    # The split is part of every published number, so it may never change by accident.
    digest = hashlib.sha256(rows[1].astype("<i8").tobytes()).hexdigest()
    assert digest == "4804c487c84eee6f7d626a1a1e812c4a7f7ba527c84f1af2d238e5b5c1774e0a"
    assert not loaded.stand_in


# --- preparing


def test_prepared_pixels_labels_and_splits_equal_the_originals(prepared):
    root, loaded, _ = prepared
    for name, original in ORIGINALS.items():
        for split, (images, labels) in original.items():
            got = getattr(loaded[name], split)
            assert got.images.shape == images.shape
            digits_0_to_9 = labels % 10 if name == "svhn" else labels
            assert _pairs(got.images, got.labels) == _pairs(images, digits_0_to_9), name
        folder = folders.prepared_folder(specs.spec(name), root)
        assert loaded[name].source == str(folder)
        about = json.loads((folder / "dataset_info.json").read_text())
        assert [s["name"] for s in about["splits"]] == ["train", "test"]
        assert about["fileFormat"] == "array_record"
        assert loaded[name].version == about["version"] == folder.name
    assert 0 in loaded["svhn"].train.labels  # digit 0 is stored as 10
    assert 10 not in loaded["svhn"].train.labels


def test_extra_split_is_never_asked_for(prepared):
    _, _, asked = prepared
    paths = {path for _, path in asked}
    assert paths == set(_site()) - {"/extra_32x32.mat"}


@pytest.mark.parametrize(("name", "width"), [("svhn", 6), ("cifar10", 5)])
def test_prepared_order_and_ids_are_those_of_tfds(prepared, tmp_path, name, width):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import shuffle

    root, loaded, _ = prepared
    folder = folders.prepared_folder(specs.spec(name), root)
    for split, (images, _) in ORIGINALS[name].items():
        # The oracle: TFDS shuffles the keys 0, 1, 2, ... by a hash salted with the split's name.
        shuffler = shuffle.Shuffler(dirpath=tmp_path, hash_salt=split, disable_shuffling=False)
        for row in range(len(images)):
            shuffler.add(row, str(row).encode())
        order = [int(row) for _, row in shuffler]
        assert order != sorted(order)
        assert np.array_equal(getattr(loaded[name], split).images, images[order])
        read = tfds.builder_from_directory(str(folder)).as_data_source(split)
        assert [e["id"].decode() for e in read] == [f"{split}_{row:0{width}d}" for row in order]
        # and TFDS's own decoder sees the same pixels as ours
        assert np.array_equal([e["image"] for e in read], getattr(loaded[name], split).images)


def test_stock_download_folder_is_reused_offline(tmp_path, monkeypatch, capfd):
    """Files in TFDS's documented place for manual downloads need no network at all."""
    from tensorflow_datasets.core.download import checksums

    address = "http://127.0.0.1:1/"
    _point_builders_at(monkeypatch, address)
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    known = {}
    for path in ("/train_32x32.mat", "/test_32x32.mat"):
        content = _site()[path]
        (manual / path[1:]).write_bytes(content)
        known[address + path[1:]] = checksums.UrlInfo(
            size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=path[1:]
        )
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(known))
    loaded = datasets.load("svhn", tmp_path / "data")
    assert len(loaded.train.labels) == 300
    assert capfd.readouterr().out == ""  # standard output belongs to the command


# --- offline, and downloads that fail


def _fails_to_download(name, address, root):
    with pytest.raises(UserError) as caught:
        datasets.load(name, root)
    message = _one_line(caught)
    tfds_name = specs.spec(name).tfds_name
    for part in (
        f"dataset {name!r} is not prepared in {root / tfds_name}",
        address,
        f"python -m data.prepare {name} --data-dir DIR",
        "pass --data-dir DIR or set TFDS_DATA_DIR=DIR",
    ):
        assert part in message
    assert folders.prepared_folder(specs.spec(name), root) is None
    return message


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_offline_is_one_line_and_no_noise(name, tmp_path, monkeypatch, capfd):
    address = "http://127.0.0.1:1/"  # nothing listens on port 1
    _point_builders_at(monkeypatch, address)
    started = time.monotonic()
    message = _fails_to_download(name, address, tmp_path / "data")
    assert time.monotonic() - started < 10  # the issue's own limit
    assert "refused" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow  # it waits for six seconds
def test_server_that_never_answers_is_given_up_within_ten_seconds(tmp_path, monkeypatch):
    released = threading.Event()
    with _server({}, behave=lambda handler: released.wait(30)) as (address, _):
        _point_builders_at(monkeypatch, address)
        started = time.monotonic()
        _fails_to_download("cifar10", address, tmp_path / "data")
        assert time.monotonic() - started < 10  # the issue's own limit
        released.set()


def test_name_that_is_never_resolved_is_given_up(tmp_path, monkeypatch):
    """A resolver without an answer heeds no timeout of requests', so ours must be its own."""
    from data.base import download

    released = threading.Event()
    _point_builders_at(monkeypatch, "http://127.0.0.1:1/")

    def never_resolved(*arguments, **more):
        released.wait(30)
        raise download.requests.ConnectionError("no such name")

    monkeypatch.setattr(download.requests, "head", never_resolved)
    monkeypatch.setattr(download, "_REACH_S", 0.3)
    started = time.monotonic()
    message = _fails_to_download("cifar10", "http://127.0.0.1:1/", tmp_path / "data")
    released.set()
    assert "no answer" in message
    assert time.monotonic() - started < 10  # 0.3 s and TFDS's own; without the limit, 30


def test_download_that_stalls_is_given_up(tmp_path, monkeypatch):
    from data.base import download

    released = threading.Event()

    def stall(handler):
        if handler.command == "GET":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            handler.wfile.write(b"and then nothing")
            released.wait(30)
        return handler.command == "GET"

    monkeypatch.setattr(download, "_READ_S", 0.3)
    with _server(_site(), behave=stall) as (address, _):
        _point_builders_at(monkeypatch, address)
        started = time.monotonic()
        message = _fails_to_download("cifar10", address, tmp_path / "data")
        assert time.monotonic() - started < 10  # 0.3 s and TFDS's own; without the limit, 30
        released.set()
    assert "timed out" in message


def test_missing_file_and_broken_connection_are_reported(tmp_path, monkeypatch):
    with _server({}) as (address, asked):
        _point_builders_at(monkeypatch, address)
        assert "(HTTP 404)" in _fails_to_download("emnist", address, tmp_path / "data")
        assert asked == [("HEAD", "/gzip.zip")]

    def break_off(handler):
        if handler.command == "GET":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            handler.wfile.write(b"only this much")
        return handler.command == "GET"

    with _server(_site(), behave=break_off) as (address, asked):
        _point_builders_at(monkeypatch, address)
        message = _fails_to_download("svhn", address, tmp_path / "data")
        assert "99986 more expected" in message
        assert len([1 for method, _ in asked if method == "GET"]) <= 2  # no retries


def test_download_with_a_wrong_checksum_is_refused(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import checksums

    with _server(_site()) as (address, _):
        _point_builders_at(monkeypatch, address)
        other = checksums.UrlInfo(size=3, checksum="0" * 64, filename="gzip.zip")
        monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {f"{address}gzip.zip": other})
        message = _fails_to_download("emnist", address, tmp_path / "data")
    assert "wrong checksum" in message


def test_archive_that_is_no_archive_is_refused(tmp_path, monkeypatch):
    bad = {"/gzip.zip": b"<html>log in first</html>", "/cifar-10-binary.tar.gz": b"<html></html>"}
    with _server(bad) as (address, _):
        _point_builders_at(monkeypatch, address)
        for name in ("emnist", "cifar10"):
            message = _fails_to_download(name, address, tmp_path / "data")
            assert "cannot be unpacked" in message


def test_data_dir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    from data.images import originals

    svhn = specs.spec("svhn")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        originals.prepare(svhn, tmp_path / "file" / "below")
    assert f"{tmp_path / 'file'} is not a writable folder" in _one_line(caught)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(UserError) as caught:
        originals.prepare(svhn, tmp_path / "below")
    assert f"{tmp_path} is not a writable folder" in _one_line(caught)


def _with_ranges(files, breaks):
    """Behaves as a server that knows ranges; breaks off the first `breaks` answers half way."""
    broken = []

    def behave(handler):
        content = files.get(handler.path)
        if handler.command != "GET" or content is None:
            return False
        begin = int((handler.headers["Range"] or "bytes=0-").split("=")[1].rstrip("-"))
        handler.send_response(206 if begin else 200)
        if begin:
            whole = len(content)
            handler.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        handler.send_header("Content-Length", str(len(content) - begin))
        handler.end_headers()
        rest = content[begin:]
        if len(broken) < breaks:
            broken.append((handler.path, begin))
            rest = rest[: len(rest) // 2]
        handler.sent.append((handler.path, begin, len(rest)))
        handler.wfile.write(rest)
        return True

    return behave


def _whole_blocks(size):
    """What is kept of so many bytes."""
    return size // (1 << 16) * (1 << 16)


def _register(monkeypatch, address, files):
    """Make TFDS know sizes and checksums of what the server has, as it does of the originals."""
    from tensorflow_datasets.core.download import checksums

    known = {
        address + path[1:]: checksums.UrlInfo(
            size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=path[1:]
        )
        for path, content in files.items()
    }
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(known))


@pytest.mark.parametrize("registered", [True, False])
def test_an_interrupted_download_goes_on_and_leaves_one_partial_file(
    tmp_path, monkeypatch, capsys, registered
):
    root, content = tmp_path / "data", _site()["/cifar-10-binary.tar.gz"]
    with _server(_site(), behave=_with_ranges(_site(), breaks=2)) as (address, sent):
        _point_builders_at(monkeypatch, address)
        if registered:
            _register(monkeypatch, address, _site())
        half = _whole_blocks(len(content) // 2)
        message = _fails_to_download("cifar10", address, root)
        assert f"; the first {half:,} bytes are kept: the same command goes on" in message
        message = _fails_to_download("cifar10", address, root)
        have = half + _whole_blocks((len(content) - half) // 2)
        assert f"; the first {have:,} bytes are kept" in message
        left = [path for path in root.rglob("*") if path.is_file()]
        assert [(path.suffix, path.stat().st_size) for path in left] == [(".part", have)]
        assert len(datasets.load("cifar10", root).test.labels) == 41
        assert f"going on after {have / 1e6:.1f} MB" in capsys.readouterr().err
    assert [begin for _, begin, _ in sent] == [0, half, have]
    assert sent[-1][2] == len(content) - have
    assert not list(root.rglob("*.part"))
    assert not list(root.rglob("*unpacked*"))
    assert not list(root.rglob("*incomplete*"))
    assert not list(root.glob(".*"))  # the lock is gone


def test_a_partial_file_of_another_file_is_not_gone_on_with(tmp_path, monkeypatch):
    """What was begun is checked with the rest, and fetched again if they do not fit."""
    root, content = tmp_path / "data", _site()["/cifar-10-binary.tar.gz"]
    with _server(_site(), behave=_with_ranges(_site(), breaks=1)) as (address, sent):
        _point_builders_at(monkeypatch, address)
        _register(monkeypatch, address, _site())
        _fails_to_download("cifar10", address, root)
        (part,) = root.rglob("*.part")
        part.write_bytes(b"x" * 1000)
        assert len(datasets.load("cifar10", root).test.labels) == 41
        assert [begin for _, begin, _ in sent] == [0, 1000, 0]
    for size in (len(content), len(content) + 5):  # as much as there is, and more
        other = tmp_path / str(size)
        other.mkdir()
        with _server(_site(), behave=_with_ranges(_site(), breaks=1)) as (address, sent):
            _point_builders_at(monkeypatch, address)
            _register(monkeypatch, address, _site())
            _fails_to_download("cifar10", address, other)
            (part,) = other.rglob("*.part")
            part.write_bytes(b"x" * size)
            assert len(datasets.load("cifar10", other).test.labels) == 41
            assert [begin for _, begin, _ in sent] == [0, 0]


def test_a_download_of_known_size_shows_how_far_it_is(tmp_path, monkeypatch):
    from data.base import download

    seen = []

    @contextlib.contextmanager
    def counting(what, total, unit, done=0):
        seen.append([what, total, unit.name, done])
        yield lambda more: seen[-1].append(more)

    monkeypatch.setattr(download.progress, "counting", counting)
    files = {"/a.bin": bytes(3_000_000)}
    part = tmp_path / "a.part"
    with _server(files, behave=_with_ranges(files, breaks=1)) as (address, _):
        with pytest.raises(download.Unavailable):
            download.download(f"{address}a.bin", part, 3_000_000)
        assert download.download(f"{address}a.bin", part, 3_000_000)
    first, second = seen
    assert first[:4] == ["downloading a.bin", 3_000_000, "MB", 0]
    have = _whole_blocks(1_500_000)
    assert second[:4] == ["downloading a.bin", 3_000_000, "MB", have]
    assert sum(second[4:]) == 3_000_000 - have
    assert part.read_bytes() == files["/a.bin"]


# --- two processes at once, and folders that are not whole


def test_two_at_once_prepare_once(tmp_path, monkeypatch, capsys):
    from data.images import originals

    svhn, root = specs.spec("svhn"), tmp_path / "data"
    waiting, found = threading.Event(), []

    def hold_up(handler):
        if handler.command == "GET":
            waiting.wait(60)
        return False

    class Noticing(io.StringIO):
        def write(self, text):
            if "waiting" in text:
                waiting.set()
            return super().write(text)

    with _server(_site(), behave=hold_up) as (address, asked):
        _point_builders_at(monkeypatch, address)
        monkeypatch.setattr(sys, "stderr", said := Noticing())
        threads = [
            threading.Thread(target=lambda: found.append(originals.prepare(svhn, root)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert found == [root / "svhn_cropped" / found[0].name] * 2
    assert [path for method, path in asked if method == "GET"].count("/train_32x32.mat") == 1
    assert f"another process prepares svhn in {root}; waiting for it" in said.getvalue()
    assert not list(root.glob(".*"))


def _prepare(*arguments):
    from data.prepare import main

    main([*map(str, arguments)])


def test_a_version_that_is_not_whole_is_named(prepared, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(prepared[0] / "cifar10", root / "cifar10")
    (folder,) = (root / "cifar10").iterdir()
    _prepare("cifar10", "--data-dir", root)
    assert capsys.readouterr().out == f"already prepared: {folder}\n"
    (shard,) = folder.glob("*-test*")
    whole = shard.read_bytes()
    for left in (b"", whole[: len(whole) // 2]):
        shard.write_bytes(left)
        with pytest.raises(UserError, match=r"(is damaged|cannot have 41).*; delete that"):
            _prepare("cifar10", "--data-dir", root)
    shard.write_bytes(whole)
    shard.rename(tmp_path / "shard")
    for action in (datasets.load, lambda name, root: _prepare(name, "--data-dir", root)):
        with pytest.raises(UserError, match=f"{shard.name} is missing; delete that folder"):
            action("cifar10", root)
    (folder / "dataset_info.json").unlink()
    for named in (root, root / "cifar10", folder):
        for action in (datasets.load, lambda name, root: _prepare(name, "--data-dir", root)):
            with pytest.raises(UserError) as caught:
                action("cifar10", named)
            assert _one_line(caught) == (
                f"dataset 'cifar10' in {folder}: dataset_info.json is missing, as after a copy "
                f"that broke off; copy it whole, or delete {folder} and prepare it again (python "
                "-m data.prepare cifar10 --data-dir DIR)"
            )
    assert folder.exists()  # it is not ours to delete


def test_an_empty_version_and_what_a_killed_process_left_are_mended(tmp_path, monkeypatch):
    root = tmp_path / "data"
    with _server(_site()) as (address, _):
        _point_builders_at(monkeypatch, address)
        _prepare("cifar10", "--data-dir", root)
        (folder,) = (root / "cifar10").iterdir()
        shutil.rmtree(folder)
        folder.mkdir()
        (root / ".cifar10.lock").touch()
        (root / "cifar10" / f"incomplete.trunk_{folder.name}").mkdir()
        assert len(datasets.load("cifar10", root).test.labels) == 41
    assert list((root / "cifar10").iterdir()) == [folder]
    assert not list(root.glob(".*"))


# --- what may be named as the data folder


def test_the_datasets_own_folder_and_a_versions_are_taken_for_what_they_are(prepared, tmp_path):
    for name, loaded in prepared[1].items():
        source = Path(loaded.source)
        named = [source, *source.parents[: 1 + name.count("x")]]
        if name == "emnist":
            named = [source, source.parent, source.parent.parent]
        for folder in named:
            again = datasets.load(name, folder)
            assert (again.fingerprint, Path(again.source)) == (loaded.fingerprint, source)
    copy = tmp_path / "renamed"
    shutil.copytree(prepared[1]["svhn"].source, copy)
    assert datasets.load("svhn", copy).fingerprint == prepared[1]["svhn"].fingerprint
    with pytest.raises(UserError, match=f"{copy} holds svhn_cropped, not cifar10; name another"):
        datasets.load("cifar10", copy)


@pytest.mark.parametrize("address", ["gs://bucket/data", "hf://datasets/x", "s3:/x", "https://x"])
def test_an_address_is_no_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for action in (datasets.load, lambda name, root: _prepare(name, "--data-dir", root)):
        with pytest.raises(UserError, match=f"^--data-dir {address} is an address"):
            action("svhn", address)
    monkeypatch.setenv("TFDS_DATA_DIR", address)
    with pytest.raises(UserError, match=f"^TFDS_DATA_DIR {address} is an address"):
        datasets.load("svhn")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_named_folder_must_be_there_and_the_default_one_is_made(tmp_path, monkeypatch):
    gone, home = tmp_path / "tpyo" / "data", tmp_path / "home" / "tensorflow_datasets"
    with _server(_site()) as (address, asked):
        _point_builders_at(monkeypatch, address)
        with pytest.raises(UserError) as caught:
            datasets.load("cifar10", gone)
        assert _one_line(caught) == (
            f"--data-dir {gone} does not exist; correct it, or make and fill it with python -m "
            f"data.prepare cifar10 --data-dir {gone}"
        )
        monkeypatch.setenv("TFDS_DATA_DIR", str(gone))
        with pytest.raises(UserError, match=f"^TFDS_DATA_DIR {gone} does not exist"):
            datasets.load("cifar10")
        assert (asked, gone.parent.exists()) == ([], False)
        _prepare("cifar10")  # it makes what it is told to fill
        assert folders.prepared_folder(specs.spec("cifar10"), gone)
        monkeypatch.delenv("TFDS_DATA_DIR")
        assert Path(datasets.load("cifar10").source).is_relative_to(home)


# --- folders as stock TFDS writes them, and damaged ones


def _slow_masked_crc(data):
    """CRC-32C bit by bit, as its definition has it: the oracle for the table-driven one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _write_tfrecord(path, records):
    with open(path, "wb") as file:
        for record in records:
            head = len(record).to_bytes(8, "little")
            for part in (head, record):
                file.write(part)
                file.write(_slow_masked_crc(part).to_bytes(4, "little"))


def _as_tfrecord(prepared_root, root, splits, name="svhn"):
    """Write records in TFDS's default format, as `name`; `splits`: split -> list of shards."""
    source = folders.prepared_folder(specs.spec(name), prepared_root)
    folder = root / specs.spec(name).tfds_name / source.name
    folder.mkdir(parents=True)
    shutil.copy(source / "features.json", folder)
    about = json.loads((source / "dataset_info.json").read_text())
    about["fileFormat"] = "tfrecord"
    template = about["splits"][0]["filepathTemplate"]
    about["splits"] = [
        {
            "name": split,
            "filepathTemplate": template,
            "numBytes": "1",
            "shardLengths": [str(len(shard)) for shard in shards],
        }
        for split, shards in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps(about))
    short = specs.spec(name).tfds_name.split("/")[0]
    for split, shards in splits.items():
        for i, shard in enumerate(shards):
            file = f"{short}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}"
            _write_tfrecord(folder / file, shard)
    return folder


def _example(image, label):
    from tensorflow_datasets.proto import tf_example_pb2

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def _examples(split):
    return [
        _example(image, int(label)) for image, label in zip(split.images, split.labels, strict=True)
    ]


def test_crc32c_of_rows_of_different_lengths():
    from data.images import tfrecord

    # The check value that every description of CRC-32C gives, before TFRecord's rotation.
    check = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c([b"123456789"]).tolist() == [check]
    rows = [b"", b"a", b"\x00" * 32, bytes(range(200)), b"123456789", b"b"]
    assert tfrecord.masked_crc32c(rows).tolist() == [_slow_masked_crc(row) for row in rows]


def test_stock_folder_in_tfrecord_with_extra_split_is_used_as_it_is(prepared, tmp_path):
    root, loaded, _ = prepared
    train, test = _examples(loaded["svhn"].train)[:30], _examples(loaded["svhn"].test)
    splits = {"train": [train[:11], train[11:]], "test": [test], "extra": [[b"never read"]]}
    folder = _as_tfrecord(root, tmp_path / "data", splits)
    before = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    again = datasets.load("svhn", tmp_path / "data")
    assert np.array_equal(again.train.images, loaded["svhn"].train.images[:30])
    assert np.array_equal(again.train.labels, loaded["svhn"].train.labels[:30])
    assert np.array_equal(again.test.images, loaded["svhn"].test.images)
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == before
    assert again.source == str(folder)


def _refuses(root, name="svhn", damaged=True):
    """The message; it advises to delete the folder where it is damaged, and only there."""
    with pytest.raises(UserError) as caught:
        datasets.load(name, root)
    message = _one_line(caught)
    assert str(root / specs.spec(name).tfds_name) in message
    assert ("delete that folder and prepare it again" in message) == damaged
    assert ("prepare it in another folder" in message) != damaged
    return message


def test_tfrecord_damage_is_found(prepared, tmp_path):
    root, loaded, _ = prepared
    test = _examples(loaded["svhn"].test)
    folder = _as_tfrecord(root, tmp_path, {"train": [test[:3]], "test": [test[:2]]})
    (shard,) = folder.glob("*-train*")
    whole = shard.read_bytes()
    for cut in (len(whole) - 1, 5):
        shard.write_bytes(whole[:cut])
        assert "truncated" in _refuses(tmp_path)
    for at in (3, 9, 100, len(whole) - 1):  # a length, its checksum, a record, its checksum
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "damaged" in _refuses(tmp_path)
    _write_tfrecord(shard, test[:2])
    assert "not as many records" in _refuses(tmp_path)


def test_array_record_missing_or_truncated_shard(prepared, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(prepared[0] / "cifar10", root / "cifar10")
    (shard,) = (root / "cifar10").rglob("*-train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "'train' is damaged" in _refuses(root, "cifar10")
    shard.unlink()
    assert f"shard {shard.name} is missing" in _refuses(root, "cifar10")


@pytest.mark.parametrize(
    ("image", "label", "problem"),
    [
        (np.zeros((32, 32, 3), np.uint8), 10, "label 10, not in 0 to 9"),
        (np.zeros((32, 32, 3), np.uint8), -1, "label -1, not in 0 to 9"),
        (np.zeros((32, 28, 3), np.uint8), 0, "a 32x28 image of mode RGB, not 32x32 RGB"),
        (np.zeros((32, 32), np.uint8), 0, "a 32x32 image of mode L, not 32x32 RGB"),
    ],
)
def test_images_and_labels_that_do_not_fit(prepared, tmp_path, image, label, problem):
    good = _examples(prepared[1]["svhn"].test)
    _as_tfrecord(
        prepared[0], tmp_path, {"train": [[good[0], _example(image, label)]], "test": [good]}
    )
    message = _refuses(tmp_path)
    assert problem in message
    assert "record 1 of split 'train'" in message


def test_jpeg_is_named_and_no_reason_to_delete(prepared, tmp_path):
    from tensorflow_datasets.proto import tf_example_pb2

    good = _examples(prepared[1]["svhn"].test)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, "JPEG")
    for content, damaged, said in (
        (buffer.getvalue(), False, "its images are JPEG, not PNG"),
        (b"none", True, "record 0 of split 'train' is unusable (its image is no PNG)"),
    ):
        example = tf_example_pb2.Example.FromString(good[0])
        example.features.feature["image"].bytes_list.value[0] = content
        root = tmp_path / str(damaged)
        _as_tfrecord(prepared[0], root, {"train": [[example.SerializeToString()]], "test": [good]})
        message = _refuses(root, damaged=damaged)
        assert said in message
        assert "object at" not in message


def test_record_that_is_no_example_and_folders_that_are_no_dataset(prepared, tmp_path):
    good = _examples(prepared[1]["svhn"].test)
    folder = _as_tfrecord(prepared[0], tmp_path, {"train": [[b"\xffnot one"]], "test": [good]})
    assert "record 0 of split 'train'" in _refuses(tmp_path)
    about = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(about | {"splits": about["splits"][:1]}))
    assert "TFDS cannot read it" in _refuses(tmp_path)
    (folder / "dataset_info.json").write_text(json.dumps(about | {"fileFormat": "riegeli"}))
    assert "riegeli, not array_record or tfrecord" in _refuses(tmp_path, damaged=False)
    (folder / "dataset_info.json").write_text(json.dumps(about | {"fileFormat": "parquet"}))
    assert "parquet, not array_record or tfrecord" in _refuses(tmp_path, damaged=False)
    (folder / "dataset_info.json").write_text("{")
    assert "dataset_info.json is damaged" in _refuses(tmp_path)


def test_folder_of_another_datasets_classes(prepared, tmp_path):
    """cifar10's folder under emnist's name: 10 classes are not 47."""
    source = folders.prepared_folder(specs.spec("cifar10"), prepared[0])
    shutil.copytree(source, tmp_path / "emnist" / "balanced" / "3.1.0")
    assert "its classes are not this dataset's" in _refuses(tmp_path, "emnist", damaged=False)


# --- the cache


def _arrays(seed=0):
    random = np.random.default_rng(seed)
    return {
        "train_images": random.integers(0, 256, (20, 4, 4, 1), np.uint8),
        "train_labels": random.integers(0, 10, 20).astype(np.int32),
        "test_images": random.integers(0, 256, (5, 4, 4, 1), np.uint8),
        "test_labels": random.integers(0, 10, 5).astype(np.int32),
    }


def _never():
    raise AssertionError("built although it is cached")


def test_cache_gives_the_same_read_only_arrays(tmp_path):
    built, mark = cache.fetch("some", b"key", _arrays)
    cached, mark_again = cache.fetch("some", b"key", _never)
    assert mark == mark_again == cache.fingerprint(_arrays())
    for name, array in _arrays().items():
        for got in (built[name], cached[name]):
            assert np.array_equal(got, array)
            assert got.dtype == array.dtype
            assert not got.flags.writeable
            assert type(got) is np.ndarray
    with pytest.raises(AssertionError, match="although"):
        cache.fetch("some", b"other key", _never)
    assert not list((tmp_path / "cache" / "datasets").glob(".*"))


def test_fingerprint_depends_on_every_array_and_its_type():
    marks = {cache.fingerprint(_arrays())}
    for name in cache.NAMES:
        changed = _arrays()
        changed[name].flat[-1] ^= 1
        marks.add(cache.fingerprint(changed))
    other = _arrays()
    other["test_labels"] = other["test_labels"].view(np.uint32)  # the same bytes
    marks.add(cache.fingerprint(other))
    flat = _arrays()
    flat["test_images"] = flat["test_images"].reshape(5, 2, 8, 1)
    marks.add(cache.fingerprint(flat))
    assert len(marks) == 7


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone", "no json", "swapped"])
def test_damaged_cache_is_built_again(tmp_path, damage):
    cache.fetch("some", b"key", _arrays)
    (folder,) = (tmp_path / "cache" / "datasets").iterdir()
    file = folder / "train_images.npy"
    whole = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(whole[:-1])
        case "flipped":
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "empty":
            file.write_bytes(b"")
        case "gone":
            file.unlink()
        case "no json":
            (folder / "meta.json").write_text("[")
        case "swapped":
            shutil.copy(folder / "test_images.npy", file)
    arrays, _ = cache.fetch("some", b"key", _arrays)
    assert np.array_equal(arrays["train_images"], _arrays()["train_images"])
    cache.fetch("some", b"key", _never)  # and it is whole again


def test_unwritable_cache_is_one_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "file"))
    arrays, _ = cache.fetch("some", b"key", _arrays)
    assert np.array_equal(arrays["test_images"], _arrays()["test_images"])
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("warning: some is not cached")
    assert output.err.count("\n") == 1
    assert "TRUNK_CACHE_DIR" in output.err


def test_interrupted_write_leaves_nothing_that_is_read(tmp_path, monkeypatch, capsys):
    def full_disk(*arguments, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        cache.fetch("some", b"key", _arrays)
    assert "No space left" in capsys.readouterr().err
    home = tmp_path / "cache" / "datasets"
    assert list(home.iterdir()) == []
    # A killed process cannot tidy up; the next writer does, once the folder is old.
    digest, dead = "0" * 24, 2**22 + 1  # Linux has no process of a number that high
    old, new = (f".{name}-{digest}.{dead}.tmp" for name in ("old", "new"))
    others = (f".old.{dead}.tmp", ".notes.tmp", f".old-{digest}.{os.getppid()}.tmp")  # not ours
    for name, age in ((old, 7200), (new, 60), *((name, 7200) for name in others)):
        (home / name).mkdir()
        os.utime(home / name, (time.time() - age,) * 2)
    cache.fetch("some", b"key", _arrays)
    assert {path.name for path in home.glob(".*")} == {new, *others}


@pytest.mark.parametrize("length", [60, 250])
def test_a_long_name_is_cached_and_what_it_leaves_is_removed(length, tmp_path, monkeypatch, capsys):
    name, home = length * "n", tmp_path / "cache" / "datasets"
    beside = []
    with monkeypatch.context() as patch:
        patch.setattr(
            writing, "_beside", lambda path, of=writing._beside: beside.append(of(path)) or of(path)
        )
        cache.fetch_described(name, b"key", lambda: (_arrays(), None), lambda _: [b"other"])
    assert capsys.readouterr().err == ""
    cache.fetch(name, b"key", _never)
    for path in beside:  # as of a process that was killed a while ago
        left = path.with_name(path.name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))
        left.touch()
        os.utime(left, (time.time() - 7200,) * 2)
    cache.fetch("some", b"key", _arrays)
    assert len(beside) == 2
    assert list(home.glob(".*")) == []


def test_cache_follows_the_prepared_folder(prepared, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(prepared[0] / "svhn_cropped", root / "svhn_cropped")
    folder = folders.prepared_folder(specs.spec("svhn"), root)
    home = tmp_path / "cache" / "datasets"
    first = datasets.load("svhn", root)
    datasets.load("svhn", root)
    assert len(list(home.iterdir())) == 1
    (shard,) = folder.glob("*-test*")
    os.utime(shard, (1, 1))
    datasets.load("svhn", root)
    assert len(list(home.iterdir())) == 2
    about = json.loads((folder / "dataset_info.json").read_text())
    about["description"] = "STAND-IN, not it. Report numbers on it as 'half of it', never as SVHN."
    (folder / "dataset_info.json").write_text(json.dumps(about))
    third = datasets.load("svhn", root)
    assert len(list(home.iterdir())) == 3
    assert (third.stand_in, third.title) == (True, "half of it")
    # An edit that leaves size and time as they were, which a copying tool may do.
    info, times = folder / "dataset_info.json", (folder / "dataset_info.json").stat()
    info.write_text(info.read_text().replace("STAND-IN, not it", "stand-in, not it"))
    os.utime(info, ns=(times.st_atime_ns, times.st_mtime_ns))
    datasets.load("svhn", root)
    assert len(list(home.iterdir())) == 4
    assert first.title == "SVHN (cropped) stand-in"  # by its sizes
    assert first.fingerprint == third.fingerprint == prepared[1]["svhn"].fingerprint


OFFICIAL = (73257, 26032)
SAID = "STAND-IN, not it. Report numbers on it as '{}', never as SVHN."


@pytest.mark.parametrize(
    ("name", "sizes", "description", "title"),
    [
        ("svhn", OFFICIAL, "", None),
        ("svhn", OFFICIAL, SAID.format("half of it").removeprefix("STAND-IN, "), None),
        ("svhn", OFFICIAL, SAID.format("half of it"), "half of it"),
        ("svhn", OFFICIAL, "STAND-IN", "SVHN (cropped) stand-in"),
        ("svhn", (73256, 26032), "", "SVHN (cropped) stand-in"),
        ("svhn", (70, 30), SAID.format("half of it"), "half of it"),
        # it may not be called what it is not, nor break the line that it stands in
        ("svhn", (70, 30), SAID.format("SVHN (cropped)"), "SVHN (cropped) stand-in"),
        ("svhn", (70, 30), SAID.format("a\nb"), "SVHN (cropped) stand-in"),
        ("svhn", (70, 30), SAID.format("a" * 81), "SVHN (cropped) stand-in"),
        ("digits", (70, 30), "", None),  # there are no official splits
    ],
)
def test_one_rule_tells_a_stand_in_and_names_it(name, sizes, description, title):
    spec = specs.spec(name)
    assert stand_ins.is_stand_in(spec, sizes, description) == (title is not None)
    assert stand_ins.title_of(spec, sizes, description) == (title or spec.title)
    assert stand_ins.has_title_of_one(spec, title or spec.title) == (title is not None)


def test_no_code_asks_whether_a_dataset_is_emnist():
    """What differs for one is a field of it, or stands in a recipe's file."""
    asking = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for package in ("data", "trunk_jax", "trunk_torch_ref", "parity", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(part, ast.Constant) and part.value == "emnist" for part in ast.walk(node)
        )
    ]
    assert asking == []


def test_start_from_the_cache_imports_neither_tfds_nor_scikit_learn(prepared):
    """These imports are most of a second start's time, so their absence is what is checked."""
    datasets.load("digits")
    datasets.load("emnist", prepared[0])
    code = (
        "import sys; from data.images import datasets; "
        f"datasets.load('digits'); datasets.load('emnist', {str(prepared[0])!r}); "
        "print({'sklearn', 'tensorflow_datasets', 'PIL', 'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# --- the real folders


@pytest.mark.slow
@needs_stand_ins
@pytest.mark.parametrize(
    ("name", "sizes", "title"),
    [
        ("emnist", (90605, 18800), "EMNIST stand-in"),
        ("svhn", (20023, 6009), "SVHN-gray stand-in"),
    ],
)
def test_stand_ins(name, sizes, title):
    loaded = datasets.load(name, STAND_INS)
    assert (len(loaded.train.labels), len(loaded.test.labels)) == sizes
    assert (loaded.stand_in, loaded.title) == (True, title)
    if name == "emnist":
        assert (np.bincount(loaded.test.labels) == 400).all()
    else:  # gray photographs: three equal channels
        assert (loaded.test.images == loaded.test.images[..., :1]).all()


@pytest.mark.slow
def test_real_cifar10():
    if folders.prepared_folder(specs.spec("cifar10"), PREPARED) is None:
        pytest.skip(f"CIFAR-10 is not prepared in {PREPARED}")
    loaded = datasets.load("cifar10", PREPARED)
    assert (np.bincount(loaded.train.labels) == 5000).all()
    assert (np.bincount(loaded.test.labels) == 1000).all()
    assert (loaded.stand_in, loaded.title) == (False, "CIFAR-10")
    # The usual channel means of the training images, known to four places; an integer sum
    # divided once, so the only error is that of the printed value.
    means = loaded.train.images.mean((0, 1, 2), dtype=np.float64) / 255
    assert np.abs(means - [0.4914, 0.4822, 0.4465]).max() <= 5e-5
