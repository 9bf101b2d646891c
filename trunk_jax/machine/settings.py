"""Settings of JAX and Flax that decide a result, set here whatever the environment says.

Each has a variable of its own (JAX_ENABLE_X64 for `jax_enable_x64`), which a user may have set
for another program. docs/determinism.md says which others change last bits alone.
"""

import os
import sys
from enum import Enum
from typing import Any

import flax
import jax

from data.base.errors import UserError

# With others the same flags would give other weights, or none.
FIXED: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_explicit_x64_dtypes": "warn",
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_custom_prng": False,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_legacy_prng_key": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_softmax_custom_jvp": False,
    "jax_disable_most_optimizations": False,
}
FIXED_OF_FLAX: dict[str, Any] = {
    "flax_pytree_module": True,
    "flax_hijax_variable": False,
    "flax_array_ref": False,
    "nnx_graph_mode": True,
    "nnx_graph_updates": True,
}
# Somebody who sets one of these wants to see what JAX does; this program cannot show it.
_STRICT = ("disallow", "disallow_explicit")
REFUSED: dict[str, tuple[Any, ...]] = {
    "jax_disable_jit": (True,),
    "jax_check_tracer_leaks": (True,),
    "jax_no_execution": (True,),
    "jax_no_tracing": (True,),
    "jax_numpy_rank_promotion": ("raise",),
    "jax_array_garbage_collection_guard": ("fatal",),
    "jax_transfer_guard": _STRICT,
    "jax_transfer_guard_host_to_device": _STRICT,
    "jax_transfer_guard_device_to_host": _STRICT,
    "jax_transfer_guard_device_to_device": _STRICT,
}
# A user's to choose, and part of what decides a run.
_CHOSEN = ("jax_default_matmul_precision",)
_HARMLESS = ("--xla_dump", "--xla_force_host_platform_device_count", "--xla_hlo_profile")


def of_jax(name: str) -> Any:
    """One of JAX's settings, as it is here and now; the types of `jax.config` list none."""
    return getattr(jax.config, name)


def apply() -> None:
    """Set what decides results, with a note for each setting that was another.

    UserError for a setting under which nothing here can run.
    """
    need_possible()
    for config, fixed in ((jax.config, FIXED), (flax.config, FIXED_OF_FLAX)):
        for name, value in fixed.items():
            now = _now(name, config)
            if now not in (value, None):  # None: not a setting of this version
                print(
                    f"note: {name.upper()}={now} is ignored, for it decides results",
                    file=sys.stderr,
                )
                config.update(name, value)


def need_possible() -> None:
    """UserError for a setting under which nothing here can run."""
    for name, wrong in REFUSED.items():
        if _now(name) in wrong:
            raise UserError(f"{name.upper()}={_now(name)}: this program cannot run so; unset it")


def recorded() -> dict[str, Any]:
    """What `config.json` keeps of the settings; a run is resumed under the same alone."""
    values = {name: _now(name) for name in (*FIXED, *_CHOSEN)}
    return values | {"xla_flags": xla_flags(os.environ.get("XLA_FLAGS", ""))}


def xla_flags(text: str) -> list[str]:
    """The words of XLA_FLAGS but those that change no number, in order of the alphabet.

    Example: `xla_flags("--xla_dump_to=/tmp --xla_cpu_enable_fast_math=true")` gives
    `["--xla_cpu_enable_fast_math=true"]`.
    """
    return sorted(word for word in text.split() if not word.startswith(_HARMLESS))


def _now(name: str, config: Any = jax.config) -> Any:
    """A setting's value as JSON has it; some are members of an enumeration."""
    value = getattr(config, name, getattr(config, "values", {}).get(name))
    return value.name.lower() if isinstance(value, Enum) else value
