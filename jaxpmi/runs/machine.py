"""The machine as a run needs it, whatever the environment says of JAX."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Within it JAX computes as a run is written: in 32 bits, with its usual promotions.

    `JAX_DEBUG_NANS` and `JAX_DEBUG_INFS` are off: what is not yet measured is a NaN, and every
    loss is checked by the run itself. So is `JAX_TRANSFER_GUARD`. What is the user's, such as the
    precision of products, stays. The settings are of this thread, and come back at the end.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(enable_x64(False))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.transfer_guard("allow"))
        yield


def enable_x64(enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Whether arrays have 64 bits within it; older versions of JAX have it elsewhere."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax import experimental

    return experimental.enable_x64(enabled)


def check_platform() -> None:
    """Raises a ValueError if JAX is told to use devices that are not there; names those that are.

    `JAX_PLATFORMS` says which, or `jax.config.update("jax_platforms", ...)`.
    """
    wanted = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of CUDA, where it is not installed
        if not wanted:
            raise ValueError(
                f"JAX finds no device ({error}); see its installation guide."
            ) from error
        listed = " or ".join(f"'{name}'" for name in _platforms())
        raise ValueError(
            f"JAX_PLATFORMS='{wanted}' asks for devices that JAX does not find here; set it to "
            f"{listed}, or unset it and JAX takes the best."
        ) from error


def _platforms() -> list[str]:
    """The platforms of this machine, the best first; JAX is left as it was."""
    from jax.extend import backend

    wanted = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        return list(dict.fromkeys([jax.devices()[0].platform, "cpu"]))
    finally:
        jax.config.update("jax_platforms", wanted)
        backend.clear_backends()
