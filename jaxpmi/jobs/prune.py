"""Data-free pruning: the least important filters of a trained network go, a few at a time.

Importance is measured, and accuracy won back by distillation from the whole network, on synthetic
images alone (docs/distillation_and_pruning.md). While filters go, their parameters are held at 0,
so that one program serves every width; at the end they are removed, and the network is smaller.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.cost import count_multiply_adds
from jaxpmi.blocks.cost import count_parameters
from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import PruneConfig
from jaxpmi.continual.result import save_result
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import open_images
from jaxpmi.continual.state import Replay
from jaxpmi.data import dataset_name
from jaxpmi.inversion.objectives import class_cross_entropy
from jaxpmi.jobs.methods import find_synthesiser
from jaxpmi.jobs.speed import measure_speed_up
from jaxpmi.jobs.state import JobState
from jaxpmi.jobs.state import first_state
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
from jaxpmi.network import Network
from jaxpmi.pruning import Kept
from jaxpmi.pruning import choose_filters
from jaxpmi.pruning import filter_groups
from jaxpmi.pruning import filter_importance
from jaxpmi.pruning import filter_mask
from jaxpmi.pruning import kept_of_both
from jaxpmi.pruning import remove_filters
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.runs.phases import System
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate

IMPORTANCE_BATCHES = 20  # of synthetic images, per measurement
TEMPERATURE = 3.0  # of distillation
CHUNK_STEPS = 100  # of final tuning per compiled call
SPEED_BATCH = 128  # images per batch, where speed is measured


def begin(config: Config, inputs: Inputs | None = None) -> tuple[Run, JobState]:
    """Makes the network, and room for all images, on data sets (None: opened here)."""
    run = one_task_run(inputs or open_images(config))
    settings, synthesiser = config.prune, find_synthesiser(config.method)
    num_images = _num_batches(config) * synthesiser.batch_size(config)
    state = first_state(run, pool=empty_pool(run, num_images))
    groups = filter_groups(state.network)
    student = jax.tree.map(jnp.copy, state.network)
    state = state.replace(
        student=student,
        student_opt_state=init_student(student, sgd(settings)).opt_state,
        synthesiser=synthesiser.begin(config, state.network, jax.random.key(config.seed + 1)),
        kept={name: jnp.ones(group.size, bool) for name, group in groups.items()},
        results={"accuracy_before": jnp.asarray(jnp.nan), "accuracy_after": jnp.asarray(jnp.nan)},
    )
    return run, replicate(state, run.mesh)


def plan(run: Run, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases, in order, by name."""
    del task
    phases = [*teacher_phases(run), ("invert", invert_phase), ("prune", prune_phase)]
    if run.config.prune.final_steps:
        phases.append(("prune:tune", tune_phase))
    return [*phases, ("evaluate", evaluate_phase)]


def invert_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Makes the images to begin with."""
    yield from fill_pool(run, state, find_synthesiser(run.config.method), _num_initial(run.config))


def prune_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Removals: importance, the least important filters set to 0, a little distillation."""
    config, settings = run.config, run.config.prune
    synthesiser, key = find_synthesiser(config.method), phase_key(state)
    program = _program(run, settings)
    groups = filter_groups(state.network)
    num_filters = sum(group.size * group.num_filters for group in groups.values())
    rates = jnp.full(settings.tuning_steps, settings.learning_rate)
    if int(state.step) == 0:
        state = state.replace(student=jax.tree.map(jnp.copy, state.network))
    later = _num_batches(config) - _num_initial(config)
    for index in range(int(state.step), settings.num_removals):
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        goal = _num_initial(config) + (index + 1) * later // settings.num_removals
        state, finite = _refill(run, state, synthesiser, goal, keys[0])
        importance = measure_importance(
            state.student, state.pool, keys[1], settings=settings
        )  # fmt: skip
        # What is gone stays so: it ranks below everything else.
        ranked = {
            name: np.where(np.asarray(state.kept[name]), np.asarray(scores), -1.0)
            for name, scores in importance.items()
        }
        num_removed = round(settings.share * num_filters * (index + 1) / settings.num_removals)
        kept = choose_filters(groups, ranked, num_removed=num_removed)
        masks = _as_masks(kept, groups)
        masks = {name: mask & state.kept[name] for name, mask in masks.items()}  # none comes back
        state = state.replace(kept=masks)
        state, metrics = _tune(run, state, rates, keys[2], program)
        state = state.replace(step=jnp.asarray(index + 1, jnp.int32))
        steps = max(settings.tuning_steps, 1)
        scalars = {name: term / steps for name, term in metrics.terms.items()}
        scalars["loss"] = scalars["distillation"]
        scalars["filters"] = jnp.asarray(num_filters - num_removed)
        bad = {"synthesis": jnp.where(finite, -1, index), **metrics.bad_step}
        images = settings.batch_size * (IMPORTANCE_BATCHES + settings.tuning_steps)
        yield Tick(state, index + 1, settings.num_removals, scalars, bad, images)


def tune_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Distillation from the whole network, with nothing more removed."""
    settings, key = run.config.prune, phase_key(state)
    program, total = _program(run, settings), settings.final_steps
    rates = cosine_rates(settings.learning_rate, total)
    for first in range(int(state.step), total, CHUNK_STEPS):
        some = rates[first : first + CHUNK_STEPS]
        state, metrics = _tune(run, state, some, jax.random.fold_in(key, first), program)
        done = first + len(some)
        state = state.replace(step=jnp.asarray(done, jnp.int32))
        scalars = {"loss": metrics.terms["distillation"] / len(some)}
        bad = {name: jnp.where(v < 0, v, v + first) for name, v in metrics.bad_step.items()}
        yield Tick(state, done, total, scalars, bad, len(some) * settings.batch_size)


def evaluate_phase(run: Run, state: JobState) -> Iterator[Tick]:
    """Accuracy of the whole network and of the small one that is left."""
    before = measure_accuracy(run, state.network)
    after = measure_accuracy(run, pruned_network(state))
    results = {"accuracy_before": jnp.asarray(before), "accuracy_after": jnp.asarray(after)}
    scalars = {f"accuracy/{k.removeprefix('accuracy_')}": v for k, v in results.items()}
    yield Tick(state.replace(results=results), 1, 1, scalars, {}, len(run.stream.test_labels(0)))


def pruned_network(state: JobState) -> Network:
    """The network without the filters that are not kept."""
    return remove_filters(state.student, _as_kept(state.kept))


def summarise(run: Run, state: JobState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    config, results = run.config, jax.device_get(state.results)
    small, shape = pruned_network(state), run.stream.image_shape
    networks = {"before": state.network, "after": small}
    speed_up = measure_speed_up(state.network, small, batch_size=SPEED_BATCH)
    return {
        "job": config.job,
        "method": config.method,
        "dataset": dataset_name(config.data),
        "seed": config.seed,
        "accuracy_before": float(results["accuracy_before"]),
        "accuracy_after": float(results["accuracy_after"]),
        "filters": {
            name: sum(group.size * group.num_filters for group in filter_groups(network).values())
            for name, network in networks.items()
        },
        "parameters": {
            k: count_parameters((network.variables.params, network.head))
            for k, network in networks.items()
        },
        # Two per multiply-add of the convolutions, per image.
        "flops": {
            k: 2 * count_multiply_adds(network.model, network.variables, shape)
            for k, network in networks.items()
        },
        "measured_speed_up": speed_up,
        "num_synthesized": int(state.pool.count),
        "inversion": accounts.inversion,
        **accounts.cost(run.mesh.size),
    }


def save(run: Run, state: JobState, folder: Path) -> dict[str, str]:
    """Writes the small network."""
    kept = _as_kept(state.kept)
    if run.given is not None and run.given.kept is not None:
        kept = kept_of_both(run.given.kept, kept)
    return save_result(folder, pruned_network(state), run.config.model, kept)


@functools.partial(jax.jit, static_argnames="settings")
def measure_importance(
    network: Network,
    pool: Replay,
    key: jax.Array,
    *,
    settings: PruneConfig,
) -> dict[str, jax.Array]:
    """Importance f32[size] of every group's channels, averaged over batches of the pool.

    The loss is the cross-entropy of the labels that the images were made for: distillation has no
    gradient where a network is compared with itself.
    """

    def loss_fn(params, images, labels):
        variables = Variables(params, network.variables.batch_stats)
        features = forward(network.model, variables, images).features
        return class_cross_entropy(network.head(features), labels)

    def one(key):
        rows = jax.random.randint(key, (settings.batch_size,), 0, pool.count)
        images = normalise(pool.samples[rows], network.mean, network.std)
        grads = jax.grad(loss_fn)(network.variables.params, images, pool.labels[rows])
        return filter_importance(network, grads)

    keys = jax.random.split(key, IMPORTANCE_BATCHES)
    return jax.tree.map(lambda scores: scores.mean(0), jax.lax.map(one, keys))


def _refill(run, state, synthesiser, goal, key):
    """Makes batches that are hard for the network as it is, up to `goal` batches in all."""
    size, finite = synthesiser.batch_size(run.config), jnp.asarray(True)
    for index in range(int(state.pool.count) // size, goal):
        state, _, good = add_batch(
            run, state, synthesiser, jax.random.fold_in(key, index), against=state.student
        )  # fmt: skip
        finite = finite & good
    return state, finite


def _tune(run, state, rates, key, program):
    """Steps of distillation; parameters of filters that are not kept are 0, before and after."""
    network = state.student
    mask = {
        "backbone": filter_mask(network, state.kept),
        "head": jax.tree.map(jnp.ones_like, network.head),
        "auxiliary": {},
    }
    params = jax.tree.map(jnp.multiply, network.variables.params, mask["backbone"])
    network = network.replace(variables=network.variables._replace(params=params))
    student = Student(network, state.student_opt_state)
    student, metrics = distill_steps(
        student, state.network, state.pool, rates, key, mask, program=program
    )
    state = state.replace(student=student.network, student_opt_state=student.opt_state)
    return state, metrics


def _program(run, settings):
    no_views = AugmentConfig()
    return StudentProgram(sgd(settings), TEMPERATURE, no_views, run.mesh)


def _as_masks(kept: Kept, groups) -> dict[str, jax.Array]:
    masks = {name: np.zeros(group.size, bool) for name, group in groups.items()}
    for name, channels in kept.items():
        masks[name][list(channels)] = True
    return jax.tree.map(jnp.asarray, masks)


def _as_kept(masks: dict[str, jax.Array]) -> Kept:
    return {name: tuple(np.flatnonzero(mask).tolist()) for name, mask in masks.items()}


def _num_batches(config: Config) -> int:
    """Of synthetic images, in all."""
    return -(-config.prune.num_images // find_synthesiser(config.method).batch_size(config))


def _num_initial(config: Config) -> int:
    """Of these before the first removal: half, where later ones can be hard for what is left."""
    total = _num_batches(config)
    return -(-total // 2) if find_synthesiser(config.method).adapts else total


PRUNE = System(open_images, begin, lambda run: 1, plan, draw_pool, summarise, save=save)
