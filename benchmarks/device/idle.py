"""How much of the main job's time the device has nothing to do: gaps between its programs.

Two measures of the phases of configs/mnist.py. By the clock of the host: the share of a training
step's time that is not its program's, which is timed alone, call after call, with its data already
on the device. By JAX's profiler: the share of the time between the first and the last thing that
the device did in which it did nothing. The first also counts what the host does before the first
and after the last program; the second what a program itself waits for, and it is disturbed by being
watched. On a CPU the host is the device: what else the process does there counts as idle too.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device import cases
from benchmarks.device.speed import CONFIGS
from benchmarks.device.timing import compile_case
from benchmarks.device.timing import median_seconds
from jaxpmi.config.load import load_config
from jaxpmi.continual.chunks import CHUNK_STEPS
from jaxpmi.continual.loop import CLASS_INCREMENTAL
from jaxpmi.models import architecture
from jaxpmi.runs.phases import PhaseFn

NOT_WORK = ("Steps", "Framework", "Source code")  # lines of a trace that only comment on others


def measure(
    *, ticks: int, repeats: int, overrides: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of training and of inversion of the second task.

    Args:
      ticks: of a phase, at most; one of training is of 32 steps, one of inversion of a batch.
      repeats: of a training step's program alone.
      overrides: of the config.
    """
    config = load_config(str(CONFIGS / "mnist.py"), list(overrides))
    run, state = CLASS_INCREMENTAL.begin(config, CLASS_INCREMENTAL.open_inputs(config))
    for task in (0, 1):
        for index, (name, phase) in enumerate(CLASS_INCREMENTAL.begin_task(run, task)):
            position = {"task": task, "phase": index, "step": 0}
            state = state.replace(**{k: jnp.asarray(v, jnp.int32) for k, v in position.items()})
            training = name.startswith("train")
            if task == 0 or not (training or name == "invert"):
                state = _work(phase, run, state)
                continue
            yield _phase_row(name, phase, run, state, ticks, repeats if training else 0)
            if training:
                return
            state = _work(phase, run, state)


def _phase_row(name, phase, run, state, ticks, repeats):
    """The row of the first ticks of a phase; with `repeats` also of its program alone."""
    end = _work(phase, run, state, ticks)  # compiles
    since = time.perf_counter()
    _work(phase, run, state, ticks)
    seconds = time.perf_counter() - since
    row = {"phase": name, "wall_seconds_untraced": seconds}
    row |= _traced(lambda: _work(phase, run, state, ticks))
    if repeats:
        step, program = seconds / int(end.step), _program_seconds(run.config, repeats)
        row |= {"step_seconds": step, "program_seconds": program}
        row["host_share"] = 1.0 - program / step  # negative where the machine was busier later
    return row


def _work(phase: PhaseFn, run: Any, state: Any, ticks: int | None = None) -> Any:
    """The state after a phase, or after its first `ticks`."""
    for tick in itertools.islice(phase(run, jax.tree.map(jnp.copy, state)), ticks):
        state = tick.state
    return jax.block_until_ready(state)


def _program_seconds(config, repeats):
    """Of a training step of the same shape, alone."""
    shape, num_classes = (28, 28, 1), config.data.num_classes or 10
    model = architecture(config.model.name, config.model.width)
    phase = cases.later_phase(config.method, config, "all")
    case = cases.class_incremental(
        model, shape, config, phase, num_classes=num_classes, num_steps=CHUNK_STEPS
    )
    (seconds,) = median_seconds({"": compile_case(case).run}, repeats=repeats).values()
    return seconds / CHUNK_STEPS


def _traced(work: Callable[[], Any]) -> dict[str, Any]:
    """Idle share by the profiler, and whose events tell it."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work()
        (file,) = Path(folder).rglob("*.xplane.pb")
        source, intervals = work_intervals(jax.profiler.ProfileData.from_file(str(file)))
    return {"idle_share": idle_share(intervals), "traced": source}


def work_intervals(profile: Any) -> tuple[str, list[tuple[float, float]]]:
    """When the device worked, in nanoseconds, and the name of its plane in the trace.

    Raises:
      RuntimeError: nobody tells.
    """
    planes = {plane.name: plane for plane in profile.planes}
    for name in sorted(name for name in planes if name.startswith("/device:")):
        spans = [
            (event.start_ns, event.end_ns)
            for line in planes[name].lines
            if not line.name.startswith(NOT_WORK)
            for event in line.events
        ]
        if spans:
            return name, spans
    host = planes.get("/host:CPU")
    spans = [
        (event.start_ns, event.end_ns)
        for line in (host.lines if host else ())
        for event in line.events
        if event.name.startswith("ThunkExecutor::Execute")
    ]
    if jax.default_backend() != "cpu" or not spans:
        raise RuntimeError(f"the trace has no events of a device, only planes {sorted(planes)}.")
    return "/host:CPU", spans


def idle_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that no interval covers."""
    ordered = sorted(intervals)
    first, reach, covered = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        covered += max(end - max(start, reach), 0.0)
        reach = max(reach, end)
    return 1.0 - covered / max(reach - first, 1e-9)
