"""Data-free knowledge transfer: a student learns a trained network on synthetic images alone.

Rounds of synthesis and of training alternate, so that methods which look at the student, or at the
images made before, can (ADI, CMI, FastDFKD). The test images are read to measure, never to learn.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.cost import count_parameters
from jaxpmi.config import Config
from jaxpmi.continual.result import save_result
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import open_images
from jaxpmi.data import dataset_name
from jaxpmi.jobs.methods import find_synthesiser
from jaxpmi.jobs.state import JobState
from jaxpmi.jobs.state import first_state
from jaxpmi.jobs.state import given_or_fresh
from jaxpmi.jobs.state import measure_accuracy
from jaxpmi.jobs.state import one_task_run
from jaxpmi.jobs.state import teacher_phases
from jaxpmi.jobs.student import Student
from jaxpmi.jobs.student import StudentProgram
from jaxpmi.jobs.student import cosine_rates
from jaxpmi.jobs.student import distill_steps
from jaxpmi.jobs.student import init_student
from jaxpmi.jobs.student import sgd
from jaxpmi.jobs.synthesis import add_batch
from jaxpmi.jobs.synthesis import draw_pool
from jaxpmi.jobs.synthesis import empty_pool
from jaxpmi.jobs.synthesis import fill_pool
from jaxpmi.jobs.synthesis import pool_images
from jaxpmi.quality import measure_diversity
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.runs.phases import System
from jaxpmi.runs.phases import Tick
from jaxpmi.runs.writers import write_learning_curve
from jaxpmi.sharding import replicate
from jaxpmi.weights.given import given_network
from jaxpmi.weights.network_file import SavedNetwork

NUM_MEASUREMENTS = 10  # of the student's accuracy, evenly spread over its training


@dataclasses.dataclass(frozen=True)
class DistillRun(Run):
    """What stays the same during a job."""

    given_student: SavedNetwork | None  # the trained network that the student begins as


def begin(config: Config, inputs: Inputs | None = None) -> tuple[DistillRun, JobState]:
    """Makes teacher and student, and room for all images, on what was read (None: read here)."""
    settings = config.distill
    given = given_network(settings.student, config.data, "distill.student")
    run = one_task_run(inputs or open_images(config))
    run = DistillRun(
        **{f.name: getattr(run, f.name) for f in dataclasses.fields(run)}, given_student=given
    )
    synthesiser = find_synthesiser(config.method)
    key_student, key_synthesiser = jax.random.split(jax.random.key(config.seed + 1))
    student = given_or_fresh(run, settings.student, given, key_student)
    num_images = (settings.initial_batches + settings.rounds) * synthesiser.batch_size(config)
    state = first_state(run, pool=empty_pool(run, num_images))
    state = state.replace(
        student=student,
        student_opt_state=init_student(student, sgd(settings)).opt_state,
        synthesiser=synthesiser.begin(config, state.network, key_synthesiser),
        results={
            "teacher_accuracy": jnp.asarray(jnp.nan),
            "student_accuracy": jnp.full(NUM_MEASUREMENTS, jnp.nan),
            "diversity": jnp.full(2, jnp.nan),
        },
    )
    return run, replicate(state, run.mesh)


def plan(run: Run, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases, in order, by name."""
    del task
    phases = teacher_phases(run)
    if _num_initial(run.config):
        phases.append(("invert", invert_phase))
    return [*phases, ("distill", distill_phase), ("evaluate", evaluate_phase)]


def invert_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Makes the images that the student begins with."""
    yield from fill_pool(run, state, find_synthesiser(run.config.method), _num_initial(run.config))


def distill_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Rounds: more images, where the method looks at the student, then steps of the student."""
    config, settings = run.config, run.config.distill
    synthesiser, train = find_synthesiser(config.method), sgd(settings)
    key = phase_key(state)
    steps, total = settings.steps_per_round, settings.rounds * settings.steps_per_round
    rates = cosine_rates(settings.learning_rate, total, settings.warmup_steps)
    program = StudentProgram(train, settings.temperature, settings.augment, run.mesh)
    numbers = np.arange(1, NUM_MEASUREMENTS + 1)
    measured_after = -(-settings.rounds * numbers // NUM_MEASUREMENTS)  # rounds, rounded up
    for index in range(int(state.step) // steps, settings.rounds):
        key_images, key_steps = jax.random.split(jax.random.fold_in(key, index))
        scalars, finite = {}, jnp.asarray(True)
        if synthesiser.adapts:
            state, scalars, finite = add_batch(
                run, state, synthesiser, key_images, against=state.student
            )
        first = index * steps
        student, metrics = distill_steps(
            Student(state.student, state.student_opt_state), state.network, state.pool,
            rates[first : first + steps], key_steps, program=program,
        )  # fmt: skip
        state = state.replace(
            student=student.network,
            student_opt_state=student.opt_state,
            step=jnp.asarray(first + steps, jnp.int32),
        )
        scalars |= {name: term / steps for name, term in metrics.terms.items()}
        scalars["loss"] = scalars["distillation"]
        for place in np.flatnonzero(measured_after == index + 1):
            accuracy = measure_accuracy(run, state.student)
            curve = state.results["student_accuracy"].at[place].set(accuracy)
            state = state.replace(results={**state.results, "student_accuracy": curve})
            scalars["student_accuracy"] = jnp.asarray(accuracy)
        bad = {
            "synthesis": jnp.where(finite, -1, first),
            **{k: jnp.where(v < 0, v, v + first) for k, v in metrics.bad_step.items()},
        }
        yield Tick(state, first + steps, total, scalars, bad, steps * train.batch_size)


def evaluate_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """The teacher's accuracy, and how much images of one class differ, beside real ones."""
    accuracy = measure_accuracy(run, state.network)
    real = run.stream.test_images(0), run.stream.test_labels(0)
    made = pool_images(state)
    diversity = [measure_diversity(state.network, *images) for images in (made, real)]
    results = {
        **state.results,
        "teacher_accuracy": jnp.asarray(accuracy, jnp.float32),
        "diversity": jnp.asarray(diversity, jnp.float32),
    }
    scalars = {"accuracy/teacher": results["teacher_accuracy"]}
    yield Tick(state.replace(results=results), 1, 1, scalars, {}, len(real[1]))


def summarise(run: Run, state: JobState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    config, results = run.config, jax.device_get(state.results)
    teacher, curve = float(results["teacher_accuracy"]), results["student_accuracy"]
    synthetic, real = results["diversity"].tolist()
    return {
        "job": config.job,
        "method": config.method,
        "dataset": dataset_name(config.data),
        "seed": config.seed,
        "teacher_accuracy": teacher,
        "student_accuracy": float(curve[-1]),
        "student_of_teacher": float(curve[-1]) / teacher,
        "student_accuracy_curve": curve.tolist(),
        "parameters": {
            "teacher": count_parameters((state.network.variables.params, state.network.head)),
            "student": count_parameters((state.student.variables.params, state.student.head)),
        },
        "num_synthesized": int(state.pool.count),
        "diversity": {
            "synthetic": synthetic,
            "real": real,
            "share_of_real": synthetic / real,
        },
        "inversion": accounts.inversion,
        **accounts.cost(run.mesh.size),
    }


def report(summary: dict[str, Any], folder: Path) -> None:
    """Writes accuracy.png."""
    title = f"{summary['method']} on {summary['dataset']}, seed {summary['seed']}"
    write_learning_curve(
        folder / "accuracy.png",
        np.arange(1, NUM_MEASUREMENTS + 1) / NUM_MEASUREMENTS,
        summary["student_accuracy_curve"],
        summary["teacher_accuracy"],
        title,
    )


def save(run: DistillRun, state: JobState, folder: Path) -> dict[str, str]:
    """Writes the student."""
    given = run.given_student
    if given is not None:
        return save_result(folder, state.student, given.config, given.kept)
    return save_result(folder, state.student, run.config.distill.student)


def _num_initial(config: Config) -> int:
    """Batches made before the student's first step."""
    settings = config.distill
    adapts = find_synthesiser(config.method).adapts
    return settings.initial_batches + (0 if adapts else settings.rounds)


DISTILL = System(open_images, begin, lambda run: 1, plan, draw_pool, summarise, report, save)
