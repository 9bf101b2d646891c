"""`python -m benchmarks.gpu.packing`: datasets as files that travel to a machine with a GPU.

At most 64 MiB travel in a call, the repository's own files among them. So the images are packed
without loss, as strips of 500 in WebP, and dealt to as few pieces as will do. There each piece is
taken in when it comes; with the last one the arrays are decoded and their fingerprint is checked.
"""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.base import reading
from data.base.errors import UserError, run_command
from data.base.parser import Parser
from data.base.progress import Unit, counting
from data.images import cache, datasets, decoded, folders, specs

DATASETS = ("cifar10", "svhn", "emnist")
TRAVELS = 64 * 2**20  # bytes of one call
SPARE = 2**20  # for what else is in the tree
STRIP = 500  # images; a WebP is at most 16,383 pixels high
_STRIPS = Unit("strips")
EFFORT = {"lossless": True, "quality": 80, "method": 5}
_INDEX: reading.Form = {
    "pieces": int,
    "datasets": {
        str: {"fingerprint": str, "version": str, "description": str, "train": int, "test": int}
    },
}


def packed(images: np.ndarray) -> bytes:
    """Images, uint8 [n, h, w, c], one below the other in a lossless WebP.

    Those of three equal channels, or of one, cost no more than one channel does.
    """
    n, height, width, channels = images.shape
    flat = images.reshape(n * height, width, channels)
    buffer = io.BytesIO()
    Image.fromarray(flat if channels == 3 else flat[..., 0]).save(buffer, "WEBP", **EFFORT)
    return buffer.getvalue()


def unpacked(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The images that `packed` was given, of a shape (height, width, channels)."""
    pixels = np.asarray(Image.open(io.BytesIO(content), formats=["WEBP"]).convert("RGB"))
    return np.ascontiguousarray(pixels[..., : shape[2]].reshape(-1, *shape))


def repository_bytes(folder: Path) -> int:
    """Bytes of the files that git tracks or does not ignore: they travel in each call."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    files = (folder / name.decode() for name in names if name)
    return sum(file.stat().st_size for file in files if file.is_file())


def dealt(sizes: Sequence[int], room: int) -> list[range]:
    """Which of the strips go into each piece, in order, in as few pieces as will do.

    UserError if one alone is more than `room` bytes.
    """
    if max(sizes) > room:
        raise UserError(
            f"a call has room for {room / 2**20:.1f} MiB beside the repository, and a strip alone "
            f"has {max(sizes) / 2**20:.1f}; ignore some of the repository's files"
        )
    pieces, start, filled = [], 0, 0
    for place, size in enumerate(sizes):
        if filled + size > room:
            pieces.append(range(start, place))
            start, filled = place, 0
        filled += size
    return [*pieces, range(start, len(sizes))]


def pack(names: Sequence[str], data_dirs: Sequence[str | None], target: Path, room: int) -> int:
    """Write the pieces (`piece-1.zip` and on) of datasets into a folder; how many there are."""
    strips: list[tuple[str, bytes]] = []
    index: dict[str, Any] = {"datasets": {}}
    for name in names:
        data = _load(name, data_dirs)
        index["datasets"][name] = {
            "fingerprint": data.fingerprint,
            "version": data.version,
            "description": data.description,
            "train": len(data.train.labels),
            "test": len(data.test.labels),
        }
        for split in cache.SPLITS:
            examples = getattr(data, split)
            buffer = io.BytesIO()
            np.save(buffer, examples.labels, allow_pickle=False)
            strips.append((f"{name}/{split}_labels.npy", buffer.getvalue()))
            parts = [examples.images[i : i + STRIP] for i in range(0, len(examples.labels), STRIP)]
            what = f"packing {name}, {split}"
            with ThreadPoolExecutor() as pool, counting(what, len(parts), _STRIPS) as advance:
                for place, content in enumerate(pool.map(packed, parts)):
                    strips.append((f"{name}/{split}_images_{place:05d}.webp", content))
                    advance(1)
    pieces = dealt([len(content) + 256 for _, content in strips], room)
    index["pieces"] = len(pieces)
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("piece-*.zip"):
        if old.stem.removeprefix("piece-").isdecimal():
            old.unlink()
    for number, places in enumerate(pieces, 1):
        with zipfile.ZipFile(target / f"piece-{number}.zip", "w", zipfile.ZIP_STORED) as piece:
            piece.writestr("index.json", json.dumps(index))
            for place in places:
                piece.writestr(*strips[place])
    return len(pieces)


def _load(name: str, data_dirs: Sequence[str | None]) -> datasets.Dataset:
    """The dataset from the first of the folders that has it."""
    for place, folder in enumerate(data_dirs, 1):
        try:
            return datasets.load(name, folder, fetch=False)
        except UserError:
            if place == len(data_dirs):
                raise
    raise UserError("no folder of datasets")


def take(pieces: Sequence[Path], root: Path) -> list[str]:
    """Take pieces in; once all are there, decode them and return the names of the datasets.

    Until then an empty list. UserError if one is damaged or of another packing, or if what is
    decoded is not what was packed.
    """
    waiting = root / ".pieces"
    waiting.mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        _index(piece)
        shutil.copyfile(piece, waiting / piece.name)
    here = sorted(waiting.glob("piece-*.zip"))
    index = _index(here[0])
    if any(_index(piece) != index for piece in here):
        raise UserError(f"{waiting} has pieces of two packings; remove it and send them again")
    if len(here) < index["pieces"]:
        return []
    contents: dict[str, bytes] = {}
    for piece in here:
        with zipfile.ZipFile(piece) as archive:
            contents |= {n: archive.read(n) for n in archive.namelist() if n != "index.json"}
    for name, about in index["datasets"].items():
        arrays = _decoded(name, contents)
        if cache.fingerprint(arrays) != about["fingerprint"]:
            raise UserError(f"{name} came out of its pieces with another fingerprint; pack it anew")
        decoded.write(
            name,
            root,
            arrays,
            version=about["version"],
            description=about["description"],
            source="pieces that travelled",
        )
    shutil.rmtree(waiting)
    return list(index["datasets"])


def _index(piece: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(piece) as archive:
            index = reading.json_text(archive.read("index.json"))
        reading.need(index, _INDEX)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{piece} is no piece of a packing ({error}); send it again") from None
    return index


def _decoded(name: str, contents: dict[str, bytes]) -> cache.Arrays:
    shape, arrays = specs.spec(name).image_shape, {}
    for split in cache.SPLITS:
        prefix = f"{name}/{split}_images_"
        strips = [contents[key] for key in sorted(contents) if key.startswith(prefix)]
        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(lambda strip: unpacked(strip, shape), strips))
        labels = contents.get(f"{name}/{split}_labels.npy")
        if not parts or labels is None:
            raise UserError(f"{name}: its {split} split is not in the pieces; pack it anew")
        arrays[f"{split}_images"] = np.concatenate(parts)
        arrays[f"{split}_labels"] = np.load(io.BytesIO(labels), allow_pickle=False)
    return arrays


def missing(root: Path) -> list[str]:
    """The datasets that are not there, neither decoded nor prepared."""
    return [
        name
        for name in DATASETS
        if not decoded.folder_of(name, root).is_dir()
        and folders.prepared_folder(specs.spec(name), root) is None
    ]


def main(arguments: list[str] | None = None) -> None:
    """Pack here, or take in there, as the flags say."""
    parser = Parser(
        prog="python -m benchmarks.gpu.packing", description=(__doc__ or "").split("\n\n")[1]
    )
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    here = kinds.add_parser("pack", help="write the pieces")
    here.add_argument("folder", help="for the pieces; let git ignore it")
    here.add_argument(
        "--datasets",
        nargs="+",
        default=list(DATASETS),
        metavar="NAME",
        help="(default: %(default)s)",
    )
    here.add_argument(
        "--data-dir",
        action="append",
        help="folder of prepared datasets; may be "
        "given again, the first that has one counts (default: TFDS')",
    )
    there = kinds.add_parser("take", help="take pieces in, and decode them with the last")
    there.add_argument("pieces", nargs="+", help="files")
    there.add_argument("--to", required=True, help="the folder of datasets")
    options = parser.parse_args(arguments)
    if options.kind == "take":
        done = take([Path(piece) for piece in options.pieces], Path(options.to))
        print(
            f"decoded and checked: {', '.join(done)}" if done else "taken; more pieces are to come"
        )
        return
    repository = Path(__file__).parents[2]
    room = TRAVELS - repository_bytes(repository) - SPARE
    target = Path(options.folder)
    count = pack(options.datasets, options.data_dir or [None], target, room)
    for number in range(1, count + 1):
        file = target / f"piece-{number}.zip"
        size = file.stat().st_size / 2**20
        print(f"{file}: {size:.1f} MiB; a call has room for {room / 2**20:.1f}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
