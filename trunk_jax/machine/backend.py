"""JAX made ready for a command: our settings, the job's other processes, devices that answer."""

import os

from data.base.errors import UserError

try:
    import jax

    from trunk_jax.machine import hosts, settings, xla
except ValueError as error:  # JAX reads its variables as it is imported
    raise UserError(f"a variable of JAX has a value that it does not know: {error}") from None


_CPUS = "JAX_NUM_CPU_DEVICES"


def start(*, distributed: bool = False) -> None:
    """Do so; to be called before any array is made.

    UserError if `distributed` and there is no job to join, for a setting under which nothing can
    run, and if JAX_PLATFORMS names what is not here.
    """
    xla.need_known_flags(os.environ.get("XLA_FLAGS", ""))
    settings.apply()
    if distributed:
        hosts.join()
    _need_devices()


def need_working() -> None:
    """For Python programs, whose settings of JAX are theirs: UserError where nothing can run."""
    xla.need_known_flags(os.environ.get("XLA_FLAGS", ""))
    settings.need_possible()
    _need_devices()


def _need_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS") or settings.of_jax("jax_platforms")
        reason = " ".join(str(error).split())[:200] or "the installed JAX has no support for it"
        advice = f"unset JAX_PLATFORMS={wanted}, or set it to cpu" if wanted else "see its reason"
        count = os.environ.get(_CPUS)
        if count is not None and settings.of_jax(_CPUS.lower()) < 1:
            advice = f"unset {_CPUS}={count}"
        raise UserError(f"JAX finds no device ({reason}); {advice}") from None
