"""Programs that are compiled once, and refused when they would not fit into memory."""

from typing import Any

import jax

from data.base import machine
from data.base.errors import UserError
from data.base.progress import working
from trunk_jax.machine import hosts

_compiled: dict[Any, Any] = {}


def available() -> int | None:
    """Bytes that can still be had on the default device, or None if it does not say.

    Of several processes' devices the least, for all must come to the same decisions.
    """
    return hosts.least(_available())


def _available() -> int | None:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return machine.available_memory()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def forget() -> None:
    """Drop all compiled programs."""
    _compiled.clear()


# Kernels that XLA's CPU backend hands convolutions to; for one image they take longer than its
# own (CIFAR-10's tree 2.35 ms instead of 1.65, jax 0.10.2 on 2 cores).
_WITHOUT_YNN: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compile_for_one_image(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """A lowered program compiled with the CPU backend's own kernels; on others as usual."""
    if jax.default_backend() == "cpu":
        try:
            return lowered.compile(compiler_options=_WITHOUT_YNN)
        except jax.errors.JaxRuntimeError:  # a version of XLA without that option
            pass
    return lowered.compile()


def compile_within(function: Any, *arguments: Any, statics: int) -> Any:
    """`function` (jitted, its first `statics` arguments static) compiled for `arguments`.

    Call the result without the static arguments. Raises UserError when the program's
    temporary memory is more than there is, before anything has been run.
    """
    leaves, structure = jax.tree.flatten(arguments[statics:])
    kinds = tuple((jax.numpy.shape(leaf), jax.numpy.result_type(leaf)) for leaf in leaves)
    key = (function, arguments[:statics], structure, kinds)
    if key not in _compiled:
        with working("compiling the training steps"):
            compiled = function.lower(*arguments).compile()
        analysis = compiled.memory_analysis()
        needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0
        room = available()
        if room is not None and needed > room:
            raise UserError(
                f"a training step needs {needed / 1e9:.1f} GB of memory and {room / 1e9:.1f} GB "
                "are free; use a smaller --batch-size"
            )
        _compiled[key] = compiled
    return _compiled[key]
