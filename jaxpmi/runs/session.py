"""Carries a run through: for every task, for every phase, work in steps; log, checkpoint, resume.

What the tasks are made of is a `System`'s matter. Only here a run's numbers are written to files.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.config.load import ABSENT
from jaxpmi.config.load import config_to_dict
from jaxpmi.config.load import differing_fields
from jaxpmi.runs.accounting import MAKES_IMAGES
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.checkpoint import Checkpointer
from jaxpmi.runs.phases import NonFiniteLossError
from jaxpmi.runs.phases import System
from jaxpmi.runs.writers import REPORT_FILE
from jaxpmi.runs.writers import MetricsWriter
from jaxpmi.runs.writers import Progress
from jaxpmi.runs.writers import read_json
from jaxpmi.runs.writers import summary_table
from jaxpmi.runs.writers import tell
from jaxpmi.runs.writers import to_plain
from jaxpmi.runs.writers import write_json
from jaxpmi.runs.writers import write_report
from jaxpmi.sharding import replicate

SECONDS_PER_LINE = 5.0  # between progress lines
DATA_FILE = "data.json"  # in the workdir: what was read when the run began
REPORT_SHARE = 0.01  # of a run's time, at most, that its page may take before it has finished
FIRST_REPORT_SECONDS = 3.0  # what a page is taken to cost that has not been written yet


def finished_summary(
    config: Config, data: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Prints and returns the summary of a run that has finished; None of one that has not.

    Args:
      config: its settings.
      data: name -> `DataFacts.to_dict` of every data set that is read; None: not compared.

    Raises:
      ValueError: the workdir holds a run with another config, or on other data.
    """
    workdir = Path(config.workdir)
    check_workdir(config)
    if data is not None:
        _check_data(workdir, data)
    finished = workdir / "summary.json"
    if not finished.is_file():
        return None
    summary = read_json(finished)
    tell(f"this run has finished; its summary again:\n\n{_table(summary, workdir)}")
    return summary


class Session:
    """One process's share of a run: its writers, its checkpoints and where it is."""

    def __init__(self, config: Config, system: System, inputs: Any, data: Mapping[str, Any]):
        """Begins the run, or restores it from the last checkpoint in `config.workdir`.

        Args:
          config: its settings.
          system: what it is made of.
          inputs: what was read, as `system.open_inputs` returns it.
          data: what is told of each of its data sets, as `finished_summary` takes it.
        """
        since = time.monotonic()
        self.config, self.workdir, self.system = config, Path(config.workdir), system
        self.run, state = system.begin(config, inputs)
        self.data = _with_moments(data, self.run, state)
        # Only now: a wrong data set must not leave a workdir behind that is taken.
        if not (self.workdir / "config.json").is_file() or not (self.workdir / DATA_FILE).is_file():
            write_json(self.workdir / DATA_FILE, self.data)
        write_json(self.workdir / "config.json", config_to_dict(config))
        self.checkpoints = Checkpointer(self.workdir / "checkpoints")
        restored = self.checkpoints.restore(state)
        self.state, book = restored if restored else (state, {})
        self.accounts = Accounts(book)
        self.accounts.add_seconds("start", time.monotonic() - since)
        self.saved_step = self.accounts.ticks
        self.report_due = time.monotonic() + FIRST_REPORT_SECONDS / REPORT_SHARE
        self.metrics = MetricsWriter(self.workdir / "metrics.jsonl", self.accounts.ticks + 1)
        self.num_tasks = system.num_tasks(self.run)
        self.progress = Progress(SECONDS_PER_LINE, num_tasks=self.num_tasks)
        if restored:
            position = f"task {int(self.state.task) + 1}, phase {int(self.state.phase) + 1}"
            self.progress.message(f"resuming at {position}, step {int(self.state.step)}")

    def finish(self) -> dict[str, Any]:
        """Works through all tasks and phases that are left; writes and returns the summary."""
        try:
            for task in range(int(self.state.task), self.num_tasks):
                self._task(task)
            self.system.begin_task(self.run, self.num_tasks - 1)  # resumed after the last task
            summary = self.system.summarise(self.run, self.state, self.accounts)
            summary |= self.system.save(self.run, self.state, self.workdir)
            summary = to_plain(summary | self.data)
            self.system.report(summary, self.workdir)
            write_json(self.workdir / "summary.json", summary)
            self._report()
        finally:
            self.progress.close()
            self.metrics.close()
            self.checkpoints.close()
        tell(f"\n{_table(summary, self.workdir)}")
        return summary

    def _task(self, task):
        plan = self.system.begin_task(self.run, task)
        for index in range(int(self.state.phase), len(plan)):
            name, phase = plan[index]
            self._phase(task, name, phase)
            last = index == len(plan) - 1
            state = self.state.replace(
                task=jnp.asarray(task + last, jnp.int32),
                phase=jnp.asarray(0 if last else index + 1, jnp.int32),
                step=jnp.zeros((), jnp.int32),
            )
            # As a resumed run would have it: where arrays lie is part of a program's identity.
            self.state = replicate(state, self.run.mesh)
            if last and task + 1 < self.num_tasks:  # after the last one, before the summary
                self.system.save(self.run, self.state, self.workdir)
            self._checkpoint()
        if task + 1 < self.num_tasks and time.monotonic() >= self.report_due:
            self._report()

    def _report(self):
        """Writes the page; whatever goes wrong with it, the run's results stay."""
        since = time.monotonic()
        try:
            write_report(self.workdir)
        except Exception as error:
            self.progress.message(f"no {REPORT_FILE}: {type(error).__name__}: {error}")
        now = time.monotonic()
        self.report_due = now + (now - since) / REPORT_SHARE

    def _phase(self, task, name, phase):
        done, every = int(self.state.step), self.config.checkpoint_every
        if not name.startswith(("begin", "evaluate", "judge", "remember", "record")):
            self.progress.compiling(name)
        self.progress.phase(task, name, done)
        since, previous = time.monotonic(), None
        for tick in phase(self.run, self.state):
            self.state = tick.state
            self.accounts.ticks += 1
            # The tick before is finished by now, so fetching it does not stall the device.
            if previous is not None:
                self._log(task, name, previous, self.accounts.ticks - 1)
            previous = tick
            now = time.monotonic()
            self.accounts.add_seconds(name, now - since)
            since = now
            due = tick.step // every > done // every
            done = tick.step
            if due and done < tick.total:
                self._log(task, name, tick, self.accounts.ticks)
                previous = None
                self._checkpoint()
        if previous is not None:
            self._log(task, name, previous, self.accounts.ticks)
        jax.block_until_ready(self.state)
        self.accounts.add_seconds(name, time.monotonic() - since)
        why_not = self.system.draw(self.run, self.state, name, self.workdir / "images")
        if why_not:
            self.progress.message(why_not)

    def _log(self, task, name, tick, number):
        """Checks, writes and shows one tick."""
        scalars, bad = jax.device_get((tick.scalars, tick.bad_step))
        for term, step in bad.items():
            if step >= 0:
                raise NonFiniteLossError(
                    f"the {term} term became NaN or infinite in task {task + 1}, phase {name}, "
                    f"step {int(step) + 1}; the last good checkpoint is kept, lower the learning "
                    "rate or that term's weight."
                )
        loss = None
        if "loss" in scalars or "final_loss" in scalars:
            loss = float(scalars.get("loss", scalars.get("final_loss")))
        if scalars:
            path = f"task{task:02d}/{name.replace(':', '/')}"
            self.metrics.write(number, {f"{path}/{k}": float(v) for k, v in scalars.items()})
        if name in MAKES_IMAGES:
            self.accounts.add_images(task, tick.num_images, scalars)
        if name == "judge":
            self.accounts.describe_images(scalars)
        self.progress.update(tick.step, tick.total, loss, tick.num_images)

    def _checkpoint(self):
        if self.accounts.ticks == self.saved_step:
            return
        self.saved_step = self.accounts.ticks
        self.checkpoints.save(self.accounts.ticks, self.state, self.accounts.to_dict())


def check_workdir(config: Config) -> None:
    """Raises a ValueError if the workdir holds a run with another config."""
    workdir = Path(config.workdir)
    path = workdir / "config.json"
    if not path.is_file():
        return
    different = differing_fields(read_json(path), config)
    gone = [name for name, _, new in different if new == ABSENT]
    if gone:
        listed = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        raise ValueError(
            f"workdir {workdir} holds a run of another version of jaxpmi, whose settings {listed} "
            "this one does not have; choose another --workdir, or the version that began it."
        )
    if different:
        listed = ", ".join(f"{name} ({old!r} there, {new!r} now)" for name, old, new in different)
        raise ValueError(
            f"workdir {workdir} holds a run with another config: {listed}; choose another "
            "--workdir or the same settings."
        )


def _check_data(workdir: Path, data: Mapping[str, Any]) -> None:
    """Raises if the workdir holds a run that began with other data, wherever they lay."""
    if not (workdir / "config.json").is_file() or not (workdir / DATA_FILE).is_file():
        return
    began = read_json(workdir / DATA_FILE)
    for name in {**began, **data}:
        there, now = _facts(began, name), _facts(data, name)
        if there.get("fingerprint") != now.get("fingerprint"):
            raise ValueError(
                f"the data are not those that this run began with: workdir {workdir} is of "
                f"{_sizes(there)}, these are {_sizes(now)} of another fingerprint; give it the "
                "same data, or choose another --workdir."
            )


def _facts(data, name):
    facts = data.get(name)
    return facts if isinstance(facts, Mapping) else {}


def _sizes(facts):
    """Such as `4 classes and 24 + 8 images`."""
    images = facts.get("images", {})
    counts = " + ".join(map(str, images.values())) if isinstance(images, Mapping) else ""
    return f"{len(facts.get('classes', ()))} classes and {counts or 0} images"


def _with_moments(data, run, state):
    """The facts of the data that are learnt, with the moments that their pixels are given."""
    network = getattr(state, "network", run)  # CLIP's run has its own
    moments = {name: np.asarray(getattr(network, name)).tolist() for name in ("mean", "std")}
    said = {name: ", ".join(f"{x:.4f}" for x in values) for name, values in moments.items()}
    tell(f"pixels are normalised by mean {said['mean']} and std {said['std']}")
    return {name: {**facts, **moments} for name, facts in data.items()}


def _table(summary, workdir):
    names = ("summary.json", summary.get("network_file"), "metrics.jsonl")
    names += (REPORT_FILE, "accuracy.png", "miou.png", "images", "checkpoints")
    paths = [workdir / name for name in names if name]
    return summary_table(summary, [str(path) for path in paths if path.exists()])
