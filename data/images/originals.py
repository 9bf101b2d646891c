"""Preparing a dataset with TFDS's own builders, without TensorFlow.

TFDS's builders name the addresses, checksums, splits, keys and ids. What they would need
TensorFlow for is done here: unpacking and parsing the originals, and encoding images as
PNG, which TFDS takes as bytes.
"""

import contextlib
import gzip
import io
import os
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import requests
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from data.base.errors import UserError
from data.images.cache import SPLITS
from data.images.datasets import Spec

_REACH_S = 6.0  # seconds a server has to answer a first, empty request
_CONNECT_S, _READ_S = 5.0, 30.0  # seconds for a connection, and for any next bytes
_REPORT_S = 10.0  # seconds between two lines of progress
_BLOCK = 1 << 18  # bytes taken from a connection at a time


def prepare(spec: Spec, root: Path) -> Path:
    """Download `spec` and write it, as TFDS would, in array_record under `root`.

    Returns the prepared folder. Raises UserError when `root` cannot be written, a server
    cannot be reached, or a download is not what it should be.
    """
    wanted = f"dataset {spec.name!r} is not prepared in {root / spec.tfds_name}"
    elsewhere = (
        f"prepare it where that works (python -m data.prepare {spec.name} --data-dir DIR), "
        "then pass --data-dir DIR or set TFDS_DATA_DIR=DIR here"
    )
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{wanted}, and {existing} is not a writable folder; {elsewhere}")
    try:
        builder = tfds.builder(spec.tfds_name, data_dir=str(root), file_format="array_record")
        with contextlib.ExitStack() as stack:
            _take_over(builder, stack)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except _Unavailable as error:
        raise UserError(f"{wanted}, and {error}; {elsewhere}") from None
    except OSError as error:  # no space, no permission: TFDS's own has no number and many lines
        raise UserError(
            f"{wanted}, and it could not be written there: {error.strerror or _reason(error)}; "
            f"choose another folder with --data-dir, or {elsewhere}"
        ) from None
    return Path(builder.data_dir)


class _Unavailable(Exception):
    """A download that failed, or that is not what it should be. The message is one clause."""


def _take_over(builder: tfds.core.GeneratorBasedBuilder, stack: contextlib.ExitStack) -> None:
    """Replace the parts of `builder` that need TensorFlow, and silence it, until `stack` ends."""
    official = builder._split_generators

    def split_generators(manager: tfds.download.DownloadManager) -> list | dict:
        splits = official(_Downloads(manager, builder, stack))
        print(f"writing {builder.info.full_name} under {builder.data_dir_root}", file=sys.stderr)
        return [s for s in splits if s.name in SPLITS] if isinstance(splits, list) else splits

    builder._split_generators = split_generators
    builder._generate_examples = _EXAMPLES[builder.name]
    stopped = threading.Event()
    stack.callback(setattr, downloader, "_open_url", downloader._open_url)
    stack.callback(stopped.set)  # a thread that still downloads would delay the process's end
    downloader._open_url = _opener(stopped)
    tfds.disable_progress_bar()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # TFDS prints to it


class _Downloads:
    """What the builders ask of TFDS's download manager, without TensorFlow or an unused split.

    TFDS still does the downloading proper: its folders, its reuse of what is already
    there (also under downloads/manual), its checksums.
    """

    def __init__(
        self,
        manager: tfds.download.DownloadManager,
        builder: tfds.core.GeneratorBasedBuilder,
        stack: contextlib.ExitStack,
    ):
        self._manager, self._builder, self._stack = manager, builder, stack
        self._start = manager._download  # what TFDS calls for a file that it does not have yet
        self._reached: set[str] = set()
        manager._download = self._announced

    def _announced(self, resource: tfds.download.Resource):  # a promise of the file's path
        host = requests.utils.urlparse(resource.url).netloc
        if host not in self._reached:
            _reach(resource.url)
            self._reached.add(host)
        known = self._builder.url_infos.get(resource.url)
        print(f"downloading {resource.url}{f' ({known.size})' if known else ''}", file=sys.stderr)
        return self._start(resource)

    def download(self, urls: str | dict[str, str]) -> Path | dict[str, Path | None]:
        """Fetch one address, or those of a dict whose key is a split that is used."""
        skipped = {}
        if isinstance(urls, dict):
            skipped = {key: None for key in urls if key not in SPLITS}
            urls = {key: url for key, url in urls.items() if key in SPLITS}
        try:
            found = self._manager.download(urls)
        except (requests.RequestException, DownloadError) as error:
            raise _Unavailable(
                f"{_names(urls)} could not be downloaded ({_reason(error)})"
            ) from None
        except NonMatchingChecksumError:
            problem = f"{_names(urls)} is not the file that TFDS expects (wrong checksum)"
            raise _Unavailable(problem) from None
        return found | skipped if isinstance(found, dict) else found

    def download_and_extract(self, url: str) -> str:
        """Fetch an archive and unpack it into a folder that goes once all is prepared."""
        archive = self.download(url)
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="unpacked-", dir=Path(archive).parent)
        )
        try:
            if url.endswith(".zip"):
                with zipfile.ZipFile(archive) as opened:
                    config = self._builder.builder_config_name  # the others need not be unpacked
                    opened.extractall(folder, [n for n in opened.namelist() if config in n])
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(folder, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise _Unavailable(f"{url} cannot be unpacked ({_reason(error)})") from None
        return folder

    def extract(self, paths: dict[str, str]) -> dict[str, str]:
        """Single compressed files stay as they are: the parsers below open them."""
        return paths


def _reach(url: str) -> None:
    """Return once the server of `url` answers. Raises _Unavailable after at most `_REACH_S`.

    In a thread, because a name that cannot be resolved heeds no timeout.
    """
    problems = [f"no answer in {_REACH_S:.0f} s"]

    def ask() -> None:
        try:
            answer = requests.head(url, allow_redirects=True, timeout=_REACH_S)
            refused = answer.status_code >= 400 and answer.status_code not in (405, 501)
            problems[:] = [f"HTTP {answer.status_code}"] if refused else []
        except OSError as error:  # that of requests, and of a REQUESTS_CA_BUNDLE that is missing
            problems[:] = [_reason(error)]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_S)
    if problems:
        raise _Unavailable(f"{url} could not be downloaded ({problems[0]})")


def _opener(stopped: threading.Event) -> Callable:
    """A replacement for TFDS's way to open an address, which has no timeout and retries for long.

    It yields (response, iterator of bytes), and gives up when `stopped` is set.
    """

    @contextlib.contextmanager
    def open_url(url: str, verify: bool = True) -> Iterator[tuple[requests.Response, Iterator]]:
        def blocks() -> Iterator[bytes]:
            size, reported = 0, time.monotonic()
            for block in response.iter_content(_BLOCK):
                if stopped.is_set():
                    raise DownloadError("stopped")
                yield block
                size += len(block)
                if time.monotonic() - reported > _REPORT_S:
                    reported = time.monotonic()
                    print(f"  {size / 2**20:.0f} MiB of {url}", file=sys.stderr)

        timeout = (_CONNECT_S, _READ_S)
        with requests.get(url, stream=True, timeout=timeout, verify=verify) as response:
            response.raise_for_status()
            yield response, blocks()

    return open_url


def _names(urls: str | dict[str, str]) -> str:
    return urls if isinstance(urls, str) else " or ".join(urls.values())


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in a line: requests wraps it in four others."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    while inner := error.__cause__ or error.__context__:
        error = inner
    return (str(error) or type(error).__name__).splitlines()[0]


def _png(image: np.ndarray) -> io.BytesIO:
    """Encode uint8 [H, W, C], C 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


Keyed = Iterator[tuple[int, dict]]  # TFDS's key (it shuffles by it) and features of an example


def _svhn_examples(split_prefix: str, filepath: str) -> Keyed:
    """SVHN's MATLAB files: X uint8 [32, 32, 3, N], y [N, 1], in which 10 stands for digit 0."""
    content = scipy.io.loadmat(filepath)
    images, labels = np.moveaxis(content["X"], -1, 0), content["y"].reshape(-1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield i, {"image": _png(image), "label": int(label) % 10, "id": f"{split_prefix}{i:06d}"}


def _emnist_examples(num_examples: int, data_path: str, label_path: str) -> Keyed:
    """EMNIST's gzipped IDX files, images uint8 [N, 28, 28] as stored (transposed)."""
    images, labels = _idx(data_path), _idx(label_path)
    if images.shape != (num_examples, 28, 28) or labels.shape != (num_examples,):
        raise _Unavailable(f"EMNIST's archive does not hold the {num_examples} images it should")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield i, {"image": _png(image[..., None]), "label": int(label)}


def _idx(path: str) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, number of axes, each axis (big-endian), bytes."""
    data = gzip.decompress(Path(path).read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _cifar10_examples(split_prefix: str, filepaths: Iterable[str]) -> Keyed:
    """CIFAR-10's binary files: rows of a label and 3 x 32 x 32 bytes, channel by channel."""
    rows = np.concatenate(
        [np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for path in filepaths]
    )
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, (image, label) in enumerate(zip(images, rows[:, 0], strict=True)):
        yield i, {"id": f"{split_prefix}{i:05d}", "image": _png(image), "label": int(label)}


_EXAMPLES = {
    "svhn_cropped": _svhn_examples,
    "emnist": _emnist_examples,
    "cifar10": _cifar10_examples,
}
