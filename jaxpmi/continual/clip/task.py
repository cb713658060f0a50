"""The phases of one task of a CLIP run; inversion and class statistics are those of every run.

Between tasks only adapters change. The Gaussian of a class is kept as it was when its images were
there, or estimated anew by its synthetic ones; moments of layers are measured on real images. Which
of several ways is taken stands in `ClipVariant`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.continual import task as tasks
from jaxpmi.continual.chunks import train_in_chunks
from jaxpmi.continual.clip.state import ClipRun
from jaxpmi.continual.clip.state import ClipState
from jaxpmi.continual.clip.train import ClipLearner
from jaxpmi.continual.clip.train import ClipProgram
from jaxpmi.continual.clip.train import ClipTask
from jaxpmi.continual.clip.train import clip_learning_rates
from jaxpmi.continual.clip.train import clip_optimiser
from jaxpmi.continual.clip.train import clip_train_steps
from jaxpmi.continual.evaluation import evaluate
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.run import training_masks
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.state import Replay
from jaxpmi.features.projection import neighbour_shares
from jaxpmi.features.projection import project_features
from jaxpmi.inversion.block_inverse import share_class_offsets
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.models.clip import adapted
from jaxpmi.models.clip import with_unit_features
from jaxpmi.remember import update_memory
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

NUM_NEIGHBOURS = 5  # seen classes that a name is drawn from, as published
AFTER_TASKS, LEARNED, UPPER_BOUND = range(3)  # of `ClipState.name_accuracy`


def begin_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Freezes the adapters as the teacher; the joint upper bound starts with fresh ones.

    It has nothing to start for in the task of classes with only a name.
    """
    task = int(state.task)
    if task > 0:
        state = state.replace(teacher=jax.tree.map(jnp.copy, state.adapters))
        if run.method.all_data and not run.is_name_only(task):
            state = state.replace(adapters=run.fresh_adapters(phase_key(state)))
    yield Tick(state, 1, 1, {}, {}, 0)


def invert_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Synthesises samples of all old classes through the image tower as it was trained last."""
    yield from tasks.invert_phase(run, state, run.network(state.teacher, state.memory))


def train_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Trains the adapters on the task's real images and the synthetic samples of old classes."""
    task, train = int(state.task), run.config.train
    masks = training_masks(run, task)
    yield from _train(run, state, tasks.training_data(run, task), *masks, train)


def remember_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Describes the new classes, and what their images show of the layers.

    Where classes with only a name follow, it does so for the base as well.
    """
    describe = functools.partial(_describe, run, state)
    memory = describe(state.adapters, state.memory, run.config)
    state = state.replace(memory=memory)
    if run.named is not None:
        state = state.replace(base_memory=describe(None, state.base_memory, run.base_config))
    yield Tick(state, 1, 1, {}, {}, run.stream.train_size(int(state.task)))


def _describe(run, state, adapters, memory, config):
    """The memory of one network after a task; class Gaussians, once there, stay as they were.

    The base (no adapters) is the same before and after, whatever the settings.
    """
    task, stream, variant = int(state.task), run.stream, run.variant
    layer_network = None
    if adapters is not None and variant.layer_statistics == "previous":
        layer_network = run.network(state.teacher, memory)
    sizes = [stream.train_size(t) for t in range(stream.num_tasks)]
    updated = update_memory(
        memory,
        run.network(adapters, memory),
        tasks.task_samples(run, state),
        phase_key(state),
        config=config.inversion,
        settings=config.cfs,
        capacity=max(sizes),
        max_images=max(sizes) + state.replay.samples.shape[0],
        layer_network=layer_network,
    )
    if task > 0 and not variant.merge_head_statistics:
        block_inputs = (*updated.block_inputs[:-1], memory.block_inputs[-1])
        updated = updated._replace(block_inputs=block_inputs)
    kept = memory.class_stats.count > 0
    if adapters is not None and variant.refresh_old_classes:
        kept = kept & (updated.class_stats.count == 0)
    keep = functools.partial(_keep, kept)
    return updated._replace(
        class_stats=keep(memory.class_stats, updated.class_stats),
        feature_models=keep(memory.feature_models, updated.feature_models),
    )


def evaluate_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Accuracy on every task seen so far, of the adapted model; of the base, on the newest."""
    (tick,) = tasks.evaluate_phase(run, state, run.network(state.adapters, state.memory))
    task, stream = int(state.task), run.stream
    own, _ = class_masks(stream, task)
    base, everything = run.network(None, state.memory), jnp.ones_like(own)
    samples = tasks.read_test(stream, task)
    unadapted = evaluate(base, samples, everything, own, mesh=run.mesh)
    names = state.name_accuracy
    for before, place in ((1, AFTER_TASKS), (0, LEARNED)):
        if run.is_name_only(task + before):
            names = names.at[place].set(_measure_names(run, state, state.adapters))
    zero_shot = state.zero_shot.at[task].set(unadapted.seen)
    yield tick._replace(state=tick.state.replace(zero_shot=zero_shot, name_accuracy=names))


def invert_names_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Synthesises samples of classes with only a name, through the base (docs/methods/clip.md)."""
    settings, memory, classes = run.config.clip.name_only, state.base_memory, run.name_classes
    network = run.network(None, memory)
    prototypes = network.head.kernel.T
    per_class = settings.images_per_class
    num_neighbours = min(NUM_NEIGHBOURS, classes.start)
    seen = jax.tree.map(lambda leaf: leaf[: classes.start], memory.class_stats)
    key_features, key_samples = jax.random.split(phase_key(state))
    features = [
        project_features(
            seen,
            prototypes[: classes.start],
            prototypes[label],
            jax.random.fold_in(key_features, label),
            num_features=per_class,
            num_neighbours=num_neighbours,
            average=run.variant.name_average,
            pivot=run.variant.name_pivot,
        )
        for label in classes
    ]
    shares = neighbour_shares(prototypes, classes.start, num_neighbours)
    memory = memory._replace(inverses=share_class_offsets(memory.inverses, shares))
    # Directions only: the length is that of the seen classes' features, unless none is asked for.
    length = 1.0
    if run.variant.name_match == "features":
        length = jnp.linalg.norm(seen.mean, axis=1).mean()
    else:
        network = network.replace(model=with_unit_features(network.model))
    wanted = shard_batch(
        {
            "features": length * jnp.concatenate(features),
            "labels": np.repeat(np.asarray(classes, np.int32), per_class),
        },
        run.mesh,
    )
    made = synthesize(
        network,
        wanted["labels"],
        key_samples,
        memory=memory,
        config=run.config.inversion,
        features=wanted["features"],
    )
    count = jnp.asarray(len(made.images), jnp.int32)
    state = state.replace(
        name_samples=Replay(*replicate((made.images, wanted["labels"], count), run.mesh)),
        step=jnp.asarray(1, jnp.int32),
    )
    scalars = {"initial_loss": made.losses[0], "final_loss": made.loss}
    bad = {"inversion": jnp.where(made.finite, -1, 0)}
    yield Tick(state, 1, 1, scalars, bad, len(made.images))


def train_names_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Trains the adapters on the synthetic samples of classes with only a name."""
    yield from _train_names(run, state, tasks.replay_samples(run, state.name_samples))


def upper_bound_phase(run: ClipRun, state: ClipState) -> Iterator[Tick]:
    """Measures what the same training reaches on real images; the adapters stay as they were."""
    start = state.replace(adapters=jax.tree.map(jnp.copy, state.teacher))
    read, labels = functools.partial(run.named.train_images, 0), run.named.train_labels(0)
    real = LabelledSamples(read, labels + run.name_classes.start)
    for tick in _train_names(run, start, real):
        trained = tick.state
    bound = _measure_names(run, state, trained.adapters)
    names = state.name_accuracy.at[UPPER_BOUND].set(bound)
    yield Tick(state.replace(name_accuracy=names), 1, 1, {"accuracy": names[UPPER_BOUND]}, {}, 0)


def _train_names(run, state, new_samples):
    settings = run.config.clip.name_only
    train = dataclasses.replace(
        run.config.train, epochs=settings.epochs, learning_rate=settings.learning_rate
    )
    new, old = class_masks(run.stream, run.stream.num_tasks - 1)
    yield from _train(run, state, new_samples, new, old, train)


def _train(run, state, new_samples, new, old, train):
    """AdamW on the adapters, in chunks of steps; the base is passed, never updated."""
    steps_per_epoch = math.ceil(len(new_samples.labels) / train.batch_size)
    rates = clip_learning_rates(train, train.epochs * steps_per_epoch, run.variant)
    program = ClipProgram(
        adapted(run.clip), train.weight_decay, run.config.losses, run.config.data.augment,
        new_samples.first_block, inversion_variant(run.config.inversion).first_block,
        live_texts=run.variant.teacher_texts == "live",
    )  # fmt: skip
    task = ClipTask(run.base, state.teacher, run.tokens, new, old, run.mean, run.std)
    task = replicate(task, run.mesh)
    if int(state.step) == 0:
        opt_state = clip_optimiser(train.weight_decay).init(state.adapters)
        state = state.replace(opt_state=replicate(opt_state, run.mesh))
    replay, key = jax.device_get(state.replay), phase_key(state)
    if int(replay.count) == 0 or not bool(old.any()):  # its terms have weight 0
        nothing = np.zeros((1, *replay.samples.shape[1:]), replay.samples.dtype)
        replay = Replay(nothing, np.zeros(1, np.int32), np.asarray(1))

    def steps(state, chunk):
        learner = ClipLearner(state.adapters, state.opt_state)
        return clip_train_steps(learner, chunk, task, key, program=program)

    yield from train_in_chunks(run, state, train, new_samples, replay, rates, steps)


def _measure_names(run, state, adapters):
    """Accuracy on real test images of classes with only a name, among all classes."""
    own, others = class_masks(run.stream, run.stream.num_tasks - 1)
    network, samples = run.network(adapters, state.memory), tasks.read_test(run.named, 0)
    samples = samples._replace(labels=samples.labels + run.name_classes.start)
    return evaluate(network, samples, own + others, own, mesh=run.mesh).seen


def _keep(known, old, new):
    """`old` for the classes that are known, `new` for the others; leaves have a first axis C."""

    def choose(a, b):
        return jnp.where(known.reshape((-1,) + (1,) * (a.ndim - 1)), a, b) if a.size else b

    return jax.tree.map(choose, old, new)
