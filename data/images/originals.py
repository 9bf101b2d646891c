"""Preparing a dataset with TFDS's own builders, without TensorFlow.

TFDS's builders name the addresses, checksums, splits, keys and ids. What they would need
TensorFlow for is done here: unpacking and parsing the originals, and encoding images as
PNG, which TFDS takes as bytes.
"""

import contextlib
import dataclasses
import gzip
import io
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import utils
from tensorflow_datasets.core.download import checksums, resource
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError, promise
from tensorflow_datasets.core.utils import file_utils

from data.base import download, locking, progress
from data.base.download import Unavailable, reason
from data.base.errors import UserError
from data.images.cache import SPLITS
from data.images.folders import prepared_folder
from data.images.specs import Spec

_UNFINISHED = "incomplete.trunk_"  # before the name of a folder that is being written
_UNPACKED = ".unpacked"  # at that of an archive's content


def prepare(spec: Spec, root: Path) -> Path:
    """Download `spec` and write it, as TFDS would, in array_record under `root`.

    Returns the prepared folder. If another process is at it, waits for that one and returns
    what is there then. Raises UserError when `root` cannot be written, a server cannot be
    reached, or a download is not what it should be.
    """
    wanted = f"dataset {spec.name!r} is not prepared in {root / spec.tfds_folder}"
    elsewhere = (
        f"prepare it where that works (python -m data.prepare {spec.name} --data-dir DIR), "
        "then pass --data-dir DIR or set TFDS_DATA_DIR=DIR here"
    )
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{wanted}, and {existing} is not a writable folder; {elsewhere}")

    def wait() -> None:
        print(f"another process prepares {spec.name} in {root}; waiting for it", file=sys.stderr)

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = re.sub(r"[^\w.-]", "-", spec.name)  # of tfds:NAME
        with locking.alone(root / f".{lock}.lock", wait):
            found = prepared_folder(spec, root)
            return _written(spec, root) if found is None else found
    except Unavailable as error:
        raise UserError(f"{wanted}, and {error}; {elsewhere}") from None
    except OSError as error:  # no space, no permission: TFDS's own has no number and many lines
        raise UserError(
            f"{wanted}, and it could not be written there: {error.strerror or reason(error)}; "
            f"choose another folder with --data-dir, or {elsewhere}"
        ) from None


def _written(spec: Spec, root: Path) -> Path:
    """Download and write; nobody else does so meanwhile."""
    builder = tfds.builder(spec.tfds_name, data_dir=str(root), file_format="array_record")
    folder = Path(builder.data_dir)
    unfinished = folder.with_name(_UNFINISHED + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty one: TFDS would take it for the dataset
    with contextlib.ExitStack() as stack:
        _replaced(stack, file_utils, "_get_incomplete_dir", lambda _: str(unfinished))
        _take_over(builder, stack)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return folder


def _take_over(builder: tfds.core.GeneratorBasedBuilder, stack: contextlib.ExitStack) -> None:
    """Replace the parts of `builder` that need TensorFlow, and silence it, until `stack` ends."""
    official = builder._split_generators

    def split_generators(manager: tfds.download.DownloadManager) -> list | dict:
        splits = official(_Downloads(manager, builder, stack))
        print(f"writing {builder.info.full_name} under {builder.data_dir_root}", file=sys.stderr)
        return [s for s in splits if s.name in SPLITS] if isinstance(splits, list) else splits

    builder._split_generators = split_generators
    builder._generate_examples = _EXAMPLES[builder.name]
    tfds.disable_progress_bar()
    _replaced(stack, utils, "tqdm", _shown)
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # TFDS prints to it


def _replaced(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Give a module of TFDS another function, until `stack` ends."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _shown(items: Iterable, *, desc: str = "", total: int | None = None, unit: str = "", **_: Any):
    """In place of TFDS's progress bar, which it has for splits, for examples and for writing."""
    if "example" not in unit:
        return iter(items)
    what = "writing" if desc.startswith("Shuffling") else desc.rstrip(".").lower()
    return progress.counted(what, items, total)


class _Downloads:
    """What the builders ask of TFDS's download manager, without TensorFlow or an unused split.

    TFDS still says where files lie, uses again what is there (also under downloads/manual), and
    checks checksums. The downloading proper is ours, so that it goes on where it stopped.
    """

    def __init__(
        self,
        manager: tfds.download.DownloadManager,
        builder: tfds.core.GeneratorBasedBuilder,
        stack: contextlib.ExitStack,
    ):
        self._manager, self._builder, self._stack = manager, builder, stack
        manager._download = self._fetched  # what TFDS calls for a file that it does not have yet

    def _fetched(self, asked: tfds.download.Resource) -> promise.Promise:
        """A promise of the file's path, which is kept already."""
        manager, url = self._manager, asked.url
        known = manager._url_infos.get(url)  # those of all datasets
        part = download.part_of(Path(manager._get_dl_path(asked)))
        part.parent.mkdir(parents=True, exist_ok=True)
        begun = download.download(url, part, known and int(known.size))
        info = _info(part, url)
        if begun and known and info.checksum != known.checksum:  # what we had was of another file
            part.unlink()
            download.download(url, part, int(known.size))
            info = _info(part, url)
        try:
            manager._register_or_validate_checksums(url=url, url_info=info, path=part)
        except NonMatchingChecksumError:
            part.unlink()
            raise
        file = manager._get_dl_path(asked, *([info.checksum] if known else []))
        resource.write_info_file(
            url=url,
            path=file,
            dataset_name=self._builder.name,
            original_fname=info.filename,
            url_info=info,
        )
        os.replace(part, file)
        return promise.Promise.resolve(file)

    def download(self, urls: str | dict[str, str]) -> Path | dict[str, Path | None]:
        """Fetch one address, or those of a dict whose key is a split that is used."""
        skipped = {}
        if isinstance(urls, dict):
            skipped = {key: None for key in urls if key not in SPLITS}
            urls = {key: url for key, url in urls.items() if key in SPLITS}
        try:
            found = self._manager.download(urls)
        except NonMatchingChecksumError:
            problem = f"{_names(urls)} is not the file that TFDS expects (wrong checksum)"
            raise Unavailable(problem) from None
        return found | skipped if isinstance(found, dict) else found

    def _file(self, url: str) -> Path:
        found = self.download(url)
        assert not isinstance(found, dict), "of one address one file comes"
        return Path(found)

    def download_and_extract(self, url: str | dict[str, str]) -> str | dict[str, Path]:
        """Fetch an archive and unpack it into a folder that goes once all is prepared.

        Of a dict, which is of single compressed files, each is fetched and stays as it is.
        """
        if isinstance(url, dict):
            return {key: self._file(each) for key, each in url.items()}
        archive = self._file(url)
        folder = archive.with_name(archive.name + _UNPACKED)
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            if url.endswith(".zip"):
                with zipfile.ZipFile(archive) as opened:
                    # the other configurations need not be unpacked; "emnist" has "mnist" in it
                    own = f"-{self._builder.builder_config_name}-"
                    opened.extractall(folder, [n for n in opened.namelist() if own in n])
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(folder, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise Unavailable(f"{url} cannot be unpacked ({reason(error)})") from None
        return str(folder)

    def extract(self, paths: dict[str, str]) -> dict[str, str]:
        """Single compressed files stay as they are: the parsers below open them."""
        return paths


def _info(file: Path, url: str) -> checksums.UrlInfo:
    """What TFDS keeps of a downloaded file."""
    found = checksums.compute_url_info(epath.Path(file))
    return dataclasses.replace(found, filename=os.path.basename(url))


def _names(urls: str | dict[str, str]) -> str:
    return urls if isinstance(urls, str) else " or ".join(urls.values())


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


def _mnist_examples(num_examples: int, data_path: str, label_path: str) -> Keyed:
    """Gzipped IDX files, images uint8 [N, 28, 28] as stored (EMNIST's transposed).

    TFDS takes the first `num_examples`: of EMNIST Letters there are more.
    """
    images, labels = _idx(data_path)[:num_examples], _idx(label_path)[:num_examples]
    if images.shape != (num_examples, 28, 28) or labels.shape != (num_examples,):
        raise Unavailable(f"the archive does not hold the {num_examples} images it should")
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


def _cifar100_examples(split_prefix: str, filepaths: Iterable[str]) -> Keyed:
    """CIFAR-100's binary files: as CIFAR-10's, with a label of 20 classes before it."""
    rows = np.concatenate(
        [np.fromfile(path, np.uint8).reshape(-1, 2 + 3 * 32 * 32) for path in filepaths]
    )
    images = rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        yield (
            i,
            {
                "id": f"{split_prefix}{i:05d}",
                "image": _png(image),
                "label": int(row[1]),
                "coarse_label": int(row[0]),
            },
        )


_EXAMPLES = {
    "svhn_cropped": _svhn_examples,
    "emnist": _mnist_examples,
    "mnist": _mnist_examples,
    "fashion_mnist": _mnist_examples,
    "kmnist": _mnist_examples,
    "cifar10": _cifar10_examples,
    "cifar100": _cifar100_examples,
}

# By TFDS's names, with the configuration where there are several.
PREPARED = (
    *("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn_cropped"),
    *(
        f"emnist/{name}"
        for name in ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
    ),
)
