"""Whether a state_dict fits a network; how each framework reads it is its own affair."""

from collections.abc import Mapping

import numpy as np

from data.errors import UserError

Shape = tuple[int, ...]


def check_fit(expected: Mapping[str, Shape], weights: Mapping[str, np.ndarray]) -> None:
    """UserError listing every missing, extra or misshapen tensor; `expected` are shapes."""
    problems = [f"missing {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} is {_text(weights[key].shape)}, not {_text(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != tuple(shape)
    ]
    if problems:
        raise UserError(f"the weights do not fit the network: {'; '.join(problems)}")


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
