"""Fetching the public weights: where they are, and a download that goes on where it stopped."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from data.base import download, locking
from data.base.errors import UserError


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


def fetch(name: str, folder: Path, get: Callable[..., requests.Response] | None = None) -> Path:
    """The published file, downloaded into `folder` unless it is there; goes on where it stopped.

    UserError, saying how to do without, if the server cannot be reached or breaks off.
    """
    source = SOURCES[name]
    file = folder / source.url.rsplit("/", 1)[1]

    def wait() -> None:
        print(f"another process downloads {file.name}; waiting for it", file=sys.stderr)

    folder.mkdir(parents=True, exist_ok=True)
    with locking.alone(folder / f".{file.name}.lock", wait):
        if file.exists():
            return file
        part = download.part_of(file)
        try:
            begun = download.download(source.url, part, get=get)
            if begun and not _digest(part).startswith(source.sha256):
                part.unlink()  # what we had was of another file
                download.download(source.url, part, get=get)
        except download.Unavailable as error:
            raise UserError(
                f"{error}; or download it elsewhere and pass it: python -m parity.pretrained "
                f"{name} --file FILE"
            ) from None
        check_digest(name, part)
        part.rename(file)
    return file


def check_digest(name: str, file: Path) -> str:
    """The file's SHA-256. UserError if it is not the one that the publisher states."""
    found = _digest(file)
    wanted = SOURCES[name].sha256
    if not found.startswith(wanted):
        raise UserError(
            f"{file} is not the published file: its SHA-256 begins {found[:8]}, not {wanted}; "
            "remove it and try again"
        )
    return found


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
