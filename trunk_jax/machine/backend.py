"""JAX made ready for a command: our settings, the job's other processes, devices that answer."""

import os

from data.base.errors import UserError

try:
    import jax

    from trunk_jax.machine import hosts, settings
except ValueError as error:  # JAX reads its variables as it is imported
    raise UserError(f"a variable of JAX has a value that it does not know: {error}") from None


def start(*, distributed: bool = False) -> None:
    """Do so; to be called before any array is made.

    UserError if `distributed` and there is no job to join, for a setting under which nothing can
    run, and if JAX_PLATFORMS names what is not here.
    """
    settings.apply()
    if distributed:
        hosts.join()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS") or settings.of_jax("jax_platforms")
        reason = " ".join(str(error).split())[:200] or "the installed JAX has no support for it"
        advice = f"unset JAX_PLATFORMS={wanted}, or set it to cpu" if wanted else "see its reason"
        raise UserError(f"JAX finds no device ({reason}); {advice}") from None
