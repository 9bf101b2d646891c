"""What has to be said to XLA before JAX loads: how much of its log is shown, and its flags.

Importing this module loads nothing.
"""

import os

# Run twice, the same program gives the same bits. Kernels are then not chosen by timing them.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


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


def set_flags(text: str) -> None:
    """Add flags after the user's own XLA_FLAGS. Of two settings of one flag the later counts."""
    if text:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {text}".strip()
