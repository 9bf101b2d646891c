"""Programs that are compiled once, and refused when they would not fit into memory."""

from typing import Any

import jax

from data.errors import UserError
from trunk_jax import hosts

_compiled: dict[Any, Any] = {}


def available() -> int | None:
    """Bytes that can still be had on the default device, or None if it does not say.

    Of several processes' devices the least, for all must come to the same decisions.
    """
    return hosts.least(_available())


def _available() -> int | None:
    device = jax.devices()[0]
    if device.platform == "cpu":
        try:
            with open("/proc/meminfo") as file:
                rows = dict(line.split(":", 1) for line in file)
            return int(rows["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            return None
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def forget() -> None:
    """Drop all compiled programs."""
    _compiled.clear()


def compile_within(function: Any, *arguments: Any, statics: int = 3) -> Any:
    """`function` (jitted, its first `statics` arguments static) compiled for `arguments`.

    Call the result without the static arguments. Raises UserError when the program's
    temporary memory is more than there is, before anything has been run.
    """
    leaves, structure = jax.tree.flatten(arguments[statics:])
    kinds = tuple((jax.numpy.shape(leaf), jax.numpy.result_type(leaf)) for leaf in leaves)
    key = (function, arguments[:statics], structure, kinds)
    if key not in _compiled:
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
