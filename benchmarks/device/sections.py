"""The benchmark's cases in order, in one of three sizes."""

import contextlib
import functools
import time
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait
from typing import Any
from typing import NamedTuple

import jax

from benchmarks.device import SECTIONS
from benchmarks.device import convolutions
from benchmarks.device import idle
from benchmarks.device import job
from benchmarks.device import machine
from benchmarks.device import parity
from benchmarks.device import pytorch
from benchmarks.device import speed
from benchmarks.device.convolutions import Layer
from benchmarks.device.schedule import Job
from benchmarks.device.schedule import Row
from benchmarks.device.speed import Size
from benchmarks.device.timing import median_seconds


class Plan(NamedTuple):
    """How much is done."""

    size: Size
    minutes: float  # in which it has to end
    shares: tuple[float, ...]  # of that time, by section
    matrix: int  # side of the matrices of the peak
    copied_bytes: int
    layer_batch: int | None  # images of a convolution, at most; None: a small layer
    job: tuple[str, ...]  # overrides of the main job
    ticks: int  # of a phase, for the idle share
    default_parity: int  # cases that are run at the default precision too
    compilers: int  # programs of steps that are compiled at a time


FULL = Plan(
    speed.FULL, 9, (0.05, 0.19, 0.30, 0.17, 0.10, 0.07, 0.12), 8192, 2**30, 256, (), 4, 9, 6,
)  # fmt: skip
# On a CPU the networks are whole and the batches small.
CPU = FULL._replace(
    size=speed.CPU,
    minutes=20,
    shares=(0.02, 0.08, 0.25, 0.30, 0.10, 0.10, 0.15),
    matrix=2048,
    copied_bytes=2**28,
    layer_batch=1,
    default_parity=1,
    compilers=1,
)
QUICK = Plan(
    speed.QUICK, 4, (0.02, 0.28, 0.25, 0.19, 0.08, 0.08, 0.10), 512, 2**24, None,
    tuple(job.QUICK), 1, 1, 2,
)  # fmt: skip


def choose_plan(*, quick: bool) -> Plan:
    """The plan for the device that is here."""
    if quick:
        return QUICK
    return CPU if jax.default_backend() == "cpu" else FULL


def make_jobs(
    plan: Plan, *, only: Sequence[str], torch_python: str | None, cache: str
) -> list[Job]:
    """The jobs of some sections; later ones see what earlier ones have measured.

    Args:
      plan: how much is done.
      only: the sections.
      torch_python: the Python that has PyTorch; None: this one.
      cache: an empty folder.
    """
    peaks: dict[str, float] = {}
    sections = {
        "machine": _machine(plan, peaks),
        "parity": _parity(plan),
        "speed": _speed(plan, peaks),
        "job": _job(plan, cache),
        "idle": _idle(plan, cache),
        "convolutions": _convolutions(plan),
        "pytorch": _pytorch(plan, torch_python),
    }
    assert tuple(sections) == SECTIONS
    return [each for name, jobs in sections.items() if name in only for each in jobs]


def _machine(plan: Plan, peaks: dict[str, float]) -> Iterator[Job]:
    repeats = plan.size.repeats

    def peak(left, name):
        for row in machine.matmul_peak(name, size=plan.matrix, repeats=repeats):
            peaks[name] = row["flops_per_second"]
            yield row

    yield Job("machine", "device", lambda left: machine.describe())
    for name in machine.PRECISIONS:
        yield Job("machine", f"matmul, {name}", functools.partial(peak, name=name))
    copy = functools.partial(machine.copy_bandwidth, num_bytes=plan.copied_bytes, repeats=repeats)
    yield Job("machine", "copy", lambda left: copy())


def _parity(plan: Plan) -> Iterator[Job]:
    for i, name in enumerate(parity.CASES):
        check = functools.partial(parity.check, name, default_too=i < plan.default_parity)
        yield Job("parity", name, lambda left, check=check: check())


def _speed(plan: Plan, peaks: dict[str, float]) -> Iterator[Job]:
    prepared: dict[Any, Future] = {}
    taken: dict[Any, float] = {}

    def prepare(left):
        since = time.monotonic()
        pool, promises = speed.prepare(plan.size, compilers=plan.compilers)
        wait(promises.values(), timeout=0.6 * left)
        # Those that have begun are waited for: they cannot be stopped, and would disturb the rest.
        pool.shutdown(wait=True, cancel_futures=True)
        prepared.update({key: p for key, p in promises.items() if not p.cancelled()})
        yield {"compile_seconds": time.monotonic() - since, "num_compiled": len(prepared)}

    def take_turns(left):
        compiled = {key: p.result()[1] for key, p in prepared.items() if p.exception() is None}
        programs = {key: program.run for key, program in compiled.items()}
        repeats = plan.size.repeats
        taken.update(median_seconds(programs, repeats=repeats, most_seconds=0.7 * left))
        yield {"repeats": repeats, "num_programs": len(programs)}

    yield Job("speed", "all, compiled side by side", prepare)
    yield Job("speed", "all, in turns", take_turns)
    for name, precision in speed.WORK:
        measure = functools.partial(
            speed.measure,
            name,
            precision,
            size=plan.size,
            peaks=peaks,
            prepared=prepared,
            taken=taken,
        )
        yield Job("speed", name, lambda left, measure=measure: measure())


def _job(plan: Plan, cache: str) -> Iterator[Job]:
    measure = functools.partial(job.measure, overrides=plan.job, cache=cache)
    yield Job("job", "configs/mnist.py", measure)


def _idle(plan: Plan, cache: str) -> Iterator[Job]:
    def measure(left):
        with compiled_programs(cache):
            yield from idle.measure(ticks=plan.ticks, repeats=plan.size.repeats, overrides=plan.job)

    yield Job("idle", "configs/mnist.py", measure)


@contextlib.contextmanager
def compiled_programs(folder: str) -> Iterator[None]:
    """Takes compiled programs from a folder, where the main job has left them."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", folder)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _convolutions(plan: Plan) -> Iterator[Job]:
    rows: list[Row] = []

    def measure(left, layer: Layer):
        for row in convolutions.measure(layer, repeats=plan.size.repeats):
            rows.append(row)
            yield row

    for name, layer in convolutions.LAYERS.items():
        if plan.layer_batch is None:
            layer = convolutions.small(layer)
        else:
            layer = layer._replace(batch=min(layer.batch, plan.layer_batch))
        yield Job("convolutions", name, functools.partial(measure, layer=layer))
    platform = jax.default_backend()
    judge = lambda left: convolutions.verdict(rows, platform)  # noqa: E731
    yield Job("convolutions", "verdict", judge, takes_time=False)


def _pytorch(plan: Plan, python: str | None) -> Iterator[Job]:
    if pytorch.has_torch(python):
        measure = functools.partial(pytorch.measure, size=plan.size, python=python)
    else:
        measure = _no_torch
    yield Job("pytorch", "DeepInversion, ResNet-34", measure)


def _no_torch(left: float) -> Iterator[dict[str, Any]]:
    del left
    yield {"skipped": "no PyTorch in this Python; --torch-python names another"}
