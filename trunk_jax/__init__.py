"""TRUNK, the tree of small CNNs for low-power image classification, in JAX and Flax.

    import trunk_jax
    model = trunk_jax.load("cifar10")   # or the folder of any finished run
    print(model.predict("photo.jpg"))

`load`, `grow`, `Model` and `Answer` are what Python programs need; they are imported when they are
first used, so that `import trunk_jax` loads nothing else. Everything else is a command (`python -m
trunk_jax.train`), or inside.
"""

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

# by its place: an import would run a file of that name in the user's own folder
runpy.run_path(str(Path(__file__).parents[1] / "trunk_sisters.py"))["check"]()

from trunk_jax.machine import xla  # noqa: E402 (ours, as was just checked)

xla.quiet()  # before JAX loads, which reads it then

if TYPE_CHECKING:
    from trunk_jax.model import Answer, Model, grow, load

__all__ = ["Answer", "Model", "grow", "load"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, from `trunk_jax.model`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trunk_jax.machine import backend  # noqa: F401 (first: a wrong variable is one line there)
    from trunk_jax import model  # isort: skip

    return getattr(model, name)


def __dir__() -> list[str]:
    """What there is, what is not loaded yet included."""
    return sorted({*globals(), *__all__})
