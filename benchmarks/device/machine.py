"""What is here: the device, its software, and the two speeds that all others are a share of."""

import functools
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device.cases import draws
from jaxpmi.runs.accounting import versions

# Of matrix products, by the name that rows give it: the type, and JAX's precision.
PRECISIONS = {
    "float32": (jnp.float32, "highest"),
    "default": (jnp.float32, "default"),
    "bfloat16": (jnp.bfloat16, "default"),
}

# What "default" float32 is, by platform: TF32 has 10 bits of mantissa, bfloat16 7.
DEFAULT_IS = {"gpu": "TF32 where the card has it", "tpu": "one pass of bfloat16"}


def describe() -> Iterator[dict[str, Any]]:
    """The row of device, driver, versions and free memory."""
    device = jax.devices()[0]
    yield {
        "platform": device.platform,
        "kind": device.device_kind if device.platform != "cpu" else _processor(),
        "count": len(jax.devices()),
        "driver": _driver(),
        "runtime": " ".join(device.client.platform_version.split()),
        "free_bytes": _free_bytes(device),
        "default_float32_is": default_precision(),
        **versions(),
    }


def default_precision() -> str:
    """What float32 factors of a product are rounded to unless asked otherwise."""
    return DEFAULT_IS.get(jax.default_backend(), "float32, as highest")


def matmul_peak(name: str, *, size: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The row of the best of some products of two square matrices."""
    dtype, precision = PRECISIONS[name]
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    matrix = jnp.asarray(draws((size, size), 0), dtype)
    seconds = _best_seconds(lambda: multiply(matrix, matrix), repeats)
    yield {"size": size, "seconds": seconds, "flops_per_second": 2.0 * size**3 / seconds}


def copy_bandwidth(*, num_bytes: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The row of reading an array and writing another of its size, in bytes a second together."""
    array = jnp.zeros(num_bytes // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    seconds = _best_seconds(lambda: add(array), repeats)
    yield {"seconds": seconds, "bytes_per_second": 2.0 * array.nbytes / seconds}


def peak_bytes() -> int | None:
    """The most memory that the device has had in use so far; None where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _best_seconds(function: Callable[[], jax.Array], repeats: int) -> float:
    """Of a call, after one that compiles."""
    taken = []
    for repeat in range(repeats + 1):
        since = time.perf_counter()
        function().block_until_ready()
        if repeat > 0:
            taken.append(time.perf_counter() - since)
    return min(taken)


def _driver():
    """NVIDIA's driver; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return told.stdout.strip() or told.stderr.strip()


def _free_bytes(device):
    """Of the device; on a CPU, of the machine."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return next((1024 * int(words[1]) for words in _lines("meminfo", "MemAvailable:")), None)


def _processor():
    """The CPU's name where the system tells it."""
    names = (" ".join(words[3:]) for words in _lines("cpuinfo", "model name"))
    return next(names, platform.machine())


def _lines(file, start):
    """Words of the lines of a file of /proc that begin so."""
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.split() for line in lines if line.startswith(start)]
