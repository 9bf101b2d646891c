"""What the machine, and the container that we may be in, allows us: cores and memory.

Systems differ in what they say of themselves: what one does not say is asked for otherwise, or is
None. Linux says it in files, whose places are arguments so that tests can write such files.
"""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 2**60  # bytes; cgroup v1 states "no limit" as a number near 2**63


def cores() -> int:
    """The processor cores that this process may use; of all systems only some limit them."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lives(process: int) -> bool:
    """Whether a process of this machine, by its number, may still be at work.

    Windows is not asked, for there the question would be a signal: True.
    """
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def processor() -> str:
    """What the processor is called, as its system tells; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that this process can still have, or None if the system does not say.

    The least of what the machine has left and of what each control group that we are in (a
    container, a job of a batch system) has left. `root`: where `proc` and `sys` are.

    Example: `available_memory()` gives 8_000_000_000 on a machine with 8 GB left, and 500_000_000
    in a container there that may have 1 GB and uses half of it.
    """
    return min((left for left in _left(root) if left is not None), default=None)


def peak_memory(root: Path = _ROOT) -> int:
    """The most bytes that this process has had so far; 0 where the system does not say.

    On Linux those of its own memory alone: what `getrusage` tells there counts what the process
    that started it had, as long as that was more. `root`: where `proc` is.

    Example: `peak_memory()` gives 300_000_000 after an array of 290 MB was made and let go.
    """
    if "VmHWM" in (rows := _rows(root / "proc/self/status")):
        return 1024 * rows["VmHWM"]
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB but on macOS


def _left(root: Path) -> Iterator[int | None]:
    yield _of_the_machine(root / "proc/meminfo")
    for group, version in _groups(root):
        yield _of_a_group(group, version)


def _of_the_machine(file: Path) -> int | None:
    rows = _rows(file)
    return rows["MemAvailable"] * 1024 if "MemAvailable" in rows else None


def _groups(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of our memory control groups and of all above them, each with its version.

    A line of `/proc/self/cgroup` is ID:CONTROLLERS:PATH; version 2 names no controllers. In a
    container the path may be the host's, of which only the last part, or nothing, is mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        tops: tuple[Path, ...]
        if not controllers:
            tops, version = (mounts, mounts / "unified"), 2
        elif "memory" in controllers.split(","):
            tops, version = (mounts / "memory",), 1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for deep in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:deep]), version


def _of_a_group(folder: Path, version: int) -> int | None:
    names = {
        1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
        2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    }
    limits, usage, cache = names[version]
    limit = min((n for name in limits if (n := _number(folder / name)) is not None), default=None)
    used = _number(folder / usage)
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    # copies of files count as used, and are given up when the memory is wanted
    spare = _rows(folder / "memory.stat").get(cache, 0)
    return max(0, limit - max(0, used - spare))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # ValueError: "max", no limit
        return None


def _rows(file: Path) -> dict[str, int]:
    """The first number of each line, by the line's first word."""
    try:
        words = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in words if len(row) > 1 and row[1].isdecimal()}
