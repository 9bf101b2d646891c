"""Energy counters of the machine: RAPL on Linux, NVML on NVIDIA GPUs.

Both count joules since some start, and a reading takes microseconds, so the energy of a piece
of work is a difference of two readings. They count the whole package or card, idle power
included, and whatever else it does meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """`read()` gives joules, rising until it wraps around at `span` (None: it does not)."""

    name: str
    read: Callable[[], float]
    span: float | None = None

    def since(self, before: float) -> float:
        """Joules since the reading `before`, if it has wrapped around at most once."""
        difference = self.read() - before
        return difference + self.span if difference < 0 and self.span else difference


def counters(platform: str, powercap: Path = POWERCAP) -> tuple[list[Counter], str]:
    """The counters for work on `platform` (`cpu`, or a GPU's name), and why there are none.

    The second is empty if there are counters.
    """
    if platform == "cpu":
        return rapl(powercap)
    if platform in ("gpu", "cuda"):
        return nvml()
    return [], f"no energy counter is known for {platform}"


def rapl(powercap: Path = POWERCAP) -> tuple[list[Counter], str]:
    """One counter a processor package (Linux, Intel and AMD), and why there are none."""
    zones = sorted(powercap.glob("intel-rapl:[0-9]*"))
    packages = [zone for zone in zones if zone.name.count(":") == 1]  # the rest are parts of them
    if not packages:
        return [], f"the machine shows no RAPL counters ({powercap} has none)"

    def number(file: Path) -> float:
        return int(file.read_text()) / 1e6

    found = []
    for zone in packages:
        file = zone / "energy_uj"
        try:
            name = (zone / "name").read_text().strip()
            number(file)
            span = number(zone / "max_energy_range_uj")
        except PermissionError:
            return [], f"{file} may be read by root alone"
        except (OSError, ValueError):
            return [], f"{file} cannot be read"
        found.append(Counter(f"RAPL {name}", partial(number, file), span))
    return found, ""


def nvml() -> tuple[list[Counter], str]:
    """One counter for the first NVIDIA GPU, and why there is none. Needs nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return [], "NVML is read through the package nvidia-ml-py, which is not installed"
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
        name = pynvml.nvmlDeviceGetName(card)
    except pynvml.NVMLError as error:
        return [], f"NVML says: {error}"
    name = name.decode() if isinstance(name, bytes) else name

    def read() -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3  # it counts millijoules

    return [Counter(f"NVML {name}", read)], ""
