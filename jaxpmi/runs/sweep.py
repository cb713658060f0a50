"""Works through the cells of a sweep, each a process of its own; what is done stays done.

A cell is finished when its `summary.json` is there, and goes on from its checkpoints when it is
not: so a sweep may be killed at any moment, and the same command ends in the same table.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from jaxpmi.runs.cells import Cell
from jaxpmi.runs.claim import claim
from jaxpmi.runs.claim import owner_has_ended
from jaxpmi.runs.comparison import Finished
from jaxpmi.runs.comparison import compare
from jaxpmi.runs.comparison import markdown
from jaxpmi.runs.comparison import read_metrics
from jaxpmi.runs.comparison import to_json
from jaxpmi.runs.writers import read_json
from jaxpmi.runs.writers import tell
from jaxpmi.runs.writers import write_json
from jaxpmi.runs.writers.files import replace_file

LOG_FILE = "console.log"  # in a cell's folder: what its runs have printed
SECONDS_TO_STOP = 20.0  # for a run to end by itself after Ctrl-C
POLL_SECONDS = 0.1
# Prints how many NVIDIA GPUs there are; 0 where JAX computes on anything else.
COUNT_GPUS = """
import jax
devices = jax.local_devices()
cuda = devices[0].platform == "gpu" and "NVIDIA" in devices[0].device_kind
print(len(devices) if cuda else 0)
"""


class _Work(NamedTuple):
    """A cell that runs: its process, when it began, and the device that it has."""

    cell: Cell
    process: subprocess.Popen
    since: float
    log_begin: int
    device: Mapping[str, str]


def run_cells(cells: Sequence[Cell], workdir: Path, command: Sequence[str]) -> dict[str, str]:
    """Runs the cells that are not finished; returns name -> error of those that failed.

    Args:
      cells: as `plan_cells` returns them.
      workdir: that no other sweep works in meanwhile.
      command: the words before a cell's arguments, e.g. [python, launch/run.py].

    Raises:
      OSError: another sweep works there, or nothing can be written.
      KeyboardInterrupt: at Ctrl-C, after all runs were stopped.
    """
    with _only_sweep(workdir) as lock:
        left = [cell for cell in cells if not cell.is_finished]
        devices = find_devices() if left else [{}]
        at_once = f"{len(devices)} at a time, a GPU each" if len(devices) > 1 else "one at a time"
        tell(f"{len(cells)} cells, {len(cells) - len(left)} finished before; {at_once}")
        return _Sweep(cells, command, devices, lock).work(left)


def find_devices() -> list[dict[str, str]]:
    """The environment of every run that may go on at the same time.

    Each NVIDIA GPU is one, by CUDA_VISIBLE_DEVICES. On CPUs, TPUs and other devices runs take
    turns, and each has all devices.
    """
    # In a process of its own: one that has asked for a GPU keeps its memory.
    found = subprocess.run([sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True)
    count = int(found.stdout) if found.returncode == 0 else 0  # a run will say what is wrong
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")][:count]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names] if len(names) > 1 else [{}]


class _Sweep:
    """The cells on their way."""

    def __init__(self, cells, command, devices, lock):
        self.cells, self.command, self.free, self.lock = cells, command, list(devices), lock
        self.num_devices = len(devices)
        self.running: list[_Work] = []
        self.failures: dict[str, str] = {}

    def work(self, left: Sequence[Cell]) -> dict[str, str]:
        """Runs the cells as devices become free; returns what failed."""
        waiting = list(left)
        try:
            while waiting or self.running:
                while waiting and self.free:
                    self._start(waiting.pop(0), self.free.pop(0))
                for work in [work for work in self.running if work.process.poll() is not None]:
                    self.running.remove(work)
                    self.free.append(work.device)
                    self._end(work, waiting)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()
        return self.failures

    def _start(self, cell, device):
        tell(f"{self._place(cell)} started")
        path = Path(cell.config.workdir) / LOG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                [*self.command, *cell.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **device},
                process_group=0,  # Ctrl-C is the sweep's, which passes it on
                pass_fds=[self.lock],  # so a run that outlives its sweep is known
            )
            self.running.append(_Work(cell, process, time.monotonic(), begin, device))

    def _end(self, work, waiting):
        cell, seconds = work.cell, time.monotonic() - work.since
        if cell.is_finished:
            score = _score(read_json(Path(cell.config.workdir) / "summary.json"))
            text = f"finished: {score}{seconds:.0f} s"
        else:
            self.failures[cell.name] = _what_failed(work)
            text = f"failed: {self.failures[cell.name]}"
        tell(f"{self._place(cell)} {text}{self._time_left(waiting)}")

    def _place(self, cell):
        return f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {cell.name}"

    def _time_left(self, waiting):
        """About how long the cells that are left take, by finished ones of the same method."""
        left = [*waiting, *(work.cell for work in self.running)]
        seconds = {}
        for run in finished(self.cells):
            seconds.setdefault(run.method, []).append(run.summary["seconds"]["total"])
        if not left or not seconds:
            return ""
        everything = sum(seconds.values(), [])
        each = [statistics.fmean(seconds.get(c.config.method, everything)) for c in left]
        return f"; about {sum(each) / self.num_devices / 60:.1f} min for the {len(left)} left"

    def _stop(self):
        """Ends the runs that go on, as Ctrl-C does; they go on from their checkpoints."""
        with contextlib.suppress(KeyboardInterrupt):  # pressed again: at once
            for work in self.running:
                work.process.send_signal(signal.SIGINT)
            end = time.monotonic() + SECONDS_TO_STOP
            for work in self.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    work.process.wait(max(0.0, end - time.monotonic()))
        for work in self.running:
            work.process.kill()
            work.process.wait()


def finished(cells: Sequence[Cell]) -> list[Finished]:
    """The runs of a sweep that have come to their end."""
    return [
        Finished(
            cell.config.method,
            cell.settings,
            cell.config.seed,
            read_json(Path(cell.config.workdir) / "summary.json"),
        )
        for cell in cells
        if cell.is_finished
    ]


def write_table(cells: Sequence[Cell], workdir: Path) -> str:
    """Writes table.md and table.json of what is finished; returns the former's text."""
    rows = compare(finished(cells))
    missing = [cell.name for cell in cells if not cell.is_finished]
    text = markdown(rows) if rows else "Nothing has finished yet.\n"
    if missing:
        text += f"\nNot finished: {', '.join(missing)}.\n"
    with replace_file(workdir / "table.md") as file:
        file.write(text.encode())
    write_json(workdir / "table.json", {"rows": to_json(rows), "not_finished": missing})
    return text


@contextlib.contextmanager
def _only_sweep(workdir: Path) -> Iterator[int]:
    """Claims the sweep's folder; first waits for a run that a killed sweep has left there."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                lock = stack.enter_context(claim(workdir))
                break
            except OSError:
                if not owner_has_ended(workdir):
                    raise
            if not told:
                tell(f"a run of a sweep that was killed still works in {workdir}; waiting for it")
                told = True
            time.sleep(POLL_SECONDS)
        yield lock


def _score(summary: Mapping[str, Any]) -> str:
    """What to say first of a finished run, such as `last accuracy 91.7 %, `."""
    metrics = read_metrics(summary)
    for name in ("last_accuracy", "last_miou", "student_accuracy", "accuracy_after"):
        if name in metrics:
            return f"{name.replace('_', ' ')} {100 * metrics[name]:.1f} %, "
    return ""


def _what_failed(work: _Work) -> str:
    """How a run ended without a summary, and where to read more."""
    path, code = Path(work.cell.config.workdir) / LOG_FILE, work.process.returncode
    with path.open("rb") as log:
        log.seek(work.log_begin)
        lines = log.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    else:
        how = said[-1].removeprefix("error: ") if said else f"exit code {code}"
    return f"{how.rstrip('.')}; see {path}"
