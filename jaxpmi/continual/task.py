"""The phases of one task of class-incremental learning; see `jaxpmi.runs.phases`."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import denormalise
from jaxpmi.continual import evaluation
from jaxpmi.continual.chunks import train_in_chunks
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import num_replay_images
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.run import training_masks
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import evenly_spaced
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.samples import scene_samples
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import phase_learning_rates
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.training_phase import Phase
from jaxpmi.continual.vdfd.recording import record_task
from jaxpmi.data import TaskStream
from jaxpmi.inversion import generator as generators
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.synthetic import as_metrics
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.memory import draw_features
from jaxpmi.memory import sample_by_cfs
from jaxpmi.network import Network
from jaxpmi.quality import MAX_IMAGES
from jaxpmi.quality import measure_quality
from jaxpmi.remember import Samples
from jaxpmi.remember import update_memory
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import Params


def train_phase(run: Run, state: ContinualState, phase: Phase) -> Iterator[Tick]:
    """Supervised training on the task's real images, and on synthetic ones if the phase has any."""
    task, train = int(state.task), run.config.train
    if phase.weight_decay is not None:
        train = dataclasses.replace(train, weight_decay=phase.weight_decay)
    real = training_data(run, task)
    steps_per_epoch = math.ceil(len(real.labels) / train.batch_size)
    total = max(round(phase.share * train.epochs * steps_per_epoch), 1)
    rates = phase_learning_rates(phase, total)
    program = TrainProgram(phase, train, run.config.losses, run.config.data.augment, run.label_maps)
    masks = training_masks(run, task)
    stats = state.memory if phase.push is not None else ()
    draws = run.method.replay == "generator" and state.generator
    generator = state.generator._replace(opt_state=()) if draws else ()
    data = TaskData(state.teacher, *masks, state.records, stats, generator)
    data = replicate(data, run.mesh)
    if int(state.step) == 0:
        parts = trainable_parts(state.network, state.auxiliary)
        state = state.replace(opt_state=replicate(optimiser(train).init(parts), run.mesh))
    replay = jax.device_get(state.replay) if phase.replay else None
    key = phase_key(state)

    def steps(state, chunk):
        learner = Learner(state.network, state.auxiliary, state.opt_state, state.class_counts)
        return train_steps(learner, chunk, data, key, program=program)

    yield from train_in_chunks(run, state, train, real, replay, rates, steps)


def train_plan(phases: Iterable[Phase]) -> list[tuple[str, PhaseFn]]:
    """Phases of supervised training as a task has them, by name."""
    return [(f"train:{p.name}", functools.partial(train_phase, phase=p)) for p in phases]


def invert_phase(run: Run, state: ContinualState, network: Network | None = None) -> Iterator[Tick]:
    """Synthesises samples of all old classes through the frozen network, batch by batch.

    `network` is the teacher unless given.
    """
    config, task = run.config, int(state.task)
    inversion = config.inversion
    total = num_replay_images(config, task) // inversion.batch_size
    key_targets, key_batches = jax.random.split(phase_key(state))
    features, labels = _draw_targets(run, state, key_targets)
    _, old_mask = class_masks(run.stream, task)
    network = state.teacher if network is None else network
    for batch in range(int(state.step), total):
        rows = slice(batch * inversion.batch_size, (batch + 1) * inversion.batch_size)
        wanted = shard_batch({"features": features[rows], "labels": labels[rows]}, run.mesh)
        made = synthesize(
            network,
            wanted["labels"],
            jax.random.fold_in(key_batches, batch),
            memory=state.memory,
            config=inversion,
            features=wanted["features"],
            class_mask=old_mask > 0,
        )
        replay = put_samples(
            state.replay, made.images, wanted["labels"], rows.start, count=rows.stop,
            mesh=run.mesh,
        )  # fmt: skip
        state = state.replace(replay=replay, step=jnp.asarray(batch + 1, jnp.int32))
        bad = {"inversion": jnp.where(made.finite, -1, batch)}
        yield Tick(state, batch + 1, total, as_metrics(made), bad, inversion.batch_size)


def generate_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Trains the image generator on the frozen network and samples old images from it."""
    config, task = run.config, int(state.task)
    settings = config.generator
    key_init, key_train, key_sample = jax.random.split(phase_key(state), 3)
    _, old_mask = class_masks(run.stream, task)
    generator, network = state.generator, state.teacher
    if not run.method.keeps_generator or task == 1:
        generator = generators.init_generator(
            key_init,
            run.stream.image_shape,
            **generators.SIZES[settings.size],
        )
        generator = replicate(generator, run.mesh)
    generator, metrics = generators.train_generator(
        generator,
        network,
        old_mask > 0,
        key_train,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
    )
    count = num_replay_images(config, task)
    capacity = state.replay.samples.shape[0]
    images = generators.sample_images(generator, key_sample, capacity)
    labels = generators.label_images(network, old_mask, images)
    images = denormalise(images, network.mean, network.std)
    replay = Replay(images, labels, jnp.asarray(count, jnp.int32))
    state = state.replace(generator=generator, replay=replay, step=jnp.asarray(1, jnp.int32))
    scalars = {name: value[-1] for name, value in metrics.items()}
    bad = {"generator": jnp.where(jnp.isfinite(scalars["loss"]), -1, settings.num_steps)}
    yield Tick(state, 1, 1, scalars, bad, settings.num_steps * settings.batch_size)


def remember_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Describes the seen classes for the network just trained."""
    task, config = int(state.task), run.config
    count = int(state.replay.count)
    sizes = [run.stream.train_size(t) for t in range(run.stream.num_tasks)]
    memory = update_memory(
        state.memory,
        state.network,
        task_samples(run, state),
        phase_key(state),
        config=config.inversion,
        settings=config.cfs,
        capacity=max(sizes),
        max_images=max(sizes) + state.replay.samples.shape[0],
    )
    yield Tick(state.replace(memory=memory), 1, 1, {}, {}, run.stream.train_size(task) + count)


def record_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Records the gradients of the task's mean logits in the network just trained."""
    task, config = int(state.task), run.config
    records = record_task(
        state.records, state.network, training_data(run, task), task,
        run.stream.labelled_classes(task), mesh=run.mesh,
        batch_size=config.train.batch_size, config=config.losses.vdfd, label_maps=run.label_maps,
    )  # fmt: skip
    rows = evenly_spaced(run.stream.train_size(task), config.losses.vdfd.record_images)
    yield Tick(state.replace(records=records), 1, 1, {}, {}, len(rows))


def evaluate_phase(
    run: Run, state: ContinualState, network: Network | None = None
) -> Iterator[Tick]:
    """Measures the accuracy on the test images of every task seen so far.

    `network` is the one in training unless given.
    """
    task, stream = int(state.task), run.stream
    network = state.network if network is None else network
    new, old = class_masks(stream, task)
    accuracy, within_task = state.accuracy, state.task_accuracy
    for i in range(task + 1):
        own, _ = class_masks(stream, i)
        result = evaluation.evaluate(network, read_test(stream, i), new + old, own, mesh=run.mesh)
        accuracy = accuracy.at[task, i].set(result.seen)
        within_task = within_task.at[task, i].set(result.within_task)
    state = state.replace(accuracy=accuracy, task_accuracy=within_task)
    scalars = {f"accuracy/task{i}": accuracy[task, i] for i in range(task + 1)}
    yield Tick(state, 1, 1, scalars, {}, sum(len(stream.test_labels(i)) for i in range(task + 1)))


def judge_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """How good the task's synthetic images of old classes were, by real test images of these."""
    task, stream = int(state.task), run.stream
    rows = evenly_spaced(int(state.replay.count), MAX_IMAGES)
    made = [part[rows] for part in jax.device_get(state.replay[:2])]
    tests = [
        (t, evenly_spaced(len(stream.test_labels(t)), MAX_IMAGES // task)) for t in range(task)
    ]
    real = [(stream.test_images(t, some), stream.test_labels(t)[some]) for t, some in tests]
    real_images, real_labels = map(np.concatenate, zip(*real, strict=True))
    scalars = {}
    if np.isin(real_labels, made[1]).any():  # data may have no test images
        quality = measure_quality(*made, real_images, real_labels)
        scalars = {name: jnp.asarray(value) for name, value in quality._asdict().items()}
    yield Tick(state, 1, 1, scalars, {}, len(rows))


def has_judge(run: Run, task: int) -> bool:
    """Whether a task has synthetic images of old classes, which `judge_phase` can look at."""
    if task == 0 or run.method.replay not in ("inversion", "generator", "pixels"):
        return False
    if inversion_variant(run.config.inversion).first_block > 0:
        return False  # what is replayed are inputs of a later block
    return num_replay_images(run.config, task) > 0


def read_test(stream: TaskStream, task: int) -> LabelledSamples:
    """The test images of a task seen so far, to be read in batches."""
    return LabelledSamples(functools.partial(stream.test_images, task), stream.test_labels(task))


def begin_task(state: ContinualState, auxiliary: Params) -> ContinualState:
    """Freezes the network as the teacher of the next task; `auxiliary` is trained beside it."""
    teacher = jax.tree.map(jnp.copy, state.network)
    return state.replace(teacher=teacher, auxiliary=auxiliary)


def training_data(run, task):
    """The images, or scenes, that a task trains on."""
    stream, every = run.stream, run.method.all_data
    read = stream.seen_train_images if every else functools.partial(stream.train_images, task)
    if run.label_maps:
        return scene_samples(read, stream.seen_train_size() if every else stream.train_size(task))
    return LabelledSamples(read, stream.seen_train_labels() if every else stream.train_labels(task))


def task_samples(run, state):
    """Real images of the task's new classes and synthetic samples of the old, to be remembered."""
    task, stream, size = int(state.task), run.stream, run.config.inversion.batch_size
    read = functools.partial(stream.train_images, task)
    real = LabelledSamples(read, stream.train_labels(task))
    replay = replay_samples(run, state.replay)
    return [
        Samples(
            functools.partial(padded_batches, part, size), len(part.labels), is_real,
            part.first_block,
        )
        for part, is_real in ((real, True), (replay, False))
    ]  # fmt: skip


def replay_samples(run, replay):
    """Synthetic samples as they are read in batches; those not yet made have no label."""
    samples, labels = jax.device_get((replay.samples, replay.labels[: int(replay.count)]))
    first_block = inversion_variant(run.config.inversion).first_block
    return LabelledSamples(samples.__getitem__, labels, first_block)


def balanced_labels(run: Run, task: int, rng: np.random.Generator) -> np.ndarray:
    """Labels i32[N] of the images made before a task: every old class about as often.

    They are shuffled, so that every batch mixes classes.
    """
    old = np.arange(run.stream.task_classes(task).start, dtype=np.int32)
    return rng.permutation(np.resize(old, num_replay_images(run.config, task)))


def _draw_targets(run, state, key):
    """Target features f32[N, D] and labels i32[N] of the task's synthetic images.

    Labels are those of `balanced_labels`.
    """
    config, task, stream = run.config, int(state.task), run.stream
    rng = np.random.default_rng((config.seed, task, int(state.phase)))
    labels = balanced_labels(run, task, rng)
    memory = state.memory
    if config.inversion.targets == "cfs":
        # One static number of draws per class, the largest that any task needs.
        most = max(
            math.ceil(num_replay_images(config, t) / stream.task_classes(t).start)
            for t in range(1, stream.num_tasks)
        )
        drawn = sample_by_cfs(memory, key, num_per_class=most, settings=config.cfs)
        places = np.zeros(len(labels), np.int32)
        for label in range(stream.task_classes(task).start):
            members = np.flatnonzero(labels == label)
            places[members] = rng.permutation(most)[: len(members)]
        return np.asarray(drawn)[labels, places], labels
    drawn = draw_features(memory, jnp.asarray(labels), key)
    return np.asarray(drawn), labels
