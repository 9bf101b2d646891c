"""What JAX knows of the arrays of a traced program."""

import jax
from jax.extend import core


def shaped(value: core.Var | core.Literal) -> jax.core.ShapedArray:
    """The shape and type of an array in a traced program."""
    assert isinstance(value.aval, jax.core.ShapedArray)  # all that our programs compute with
    return value.aval
