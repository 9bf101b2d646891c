"""Variables of the environment that would decide a result, taken away before PyTorch reads them.

PyTorch is not imported here: some of them it reads as it is imported. docs/determinism.md says
which others change last bits alone.
"""

import os
import sys

# Each allows float32 products in fewer bits, or a choice of kernels by timing.
UNWANTED = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "PYTORCH_TUNABLEOP_ENABLED",
)
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # that repeat bit for bit


def apply() -> None:
    """Take them out of the environment, with a note; to be called before PyTorch is imported."""
    for name in UNWANTED:
        if os.environ.get(name, "0") != "0":
            print(
                f"note: {name}={os.environ[name]} is ignored, for it decides results",
                file=sys.stderr,
            )
        os.environ.pop(name, None)
    if os.environ.get(_WORKSPACE) not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]
