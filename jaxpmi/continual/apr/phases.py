"""The phases of a task that APR adds to the loop: which images, which statistics, how to judge."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual import evaluation
from jaxpmi.continual.apr.drift import nearest_class
from jaxpmi.continual.apr.push import Push
from jaxpmi.continual.apr.push import push_images
from jaxpmi.continual.apr.statistics import move_old_classes
from jaxpmi.continual.apr.statistics import new_class_stats
from jaxpmi.continual.apr.statistics import with_old_classes
from jaxpmi.continual.apr.variants import AprVariant
from jaxpmi.continual.apr.views import nearest_rows
from jaxpmi.continual.apr.views import task_views
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Replay
from jaxpmi.continual.task import evaluate_phase as evaluate_network
from jaxpmi.continual.task import read_test
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.mahalanobis import MahalanobisHead
from jaxpmi.features.mahalanobis import mahalanobis_head
from jaxpmi.features.mahalanobis import nearest_mean_kernel
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate


def choose_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Chooses the new images that will be pushed to old classes: the nearest to each mean.

    Tells which share of them has the intended class's mean as the nearest old one, as they are and
    once pushed to it without noise.
    """
    variant, stats = run.method.apr, state.memory
    key_views, _ = jax.random.split(phase_key(state))
    views = task_views(run, state, key_views)
    features = views.features()
    num_old = run.stream.task_classes(int(state.task)).start
    rows = [nearest_rows(features, stats.mean[c], variant.replay_images) for c in range(num_old)]
    labels = np.repeat(np.arange(num_old, dtype=np.int32), [len(part) for part in rows])
    rows = np.concatenate(rows)
    samples, kept = np.zeros(state.replay.samples.shape, np.uint8), np.zeros((2, len(rows)), bool)
    pad, done = np.zeros(len(state.replay.labels) - len(rows), np.int32), 0
    _, old_mask = class_masks(run.stream, int(state.task))
    for batch, count in views.read(rows):
        here = slice(done, done + count)
        wanted = np.resize(labels[here], views.batch_size)
        reached = _reach(state.teacher, stats, batch, wanted, old_mask, push=variant.replay)
        samples[here], kept[:, here] = np.asarray(batch)[:count], np.asarray(reached)[:, :count]
        done += count
    replay = Replay(samples, np.concatenate([labels, pad]), np.int32(len(rows)))
    state = state.replace(replay=replicate(replay, run.mesh), step=jnp.asarray(1, jnp.int32))
    before, after = kept.mean(1)
    scalars = {"reached_before": before, "reached_after": after}
    yield Tick(state, 1, 1, scalars, {}, len(features) + len(rows))


def remember_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Describes the new classes by their images, and moves the old classes' statistics along."""
    key_views, key_fit = jax.random.split(phase_key(state))
    sizes = [run.stream.train_size(t) for t in range(run.stream.num_tasks)]
    stats = new_class_stats(run, state, capacity=max(sizes))
    scalars = {}
    if int(state.task) > 0:
        moved = move_old_classes(run, state, key_views, key_fit)
        stats = with_old_classes(stats, state.memory, moved)
        scalars = {"reached_mean": moved.reached.mean(), "reached_least": moved.reached.min()}
    state = state.replace(memory=replicate(stats, run.mesh))
    yield Tick(state, 1, 1, scalars, {}, sizes[int(state.task)])


def evaluate_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Measures accuracies by Mahalanobis distance; over all seen tasks also by other classifiers.

    These are the nearest mean, and the linear classifier of training.
    """
    task, stream = int(state.task), run.stream
    seen = sum(class_masks(stream, task))
    tests = [read_test(stream, i) for i in range(task + 1)]
    sizes = [len(test.labels) for test in tests]
    others = {"nearest_mean": Head(nearest_mean_kernel(state.memory)), "linear": state.network.head}
    scalars = {}
    for name, head in others.items():
        network = state.network.replace(head=head)
        found = [evaluation.evaluate(network, t, seen, seen, mesh=run.mesh).seen for t in tests]
        scalars[name] = np.average(found, weights=sizes)
    network = state.network.replace(head=classifier(state.memory, run.method.apr))
    for tick in evaluate_network(run, state, network):
        yield tick._replace(scalars=tick.scalars | scalars)


@functools.partial(jax.jit, static_argnames="variant")
def classifier(stats: ClassStats, variant: AprVariant) -> MahalanobisHead:
    """The classifier of APR, by the variant's shrinkage."""
    return mahalanobis_head(stats, shrinkage=variant.shrinkage, over=variant.shrinks_over)


@functools.partial(jax.jit, static_argnames="push")
def _reach(teacher: Network, stats, images, labels, old_mask, *, push: Push):
    """Whether images have the intended class's mean as the nearest old one: bool[2, B].

    As they are, and once pushed to it.
    """
    x = normalise(images, teacher.mean, teacher.std)
    both = jnp.stack([x, push_images(teacher, x, stats.mean[labels], push)])
    features = [forward(teacher.model, teacher.variables, images).features for images in both]
    return jnp.stack([nearest_class(f, stats, old_mask) == labels for f in features])
