"""Runs on the Hugging Face Hub: fetched into its cache, and sent there."""

import os
import re
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.inference import stopping

PREFIX = "hub:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NEEDED = (
    "config.json",
    "tree.json",
    stopping.FILE,
    "manifest.json",
    "summary.json",
    "metrics.jsonl",
    "README.md",
    "asl/*.json",
    "weights/*.safetensors",
)


def name_of(text: str) -> str:
    """`ORG/NAME` of `hub:ORG/NAME` or of itself. UserError if it is no such name."""
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UserError(f"{text!r:.80} is no name on the hub; it looks like hub:ORG/NAME")
    return name


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a run on the hub, in its cache; fetched if it is not there yet.

    Args:
      name: `ORG/NAME`, or `hub:ORG/NAME`.
      revision: a branch, tag or commit; the newest of `main` if None.

    UserError if huggingface_hub is missing, there is no such run, or it cannot be reached and is
    not in the cache.

    Example: `fetch("hub:someone/cifar10-tree")`

    """
    hub, name = _library(), name_of(name)
    try:
        folder = hub.snapshot_download(
            name, revision=revision, allow_patterns=list(_NEEDED), endpoint=_endpoint()
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise UserError(f"cannot fetch {name} from the hub ({_line(error)})") from None
    if not (Path(folder) / "config.json").exists():
        raise UserError(f"{name} on the hub is no run: it has no config.json")
    return Path(folder)


def push(folder: Path, name: str) -> str:
    """Send a folder to the hub as the model `ORG/NAME`, which is made if need be; its address.

    The token is huggingface_hub's own (`hf auth login`, or HF_TOKEN). UserError if it is refused.
    """
    hub, name = _library(), name_of(name)
    api = hub.HfApi(endpoint=_endpoint())
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A TRUNK tree")
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise UserError(f"cannot send {folder} to {name} on the hub ({_line(error)})") from None
    return f"{(_endpoint() or 'https://huggingface.co').rstrip('/')}/{name}"


def _endpoint() -> str | None:
    """The hub that `HF_ENDPOINT` names (a mirror, a company's own); None for huggingface.co."""
    return os.environ.get("HF_ENDPOINT")


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            "this needs huggingface_hub, not installed here: pip install 'trunk-jax[onnx]'"
        ) from None
    return huggingface_hub


def _line(error: Exception) -> str:
    return next((text for text in map(str.strip, str(error).splitlines()) if text), "no reason")
