"""Seconds of compiled programs, and what their compilers know of them."""

import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax

from benchmarks.device.cases import Case
from jaxpmi.blocks.cost import count_program


class Program(NamedTuple):
    """A case, compiled for the device on which its inputs lie."""

    run: Callable[[], Any]
    compile_seconds: float  # with tracing
    flops: float  # of one call, floating-point operations
    flops_from: str  # who counted them, see `count_flops`
    memory_bytes: int  # arguments, results and temporaries


def compile_case(case: Case) -> Program:
    """Compiles all steps of a case as one program."""
    inputs = jax.device_put(case.inputs)
    since = time.perf_counter()
    compiled = jax.jit(case.run).lower(inputs).compile()
    seconds = time.perf_counter() - since
    counted = 2.0 * case.hidden_steps * count_program(case.run, inputs)
    flops, source = choose_flops(_xla_flops(compiled) * case.num_steps, counted)
    return Program(lambda: compiled(inputs), seconds, flops, source, program_bytes(compiled))


def choose_flops(by_xla: float, counted: float) -> tuple[float, str]:
    """The number of operations of a call, and who counted them.

    XLA counts what it has compiled, but the body of a loop once: times the number of steps it is
    right for one loop over steps, and wrong by a factor for loops in loops, or where it cannot look
    into the device's library. The library's own count knows all loops, but convolutions and matrix
    products alone. So XLA's is taken where it lies within a factor of two of the other.
    """
    if counted == 0 or 0.5 <= by_xla / counted <= 2.0:
        return by_xla, "XLA"
    return counted, "jaxpr"


def program_bytes(compiled: Any) -> int:
    """Bytes that a compiled program needs at once, with its arguments and results."""
    memory = compiled.memory_analysis()
    parts = ("argument", "output", "temp")
    total = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts)
    return total - memory.alias_size_in_bytes


def median_seconds(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int, most_seconds: float = 20.0
) -> dict[str, float]:
    """Median seconds of each call, results included, after one that warms up.

    The functions take turns, so that whatever else happens hits all alike. There are fewer
    `repeats`, but one at least, where they would take more than `most_seconds`.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() - begin > most_seconds:
            break
        for name, function in functions.items():
            since = time.perf_counter()
            jax.block_until_ready(function())
            if repeat > 0:
                taken[name].append(time.perf_counter() - since)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _xla_flops(compiled):
    analysis = compiled.cost_analysis() or {}
    return max(float(analysis.get("flops", 0.0)), 0.0)
