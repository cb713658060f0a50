"""The machine as a run needs it, whatever the environment says of JAX."""

import contextlib
import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
import platformdirs

MIN_COMPILE_SECONDS = 0.1  # of programs worth keeping


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


def keep_programs() -> Path | None:
    """Has JAX keep compiled programs between processes, in the user's cache folder.

    Nothing is changed where JAX is told of a folder already (`JAX_COMPILATION_CACHE_DIR`), or not
    to keep any (`JAX_ENABLE_COMPILATION_CACHE=false`). Programs are looked up by what they compute,
    but one of another kind of CPU could be taken: there is a folder for each.

    Returns:
      The folder, if it was made just now; None: it was there, or nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    folder = platformdirs.user_cache_path("jaxpmi") / f"programs-{cpu_kind()}"
    is_new = not folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or no room: a run goes without
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's own default
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder if is_new else None


def cpu_kind() -> str:
    """A short name of this machine's kind of CPU: model and what it can do, hashed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    kept = {line for line in lines if not line.startswith(("processor", "cpu MHz", "bogomips"))}
    kept = {line for line in kept if line.startswith(("model name", "flags", "Features"))} or kept
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:12]
