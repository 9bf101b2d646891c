"""What has to be said to XLA before JAX loads: how much of its log is shown, and its flags.

Importing this module loads nothing.
"""

import functools
import os
import re
import subprocess
import sys

from data.base.errors import UserError

# Run twice, the same program gives the same bits. Kernels are then not chosen by timing them.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_OURS = re.compile(  # what this program sets, here and in its tests
    rf"{DETERMINISTIC}|--xla_gpu_autotune_level=[0-4]|"
    r"--xla_force_host_platform_device_count=[1-9]\d*"
)
_PATIENCE_S = 60.0


def quiet() -> None:
    """Keep XLA's log out of a command's output, unless the user has chosen a level.

    On a GPU it has lines such as `cuda_timer.cc: Delay kernel timed out`, which are about its own
    timing of kernels. What goes wrong with a computation is an exception, and is shown. Set
    TF_CPP_MIN_LOG_LEVEL=0 to see all of the log.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def flags(*, deterministic: bool = False, autotune: int | None = None) -> str:
    """XLA's flags for these wishes.

    `autotune`: how much XLA times convolutions and matrix products when it compiles for a GPU, 0
    (not at all) to 4 (XLA's default: also checks them); None leaves it as it is.

    >>> flags(autotune=0)
    '--xla_gpu_autotune_level=0'
    """
    level = [] if autotune is None else [f"--xla_gpu_autotune_level={autotune}"]
    return " ".join([DETERMINISTIC] * deterministic + level)


def need_known_flags(text: str) -> None:
    """UserError if XLA_FLAGS holds what this XLA does not know: it would end the process.

    Asked in another process, and only where somebody else has set flags.
    """
    if all(_OURS.fullmatch(word) for word in text.split()):
        return
    known = _asked(text)
    if known is not None:
        raise UserError(f"XLA_FLAGS={text:.200}: XLA refuses it ({known:.200}); unset XLA_FLAGS")


@functools.cache
def _asked(text: str) -> str | None:
    """What XLA says of flags before it ends the process; None if it goes on."""
    environment = os.environ | {"XLA_FLAGS": text, "TF_CPP_MIN_LOG_LEVEL": "2"}
    code = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):  # no process, no answer: XLA itself will tell
        return None
    said = [line for line in done.stderr.splitlines() if "XLA_FLAGS" in line]
    return said[0].partition("] ")[2] or said[0] if done.returncode and said else None


def set_flags(text: str) -> None:
    """Add flags after the user's own XLA_FLAGS. Of two settings of one flag the later counts."""
    if text:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {text}".strip()
