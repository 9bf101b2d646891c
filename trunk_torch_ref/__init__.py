"""TRUNK in plain PyTorch: the reference that `trunk_jax` is checked against.

    import trunk_torch_ref
    model = trunk_torch_ref.load("cifar10")   # or the folder of any finished run
    print(model.predict("photo.jpg"))

`load`, `grow`, `Model` and `Answer` are what Python programs need; they are imported when they are
first used, so that `import trunk_torch_ref` loads nothing else. Everything else is a command
(`python -m trunk_torch_ref.train`), or inside.
"""

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

# by its place: an import would run a file of that name in the user's own folder
runpy.run_path(str(Path(__file__).parents[1] / "trunk_sisters.py"))["check"]()

if TYPE_CHECKING:
    from trunk_torch_ref.model import Answer, Model, grow, load

__all__ = ["Answer", "Model", "grow", "load"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, from `trunk_torch_ref.model`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trunk_torch_ref import model

    return getattr(model, name)


def __dir__() -> list[str]:
    """What there is, what is not loaded yet included."""
    return sorted({*globals(), *__all__})
