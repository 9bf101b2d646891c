"""Downloading a file: it goes on where it stopped, and shows how far it is.

What has come so far lies in one file, beside the place that it is for, with `.part` at its end.
"""

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import requests

from data.base import progress

_REACH_S = 6.0  # seconds a server has to answer a first, empty request
_CONNECT_S, _READ_S = 5.0, 30.0  # seconds for a connection, and for any next bytes
_BLOCK = 1 << 16  # bytes taken at a time; one that a connection breaks in is lost
_NO_HEAD = (405, 501)  # answers of servers that know no empty request


class Unavailable(Exception):
    """A download that failed. The message is one clause."""


def part_of(file: Path) -> Path:
    """Where a file lies as long as it is not whole."""
    return file.with_name(f"{file.name}.part")


def _kept(part: Path) -> str:
    """A clause that says how much of a file is there and need not be fetched again."""
    have = part.stat().st_size if part.exists() else 0
    return f"; the first {have:,} bytes are kept: the same command goes on from there" * (have > 0)


def download(
    url: str,
    part: Path,
    size: int | None = None,
    get: Callable[..., requests.Response] | None = None,
) -> bool:
    """Fetch what is missing of `part`, whose folder must be there. Whether it was begun before.

    A server that cannot go on starts again. `size`: bytes, where they are known; a `part` that
    has them all is not asked for. `get`: `requests.get`. Unavailable if the server cannot be
    reached or breaks off: what has come is kept.
    """
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        if have == size:
            return True
        part.unlink()  # of another file
        have = 0
    get = get or requests.get
    try:
        reach(url)
        much = "" if size is None else f" ({size / 1e6:,.1f} MB)"
        on = f", going on after {have / 1e6:,.1f} MB" if have else ""
        print(f"downloading {url}{much}{on}", file=sys.stderr)
        begun = _receive(url, part, have, size, get)
        if begun is None:  # nothing after what we have, which is not all: it is of another file
            begun = _receive(url, part, 0, size, get)
    except (requests.RequestException, Unavailable) as error:
        raise Unavailable(f"{url} could not be downloaded ({reason(error)}){_kept(part)}") from None
    return bool(begun)


def _receive(
    url: str, part: Path, have: int, size: int | None, get: Callable[..., requests.Response]
) -> int | None:
    """Fetch the bytes after the first `have`, or all: how many were kept.

    None if the server has none after those, and they are not the whole file.
    """
    headers = {"Accept-Encoding": "identity"}  # or a range would be one of compressed bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    with get(url, headers=headers, stream=True, timeout=(_CONNECT_S, _READ_S)) as answer:
        if answer.status_code == 416 and have:
            return have if size is None and _total(answer) in (None, have) else None
        answer.raise_for_status()
        if answer.status_code != 206 or _start(answer) not in (None, have):
            have = 0
        coming = int(answer.headers.get("Content-Length") or 0)
        total = have + coming if coming else size
        name = os.path.basename(url)
        with (
            open(part, "ab" if have else "wb") as file,
            progress.counting(f"downloading {name}", total, progress.BYTES, have) as advance,
        ):
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                advance(len(block))
    return have


def _start(answer: requests.Response) -> int | None:
    """Where a part of a file begins, as the server says."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total(answer: requests.Response) -> int | None:
    found = re.match(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def reach(url: str) -> None:
    """Return once the server of `url` answers. Unavailable, with why, after at most `_REACH_S`.

    In a thread, because a name that cannot be resolved heeds no timeout.
    """
    problems = [f"no answer in {_REACH_S:.0f} s"]

    def ask() -> None:
        try:
            answer = requests.head(url, allow_redirects=True, timeout=_REACH_S)
            refused = answer.status_code >= 400 and answer.status_code not in _NO_HEAD
            problems[:] = [f"HTTP {answer.status_code}"] if refused else []
        except Exception as error:  # a traceback of this thread would tell the user nothing
            problems[:] = [reason(error)]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_S)
    if problems:
        raise Unavailable(problems[0])


def reason(error: BaseException) -> str:
    """The innermost cause of an error, in a line: requests wraps it in four others."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    while inner := error.__cause__ or error.__context__:
        error = inner
    return (str(error) or type(error).__name__).splitlines()[0][:200]
