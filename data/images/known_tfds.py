"""What is known of TFDS's datasets that TFDS's own files do not say."""

from typing import Any

from data.images import specs

_DIGITS = tuple("0123456789")
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DARK: dict[str, Any] = {"light_strokes": True}  # light on a dark ground
_TURNED = _DARK | {"turned": True}  # and stored with rows and columns exchanged
_ABOUT = {
    "mnist": _DARK,
    "fashion_mnist": _DARK,
    "kmnist": _DARK,
} | {
    f"emnist/{name}": _TURNED
    for name in ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
}
_BALANCED = specs.spec("emnist").class_names
# TFDS numbers EMNIST's classes. Letters are 1 to 26, each in its two forms.
_NAMES = {
    "emnist/balanced": _BALANCED,
    "emnist/bymerge": _BALANCED,
    "emnist/byclass": _DIGITS + _LETTERS + tuple("abcdefghijklmnopqrstuvwxyz"),
    "emnist/letters": ("0", *_LETTERS),
}


def about(tfds_name: str) -> dict[str, Any]:
    """Values of the `Spec` of a dataset."""
    return _ABOUT.get(tfds_name, {})


def names(tfds_name: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """The classes' names; `given` are TFDS's, which may be more than have images."""
    known = _NAMES.get(tfds_name, ())
    return known + given[len(known) :] if known else given
