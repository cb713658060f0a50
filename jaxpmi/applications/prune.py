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

from jaxpmi.accounting import Accounts
from jaxpmi.applications.methods import SYNTHESISERS
from jaxpmi.applications.speed import measure_speed_up
from jaxpmi.applications.state import ApplicationRun
from jaxpmi.applications.state import ApplicationState
from jaxpmi.applications.state import first_state
from jaxpmi.applications.state import measure_accuracy
from jaxpmi.applications.state import open_data
from jaxpmi.applications.state import save_result
from jaxpmi.applications.state import teacher_phases
from jaxpmi.applications.student import Student
from jaxpmi.applications.student import StudentProgram
from jaxpmi.applications.student import cosine_rates
from jaxpmi.applications.student import distill_steps
from jaxpmi.applications.student import init_student
from jaxpmi.applications.student import sgd
from jaxpmi.applications.synthesis import add_batch
from jaxpmi.applications.synthesis import draw_pool
from jaxpmi.applications.synthesis import empty_pool
from jaxpmi.applications.synthesis import fill_pool
from jaxpmi.augment import normalise
from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import PruneConfig
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.state import Network
from jaxpmi.continual.state import Replay
from jaxpmi.data import dataset_name
from jaxpmi.inversion.objectives import class_cross_entropy
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward
from jaxpmi.models.channels import filter_groups
from jaxpmi.models.cost import count_multiply_adds
from jaxpmi.models.cost import count_parameters
from jaxpmi.models.pruning import Kept
from jaxpmi.models.pruning import choose_filters
from jaxpmi.models.pruning import filter_importance
from jaxpmi.models.pruning import filter_mask
from jaxpmi.models.pruning import remove_filters
from jaxpmi.phases import PhaseFn
from jaxpmi.phases import System
from jaxpmi.phases import Tick
from jaxpmi.sharding import replicate

CHUNK_STEPS = 100  # of final tuning per compiled call
SPEED_BATCH = 128  # images per batch, where speed is measured


def begin(config: Config) -> tuple[ApplicationRun, ApplicationState]:
    """Opens the data, makes the network, and room for all images."""
    run = open_data(config, None)
    settings, synthesiser = config.prune, SYNTHESISERS[config.method]
    num_images = _num_batches(config) * synthesiser.batch_size(config)
    state = first_state(run, pool=empty_pool(run, num_images))
    groups = filter_groups(run.model, state.network.variables)
    student = jax.tree.map(jnp.copy, state.network)
    state = state.replace(
        student=student,
        student_opt_state=init_student(student, sgd(settings)).opt_state,
        synthesiser=synthesiser.begin(run, state, jax.random.key(config.seed + 1)),
        kept={name: jnp.ones(group.size, bool) for name, group in groups.items()},
        results={"accuracy_before": jnp.asarray(jnp.nan), "accuracy_after": jnp.asarray(jnp.nan)},
    )
    return run, replicate(state, run.mesh)


def plan(run: ApplicationRun, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases, in order, by name."""
    del task
    phases = [*teacher_phases(run), ("invert", invert_phase), ("prune", prune_phase)]
    if run.config.prune.final_steps:
        phases.append(("prune:tune", tune_phase))
    return [*phases, ("evaluate", evaluate_phase)]


def invert_phase(run: ApplicationRun, state: ApplicationState) -> Iterator[Tick]:
    """Makes the images to begin with."""
    yield from fill_pool(run, state, SYNTHESISERS[run.config.method], _num_initial(run.config))


def prune_phase(run: ApplicationRun, state: ApplicationState) -> Iterator[Tick]:
    """Removals: importance, the least important filters set to 0, a little distillation."""
    config, settings = run.config, run.config.prune
    synthesiser, key = SYNTHESISERS[config.method], phase_key(state)
    program = _program(run, settings)
    groups = filter_groups(run.model, state.network.variables)
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
            state.student, state.pool, state.mean, state.std, keys[1],
            model=run.model, settings=settings,
        )  # fmt: skip
        # What is gone stays so: it ranks below everything else.
        ranked = {
            name: np.where(np.asarray(state.kept[name]), np.asarray(scores), -1.0)
            for name, scores in importance.items()
        }
        num_removed = round(settings.share * num_filters * (index + 1) / settings.num_removals)
        kept = choose_filters(
            groups, ranked, num_removed=num_removed, min_filters=settings.min_filters
        )
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
        images = settings.batch_size * (settings.importance_batches + settings.tuning_steps)
        yield Tick(state, index + 1, settings.num_removals, scalars, bad, images)


def tune_phase(run: ApplicationRun, state: ApplicationState) -> Iterator[Tick]:
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


def evaluate_phase(run: ApplicationRun, state: ApplicationState) -> Iterator[Tick]:
    """Accuracy of the whole network and of the small one that is left."""
    small_model, small = pruned_network(run.model, state)
    before = measure_accuracy(run, state, state.network, run.model)
    after = measure_accuracy(run, state, small, small_model)
    results = {"accuracy_before": jnp.asarray(before), "accuracy_after": jnp.asarray(after)}
    scalars = {f"accuracy/{k.removeprefix('accuracy_')}": v for k, v in results.items()}
    yield Tick(state.replace(results=results), 1, 1, scalars, {}, len(run.stream.test_labels(0)))


def pruned_network(model: BlockwiseModel, state: ApplicationState) -> tuple[Any, Network]:
    """The network without the filters that are not kept, and its model."""
    variables, head = state.student
    model, variables, head = remove_filters(model, variables, head, _as_kept(state.kept))
    return model, Network(variables, head)


def summarise(run: ApplicationRun, state: ApplicationState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    config, results = run.config, jax.device_get(state.results)
    small_model, small = pruned_network(run.model, state)
    networks = {"before": (run.model, state.network), "after": (small_model, small)}
    shape = run.stream.image_shape
    speed_up = measure_speed_up(
        (run.model, *state.network), (small_model, *small),
        image_shape=shape, batch_size=SPEED_BATCH,
    )  # fmt: skip
    return {
        "job": config.job,
        "method": config.method,
        "dataset": dataset_name(config.data),
        "seed": config.seed,
        "accuracy_before": float(results["accuracy_before"]),
        "accuracy_after": float(results["accuracy_after"]),
        "filters": {
            "before": sum(g.size * g.num_filters for g in _groups(run.model, state.network)),
            "after": sum(g.size * g.num_filters for g in _groups(small_model, small)),
        },
        "parameters": {
            k: count_parameters((network.variables.params, network.head))
            for k, (_, network) in networks.items()
        },
        # Two per multiply-add of the convolutions, per image.
        "flops": {
            k: 2 * count_multiply_adds(model, network.variables, shape)
            for k, (model, network) in networks.items()
        },
        "measured_speed_up": speed_up,
        "num_synthesized": int(state.pool.count),
        "inversion": accounts.inversion,
        **accounts.cost(run.mesh.size),
    }


def save(run: ApplicationRun, state: ApplicationState, folder: Path) -> dict[str, str]:
    """Writes the small network."""
    model, small = pruned_network(run.model, state)
    return save_result(run, state, folder, small, model, run.config.model, _as_kept(state.kept))


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def measure_importance(
    network: Network,
    pool: Replay,
    mean: jax.Array,
    std: jax.Array,
    key: jax.Array,
    *,
    model: BlockwiseModel,
    settings: PruneConfig,
) -> dict[str, jax.Array]:
    """Importance f32[size] of every group's channels, averaged over batches of the pool.

    The loss is the cross-entropy of the labels that the images were made for: distillation has no
    gradient where a network is compared with itself.
    """

    def loss_fn(params, images, labels):
        variables = Variables(params, network.variables.batch_stats)
        return class_cross_entropy(
            forward(model, variables, images).features @ network.head, labels
        )

    def one(key):
        rows = jax.random.randint(key, (settings.batch_size,), 0, pool.count)
        images = normalise(pool.samples[rows], mean, std)
        grads = jax.grad(loss_fn)(network.variables.params, images, pool.labels[rows])
        return filter_importance(model, network.variables, grads, kind=settings.importance)

    keys = jax.random.split(key, settings.importance_batches)
    return jax.tree.map(lambda scores: scores.mean(0), jax.lax.map(one, keys))


def _refill(run, state, synthesiser, goal, key):
    """Makes batches that are hard for the network as it is, up to `goal` batches in all."""
    size, finite = synthesiser.batch_size(run.config), jnp.asarray(True)
    for index in range(int(state.pool.count) // size, goal):
        state, _, good = add_batch(
            run, state, synthesiser, jax.random.fold_in(key, index),
            against=state.student, student_model=run.model,
        )  # fmt: skip
        finite = finite & good
    return state, finite


def _tune(run, state, rates, key, program):
    """Steps of distillation; parameters of filters that are not kept are 0, before and after."""
    variables, head = state.student
    mask = {
        "backbone": filter_mask(run.model, variables, state.kept),
        "head": jnp.ones_like(head),
        "auxiliary": {},
    }
    params = jax.tree.map(jnp.multiply, variables.params, mask["backbone"])
    student = Student(Network(variables._replace(params=params), head), state.student_opt_state)
    student, metrics = distill_steps(
        student, state.network, state.pool, rates, state.mean, state.std, key, mask, program=program
    )
    state = state.replace(student=student.network, student_opt_state=student.opt_state)
    return state, metrics


def _program(run, settings):
    no_views = AugmentConfig()
    return StudentProgram(
        run.model, run.model, sgd(settings), settings.temperature, no_views, run.mesh
    )


def _as_masks(kept: Kept, groups) -> dict[str, jax.Array]:
    masks = {name: np.zeros(group.size, bool) for name, group in groups.items()}
    for name, channels in kept.items():
        masks[name][list(channels)] = True
    return jax.tree.map(jnp.asarray, masks)


def _as_kept(masks: dict[str, jax.Array]) -> Kept:
    return {name: tuple(np.flatnonzero(mask).tolist()) for name, mask in masks.items()}


def _num_batches(config: Config) -> int:
    """Of synthetic images, in all."""
    return -(-config.prune.num_images // SYNTHESISERS[config.method].batch_size(config))


def _num_initial(config: Config) -> int:
    """Of these before the first removal: half, where later ones can be hard for what is left."""
    total = _num_batches(config)
    return -(-total // 2) if SYNTHESISERS[config.method].adapts else total


def _groups(model, network):
    return filter_groups(model, network.variables).values()


PRUNE = System(begin, lambda run: 1, plan, draw_pool, summarise, save=save)
