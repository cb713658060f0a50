"""The composition root: runs a whole experiment, logs it, checkpoints it, resumes it.

`run` reads like the algorithm: for every task, for every phase, work in steps; after every step
log and, when due, checkpoint. Only this module sees the whole config and writes files.
"""

import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.checkpoint import Checkpointer
from jaxpmi.config import Config
from jaxpmi.config_check import validate
from jaxpmi.config_file import config_to_dict
from jaxpmi.config_file import differing_fields
from jaxpmi.continual import clip_task
from jaxpmi.continual import task as tasks
from jaxpmi.continual.accounting import Accounts
from jaxpmi.continual.accounting import summarise_clip_run
from jaxpmi.continual.accounting import summarise_run
from jaxpmi.continual.clip_start import PRETRAINED
from jaxpmi.continual.clip_start import initial_clip_state
from jaxpmi.continual.clip_start import open_clip_run
from jaxpmi.continual.clip_state import ClipRun
from jaxpmi.continual.methods import first_phases
from jaxpmi.continual.start import fresh_network
from jaxpmi.continual.start import fresh_projections
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.task import Run
from jaxpmi.continual.task import Tick
from jaxpmi.continual.train import NonFiniteLossError
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.writers import MetricsWriter
from jaxpmi.writers import Progress
from jaxpmi.writers import read_json
from jaxpmi.writers import summary_table
from jaxpmi.writers import to_plain
from jaxpmi.writers import write_accuracy_plot
from jaxpmi.writers import write_image_grid
from jaxpmi.writers import write_json
from jaxpmi.writers import write_samples_npz

PhaseFn = Callable[[Any, Any], Iterator[Tick]]


class System(NamedTuple):
    """A kind of run: how it begins, what a task is made of, what is told at the end."""

    open_run: Callable[[Config], tuple[Any, tuple[int, ...]]]
    initial_state: Callable[[Any, tuple[int, ...]], Any]
    task_plan: Callable[[Any, int], list[tuple[str, PhaseFn]]]
    summarise: Callable[[Any, Any, Accounts], dict[str, Any]]


def run(config: Config) -> dict[str, Any]:
    """Runs an experiment to its end, resuming what `config.workdir` holds; returns the summary.

    Raises:
      ValueError, OSError: for anything wrong with the config, the data or the workdir.
      NonFiniteLossError: where a loss became NaN or infinite.
    """
    validate(config, make_mesh().size)
    workdir = Path(config.workdir)
    _check_workdir(workdir, config)
    finished = workdir / "summary.json"
    if finished.is_file():
        summary = read_json(finished)
        print(f"this run has finished; its summary again:\n\n{_table(summary, workdir)}")
        return summary
    system = CLIP if config.model.name == "clip" else CLASS_INCREMENTAL
    if system is CLIP and config.clip.weights is None and not (workdir / PRETRAINED).is_file():
        print("training a small CLIP, about a minute ...", flush=True)
    return _Session(config, workdir, system).finish()


def task_plan(run: Run, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases of a task, in order, by name."""
    plan: list[tuple[str, PhaseFn]] = [("begin", begin_phase)]
    if task > 0 and run.method.replay == "inversion":
        plan.append(("invert", tasks.invert_phase))
    if task > 0 and run.method.replay == "generator":
        plan.append(("generate", tasks.generate_phase))
    make = first_phases if task == 0 or run.method.all_data else run.method.phases
    for phase in make(run.config.train, run.config.losses):
        if phase.share > 0:
            plan.append((f"train:{phase.name}", _train_with(phase)))
    if run.method.replay == "inversion":
        plan.append(("remember", tasks.remember_phase))
    plan.append(("evaluate", tasks.evaluate_phase))
    return plan


def clip_task_plan(run: ClipRun, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases of a task of a CLIP run; the last task may be of classes with only a name."""
    plan: list[tuple[str, PhaseFn]] = [("begin", clip_task.begin_phase)]
    name_only = run.is_name_only(task)
    replay = run.method.replay == "inversion"
    if task > 0 and replay:
        plan.append(("invert", clip_task.invert_phase))
    if name_only and replay:
        plan.append(("invert:names", clip_task.invert_names_phase))
        plan.append(("train:names", clip_task.train_names_phase))
        plan.append(("train:upper_bound", clip_task.upper_bound_phase))
    elif not name_only:
        plan.append(("train:adapters", clip_task.train_phase))
        if replay:
            plan.append(("remember", clip_task.remember_phase))
    plan.append(("evaluate", clip_task.evaluate_phase))
    return plan


def begin_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Freezes the network as the teacher; the joint upper bound starts a fresh network."""
    key_network, key_projections = jax.random.split(tasks.phase_key(state))
    if int(state.task) > 0:
        state = tasks.begin_task(
            run, state, fresh_projections(run, key_projections, state.network.head.shape[0])
        )
        if run.method.all_data:
            state = state.replace(network=fresh_network(run, key_network))
    yield Tick(state, 1, 1, {}, {}, 0)


CLASS_INCREMENTAL = System(open_run, initial_state, task_plan, summarise_run)
CLIP = System(open_clip_run, initial_clip_state, clip_task_plan, summarise_clip_run)


class _Session:
    """One process's share of a run: its writers, its checkpoints and where it is."""

    def __init__(self, config: Config, workdir: Path, system: System):
        since = time.monotonic()
        self.config, self.workdir, self.system = config, workdir, system
        self.run, order = system.open_run(config)
        state = system.initial_state(self.run, order)
        # Only now: a wrong data set must not leave a workdir behind that is taken.
        write_json(workdir / "config.json", config_to_dict(config))
        self.checkpoints = Checkpointer(workdir / "checkpoints")
        restored = self.checkpoints.restore(state)
        self.state, book = restored if restored else (state, {})
        self.accounts = Accounts(book)
        self.accounts.add_seconds("start", time.monotonic() - since)
        self.saved_step = self.accounts.ticks
        self.metrics = MetricsWriter(workdir / "metrics.jsonl", self.accounts.ticks + 1)
        self.progress = Progress(config.log_every_seconds, num_tasks=self.run.stream.num_tasks)
        if restored:
            position = f"task {int(self.state.task) + 1}, phase {int(self.state.phase) + 1}"
            self.progress.message(f"resuming at {position}, step {int(self.state.step)}")

    def finish(self) -> dict[str, Any]:
        """Works through all tasks and phases that are left; writes and returns the summary."""
        try:
            for task in range(int(self.state.task), self.run.stream.num_tasks):
                self._task(task)
            self.run.stream.begin(self.run.stream.num_tasks - 1)  # resumed after the last task
            summary = to_plain(self.system.summarise(self.run, self.state, self.accounts))
            matrix = np.asarray(summary["accuracy_matrix"], float)
            title = f"{summary['method']} on {summary['dataset']}, seed {summary['seed']}"
            write_accuracy_plot(self.workdir / "accuracy.png", matrix, title)
            write_json(self.workdir / "summary.json", summary)
        finally:
            self.progress.close()
            self.metrics.close()
            self.checkpoints.close()
        print(f"\n{_table(summary, self.workdir)}")
        return summary

    def _task(self, task):
        self.run.stream.begin(task)
        plan = self.system.task_plan(self.run, task)
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
            self._checkpoint()

    def _phase(self, task, name, phase):
        done, every = int(self.state.step), self.config.checkpoint_every
        if name.startswith(("train", "invert", "generate")):
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
        if name in ("invert", "generate"):
            self._write_samples(task)

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
        if name.startswith("train") and "accuracy" not in scalars:
            loss = float(sum(scalars.values()))
            scalars = {**scalars, "loss": loss}
        elif "final_loss" in scalars:
            loss = float(scalars["final_loss"])
        elif "loss" in scalars:
            loss = float(scalars["loss"])
        if scalars:
            path = f"task{task:02d}/{name.replace(':', '/')}"
            self.metrics.write(number, {f"{path}/{k}": float(v) for k, v in scalars.items()})
        self.accounts.add_tick(task, name, tick, scalars)
        self.progress.update(tick.step, tick.total, loss, tick.num_images)

    def _checkpoint(self):
        if self.accounts.ticks == self.saved_step:
            return
        self.saved_step = self.accounts.ticks
        self.checkpoints.save(self.accounts.ticks, self.state, self.accounts.to_dict())

    def _write_samples(self, task):
        stream, count = self.run.stream, int(self.state.replay.count)
        samples, labels = jax.device_get((self.state.replay.samples, self.state.replay.labels))
        samples, labels = samples[:count], labels[:count]
        folder = self.workdir / "images"
        if self.config.inversion.space == "pixels":
            real = [(stream.test_images(t), stream.test_labels(t)) for t in range(task)]
            write_image_grid(
                folder / f"task{task}.png",
                samples,
                labels,
                np.concatenate([x for x, _ in real]),
                np.concatenate([y for _, y in real]),
                stream.class_names,
            )
        else:
            self.progress.message(f"no images/task{task}.png: patch embeddings cannot be drawn")
        if self.config.save_images:
            order = np.asarray(self.state.class_order)
            write_samples_npz(folder / f"task{task}.npz", samples, order[labels])


def _train_with(phase):
    return lambda run, state: tasks.train_phase(run, state, phase)


def _check_workdir(workdir: Path, config: Config) -> None:
    """Raises if the workdir holds a run with another config."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    different = differing_fields(read_json(path), config)
    if different:
        listed = ", ".join(f"{name} ({old!r} there, {new!r} now)" for name, old, new in different)
        raise ValueError(
            f"workdir {workdir} holds a run with another config: {listed}; choose another "
            "--workdir or the same settings."
        )


def _table(summary, workdir):
    names = ["summary.json", "metrics.jsonl", "accuracy.png", "images", "checkpoints"]
    return summary_table(summary, [str(workdir / n) for n in names if (workdir / n).exists()])
