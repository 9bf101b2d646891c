"""Fetching the public weights: where they are, and a download that goes on where it stopped."""

import hashlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from data.base.errors import UserError

_REACH_S = 6.0  # seconds a server has to answer a first, empty request
_CONNECT_S, _READ_S = 5.0, 30.0  # seconds for a connection, and for any next bytes
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A published file. `sha256`: the hexadecimal digits that its name states, if it does."""

    url: str
    sha256: str = ""
    licence: str = "BSD-3-Clause"


_TORCHVISION = "https://download.pytorch.org/models/"
_META = "https://dl.fbaipublicfiles.com/"
SOURCES = {
    "resnet50": Source(f"{_TORCHVISION}resnet50-0676ba61.pth", "0676ba61"),
    "vgg16": Source(f"{_TORCHVISION}vgg16-397923af.pth", "397923af"),
    "convnext_base": Source(f"{_TORCHVISION}convnext_base-6075fbad.pth", "6075fbad"),
    "mobilenet_v2": Source(f"{_TORCHVISION}mobilenet_v2-b0353104.pth", "b0353104"),
    "vit_b_16": Source(f"{_TORCHVISION}vit_b_16-c867db91.pth", "c867db91"),
    "dinov2_vitb14_reg": Source(
        f"{_META}dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth", licence="Apache-2.0"
    ),
    "deit_tiny": Source(
        f"{_META}deit/deit_tiny_patch16_224-a1311bcf.pth", "a1311bcf", licence="Apache-2.0"
    ),
}


def fetch(name: str, folder: Path, get: Callable[..., requests.Response] = requests.get) -> Path:
    """The published file, downloaded into `folder` unless it is there; goes on where it stopped.

    UserError, saying how to do without, if the server cannot be reached or breaks off.
    """
    source = SOURCES[name]
    file = folder / source.url.rsplit("/", 1)[1]
    if file.exists():
        return file
    part = file.with_name(file.name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    try:
        _reach(source.url)
        headers = {"Range": f"bytes={have}-"} if have else {}
        with get(source.url, headers=headers, stream=True, timeout=(_CONNECT_S, _READ_S)) as answer:
            if answer.status_code != 416:  # 416: there is nothing after what we have
                answer.raise_for_status()
                _receive(answer, part, have if answer.status_code == 206 else 0)
    except (requests.RequestException, _NoAnswer) as error:
        reason = "no connection" if isinstance(error, requests.ConnectionError) else str(error)
        kept = f"; the first {part.stat().st_size:,} bytes are kept" if part.exists() else ""
        raise UserError(
            f"cannot download {source.url} ({reason.splitlines()[0][:300]}){kept}; download it "
            f"elsewhere and pass it: python -m parity.pretrained {name} --file FILE"
        ) from None
    check_digest(name, part)
    part.rename(file)
    return file


def _receive(answer: requests.Response, part: Path, have: int) -> None:
    length = int(answer.headers.get("Content-Length", 0)) or None
    console = Console(file=sys.stderr)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        open(part, "ab" if have else "wb") as file,
    ):
        task = progress.add_task(part.stem, total=length and length + have, completed=have)
        for block in answer.iter_content(_BLOCK):
            file.write(block)
            progress.update(task, advance=len(block))


def check_digest(name: str, file: Path) -> str:
    """The file's SHA-256. UserError if it is not the one that the publisher states."""
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    wanted = SOURCES[name].sha256
    if not found.startswith(wanted):
        raise UserError(
            f"{file} is not the published file: its SHA-256 begins {found[:8]}, not {wanted}; "
            "remove it and try again"
        )
    return found


class _NoAnswer(Exception):
    pass


def _reach(url: str) -> None:
    """Return once the server answers; raises after at most `_REACH_S`.

    In a thread, because a name that cannot be resolved heeds no timeout.
    """
    problem: list[Exception] = [_NoAnswer(f"no answer in {_REACH_S:.0f} s")]

    def ask() -> None:
        try:
            requests.head(url, allow_redirects=True, timeout=_REACH_S)
            problem.clear()
        except requests.RequestException as error:
            problem[:] = [error]
        except OSError as error:  # REQUESTS_CA_BUNDLE names no file
            problem[:] = [_NoAnswer(str(error))]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_S)
    if problem:
        raise problem[0]
