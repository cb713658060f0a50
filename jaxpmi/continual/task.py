"""The phases of one task of class-incremental learning; see `jaxpmi.phases`."""

import functools
import math
from collections.abc import Iterable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import denormalise
from jaxpmi.augment import pixel_range
from jaxpmi.continual import evaluation
from jaxpmi.continual.chunks import train_in_chunks
from jaxpmi.continual.memory import update_memory
from jaxpmi.continual.recording import record_task
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import num_replay_images
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.run import training_masks
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import evenly_spaced
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.samples import scene_samples
from jaxpmi.continual.samples import to_samples
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Network
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import phase_learning_rates
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.training_phase import Phase
from jaxpmi.data import TaskStream
from jaxpmi.features import contrastive
from jaxpmi.features import gaussian
from jaxpmi.inversion import generator as generators
from jaxpmi.inversion.full_model import PixelStats
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.synthesis import LayerKnowledge
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.targets import Targets
from jaxpmi.models.blockwise import forward
from jaxpmi.phases import PhaseFn
from jaxpmi.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import Params


def train_phase(run: Run, state: ContinualState, phase: Phase) -> Iterator[Tick]:
    """Supervised training on the task's real images, and on synthetic ones if the phase has any."""
    task, train = int(state.task), run.config.train
    real = training_data(run, task)
    steps_per_epoch = math.ceil(len(real.labels) / train.batch_size)
    total = max(round(phase.share * train.epochs * steps_per_epoch), 1)
    rates = phase_learning_rates(phase, total)
    program = TrainProgram(
        run.model, phase, train, run.config.losses, run.config.data.augment, run.label_maps
    )
    masks = training_masks(run, task)
    data = TaskData(state.teacher, *masks, state.mean, state.std, state.records)
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
    knowledge = layer_knowledge(run, state, network)
    for batch in range(int(state.step), total):
        rows = slice(batch * inversion.batch_size, (batch + 1) * inversion.batch_size)
        targets = shard_batch({"features": features[rows], "labels": labels[rows]}, run.mesh)
        targets = Targets(**targets, head=network.head, class_mask=old_mask > 0)
        key = jax.random.fold_in(key_batches, batch)
        synthesis = synthesize(
            run.model, network.variables, targets, knowledge, key, config=inversion
        )
        first_block = inversion.first_block
        samples = to_samples(synthesis.images, state.mean, state.std, first_block=first_block)
        agreement = evaluation.label_agreement(
            network, samples, targets.labels, state.mean, state.std,
            model=run.model, class_mask=targets.class_mask, first_block=first_block,
        )  # fmt: skip
        replay = put_samples(
            state.replay, samples, targets.labels, rows.start, count=rows.stop, mesh=run.mesh
        )
        state = state.replace(replay=replay, step=jnp.asarray(batch + 1, jnp.int32))
        scalars = {
            "initial_loss": synthesis.initial_loss,
            "final_loss": synthesis.final_loss,
            "agreement": agreement,
            **{f"final_{name}": term for name, term in synthesis.terms.items()},
        }
        bad = {"inversion": jnp.where(synthesis.finite, -1, batch)}
        yield Tick(state, batch + 1, total, scalars, bad, inversion.batch_size)


def layer_knowledge(run: Run, state: ContinualState, network: Network) -> LayerKnowledge:
    """What `state.memory` holds, as inversion of `network` takes it."""
    memory, source = state.memory, run.config.inversion.per_layer.block_statistics
    limits = pixel_range(state.mean, state.std)
    pixels = PixelStats(*limits, memory.pixels, memory.histogram, memory.spectrum)
    block_inputs = memory.block_inputs
    if source != "measured":
        published = source == "affine"
        block_inputs = propagated_block_inputs(run.model, network.variables, published=published)
    return LayerKnowledge(block_inputs, memory.inverses, pixels)


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
            latent_dim=settings.latent_dim,
            widths=settings.channels,
        )
        generator = replicate(generator, run.mesh)
    generator, metrics = generators.train_generator(
        generator,
        network.variables,
        network.head,
        old_mask > 0,
        key_train,
        model=run.model,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
    )
    count = num_replay_images(config, task)
    capacity = state.replay.samples.shape[0]
    images = generators.sample_images(generator, key_sample, capacity)
    logits = forward(run.model, network.variables, images).features @ network.head
    labels = jnp.argmax(jnp.where(old_mask > 0, logits, -jnp.inf), 1).astype(jnp.int32)
    replay = Replay(
        denormalise(images, state.mean, state.std), labels, jnp.asarray(count, jnp.int32)
    )
    state = state.replace(generator=generator, replay=replay, step=jnp.asarray(1, jnp.int32))
    scalars = {name: value[-1] for name, value in metrics.items()}
    bad = {"generator": jnp.where(jnp.isfinite(scalars["loss"]), -1, settings.num_steps)}
    yield Tick(state, 1, 1, scalars, bad, settings.num_steps * settings.batch_size)


def remember_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Describes the seen classes for the network just trained."""
    task, config = int(state.task), run.config
    count = int(state.replay.count)
    sizes = [run.stream.train_size(t) for t in range(run.stream.num_tasks)]
    read_real = functools.partial(run.stream.train_images, task)
    memory = update_memory(
        state.memory,
        run.model,
        state.network.variables,
        LabelledSamples(read_real, run.stream.train_labels(task)),
        replay_samples(run, state.replay),
        state.mean,
        state.std,
        phase_key(state),
        config=config,
        capacity=max(sizes),
        max_images=max(sizes) + state.replay.samples.shape[0],
    )
    yield Tick(state.replace(memory=memory), 1, 1, {}, {}, run.stream.train_size(task) + count)


def record_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Records the gradients of the task's mean logits in the network just trained."""
    task, config = int(state.task), run.config
    records = record_task(
        state.records, state.network, training_data(run, task), task,
        run.stream.labelled_classes(task), state.mean, state.std, phase_key(state),
        model=run.model, mesh=run.mesh, batch_size=config.train.batch_size,
        config=config.losses.vdfd, label_maps=run.label_maps,
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
        result = measure(run, state, network, read_test(stream, i), new + old, own)
        accuracy = accuracy.at[task, i].set(result.seen)
        within_task = within_task.at[task, i].set(result.within_task)
    state = state.replace(accuracy=accuracy, task_accuracy=within_task)
    scalars = {f"accuracy/task{i}": accuracy[task, i] for i in range(task + 1)}
    yield Tick(state, 1, 1, scalars, {}, sum(len(stream.test_labels(i)) for i in range(task + 1)))


def measure(run, state, network, samples, seen, own):
    """`evaluation.evaluate` with what a run knows."""
    return evaluation.evaluate(
        network, samples, seen, own, state.mean, state.std, model=run.model, mesh=run.mesh
    )


def read_test(stream: TaskStream, task: int) -> LabelledSamples:
    """The test images of a task seen so far, to be read in batches."""
    return LabelledSamples(functools.partial(stream.test_images, task), stream.test_labels(task))


def begin_task(state: ContinualState, auxiliary: Params) -> ContinualState:
    """Freezes the network as the teacher of the next task; `auxiliary` is trained beside it."""
    teacher = jax.tree.map(jnp.copy, Network(*state.network))
    return state.replace(teacher=teacher, auxiliary=auxiliary)


def training_data(run, task):
    """The images, or scenes, that a task trains on."""
    stream, every = run.stream, run.method.all_data
    read = stream.seen_train_images if every else functools.partial(stream.train_images, task)
    if run.label_maps:
        return scene_samples(read, stream.seen_train_size() if every else stream.train_size(task))
    return LabelledSamples(read, stream.seen_train_labels() if every else stream.train_labels(task))


def replay_samples(run, replay):
    """Synthetic samples as they are read in batches; those not yet made have no label."""
    samples, labels = jax.device_get((replay.samples, replay.labels[: int(replay.count)]))
    return LabelledSamples(samples.__getitem__, labels, run.config.inversion.first_block)


def _draw_targets(run, state, key):
    """Target features f32[N, D] and labels i32[N] of the task's synthetic images.

    Labels are balanced over the old classes and shuffled, so that every batch mixes classes.
    """
    config, task, stream = run.config, int(state.task), run.stream
    count = num_replay_images(config, task)
    num_old = stream.task_classes(task).start
    rng = np.random.default_rng((config.seed, task, int(state.phase)))
    labels = rng.permutation(np.resize(np.arange(num_old, dtype=np.int32), count))
    memory = state.memory
    if config.inversion.targets == "cfs":
        # One static number of draws per class, the largest that any task needs.
        most = max(
            math.ceil(num_replay_images(config, t) / stream.task_classes(t).start)
            for t in range(1, stream.num_tasks)
        )
        drawn = contrastive.sample_features(
            memory.feature_models,
            memory.class_stats,
            key,
            num_per_class=most,
            num_rounds=config.cfs.num_rounds,
            keep_rate=config.cfs.keep_rate,
            moment_match=config.cfs.moment_match,
            oversampling=config.cfs.oversampling,
        )
        places = np.zeros(count, np.int32)
        for label in range(num_old):
            members = np.flatnonzero(labels == label)
            places[members] = rng.permutation(most)[: len(members)]
        return np.asarray(drawn)[labels, places], labels
    drawn = gaussian.sample_class_features(memory.class_stats, jnp.asarray(labels), key)
    return np.asarray(drawn), labels
