"""What checks types and shapes at each call in tests: see conftest.py."""

from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def check_arrays(function):
    """The same for annotations of arrays alone; a stand-in may take any other value's place."""
    hints = function.__annotations__.items()
    function.__annotations__ = {name: hint if _of_array(hint) else Any for name, hint in hints}
    return check(function)


def _of_array(hint) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_of_array, get_args(hint)))
