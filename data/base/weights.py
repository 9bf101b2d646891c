"""Whether a state_dict fits a network; how each framework reads it is its own affair."""

from collections.abc import Mapping

import numpy as np

from data.base.errors import UserError

Shape = tuple[int, ...]
_SHOWN = 16  # of all that is wrong


def check_fit(
    expected: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray],
    types: Mapping[str, np.dtype] | None = None,
) -> None:
    """UserError listing missing, extra and misshapen tensors; `expected` are shapes.

    With `types` also those whose numbers are of another kind: floats must be float32 or float64,
    integers must be such that the expected type holds them.
    """
    problems = [f"missing {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} is {_text(weights[key].shape)}, not {_text(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != tuple(shape)
    ]
    problems += [
        f"{key} is {weights[key].dtype}, not {kind}"
        for key, kind in (types or {}).items()
        if key in weights and not _holds(kind, weights[key])
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(f"{problem:.160}" for problem in problems[:_SHOWN])
        raise UserError(f"the weights do not fit the network: {shown}{more}")


def _holds(kind: np.dtype, array: np.ndarray) -> bool:
    if kind.kind == "f":
        return array.dtype in (np.float32, np.float64)
    return array.dtype.kind in "iu" and bool((array.astype(kind) == array).all())


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
