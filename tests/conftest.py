"""Eight virtual CPU devices, JAX's own checks on, and compiled programs kept between test runs."""

import gc
import os
import tempfile
from pathlib import Path

import jax
import pytest

from jaxpmi.runs.machine import cpu_kind
from jaxpmi.runs.machine import enable_x64

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests run for milliseconds and compile for minutes: this halves the suite's time.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """Keeps compiled programs in pytest's own cache, which `pytest --cache-clear` empties.

    Most of the suite's time is XLA's: kept programs make a second run about three times faster.
    JAX looks programs up by what they compute, so a stale one cannot be used; only programs of
    another CPU could be, hence one folder per CPU. Subprocesses keep none: tests kill them, and an
    entry that is half-written stays so.
    """
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of subprocesses, pytest's workers too
    jax.config.update("jax_enable_compilation_cache", True)
    if hasattr(config, "cache"):
        folder = config.cache.mkdir(f"jaxpmi-{cpu_kind()}")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session", autouse=True)
def temporary_folders(tmp_path_factory):
    """Puts them where pytest cleans up: TFDS leaves an empty one behind for every data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs between modules, before the process has too many.

    Each takes about four memory maps, of which Linux allows a process 65,530; past that XLA ends
    with a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float64():
    """Double precision: of what oracles compute."""
    with enable_x64(True):
        yield
