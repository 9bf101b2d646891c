"""The packages of the optional extra `onnx`: there, or one line that says how to get them."""

from importlib import metadata

from data.base.errors import UserError


def need(*packages: str) -> None:
    """UserError, with the command that installs them, if one of the packages is missing.

    need("onnx", "onnxruntime")
    """
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        raise UserError(
            f"this needs {' and '.join(missing)}, not installed here: pip install 'trunk-jax[onnx]'"
        )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
