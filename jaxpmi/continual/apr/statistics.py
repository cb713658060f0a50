"""Statistics of classes after a task: the new ones' measured, the old ones' moved along."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.continual.apr.drift import BATCH
from jaxpmi.continual.apr.drift import Moved
from jaxpmi.continual.apr.drift import move_class
from jaxpmi.continual.apr.views import nearest_rows
from jaxpmi.continual.apr.views import task_views
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.task import training_data
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.network import raw_features
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey


def new_class_stats(run: Run, state: ContinualState, *, capacity: int) -> ClassStats:
    """Means and unbiased covariances of the task's classes, of their images as they are.

    `capacity` is the most images of any task: a static shape.
    """
    images, size = training_data(run, int(state.task)), run.config.train.batch_size
    features = np.zeros((capacity, state.network.feature_dim), np.float32)
    labels, weights = np.zeros(capacity, np.int32), np.zeros(capacity, np.float32)
    done = len(images.labels)
    labels[:done], weights[:done] = images.labels, 1.0
    for i, (batch, _, valid) in enumerate(padded_batches(images, size)):
        found = raw_features(state.network, shard_batch(batch, run.mesh))
        count = np.count_nonzero(valid)
        features[i * size : i * size + count] = np.asarray(found)[:count]
    return _fit(features, labels, weights, num_classes=run.stream.num_classes)


def move_old_classes(
    run: Run, state: ContinualState, key_views: PRNGKey, key_fit: PRNGKey
) -> Moved:
    """The statistics of every old class, one after another, stacked: [num_old, ...]."""
    task, variant = int(state.task), run.method.apr
    _, old_mask = class_masks(run.stream, task)
    views = task_views(run, state, key_views)
    features, moved = views.features(), []
    room = -(-variant.drift_images // BATCH) * BATCH
    for label in range(run.stream.task_classes(task).start):
        rows = nearest_rows(features, state.memory.mean[label], variant.drift_images)
        images = views.gather(np.resize(rows, room))
        moved.append(
            move_class(
                state.teacher,
                state.network,
                state.memory,
                np.int32(label),
                images,
                np.arange(room) < len(rows),
                old_mask,
                jax.random.fold_in(key_fit, label),
                variant=variant,
            )
        )
    return jax.tree.map(lambda *parts: np.stack(jax.device_get(parts)), *moved)


def with_old_classes(new: ClassStats, old: ClassStats, moved: Moved) -> ClassStats:
    """Statistics of all seen classes: the new ones', and the old ones' where they moved to."""
    num_old = len(moved.mean)
    new = jax.device_get(new)
    count, mean, cov = (np.array(part) for part in new)
    count[:num_old] = np.asarray(old.count)[:num_old]
    mean[:num_old], cov[:num_old] = moved.mean, moved.cov
    return ClassStats(count, mean, cov)


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(features, labels, weights, *, num_classes):
    stats = fit_class_stats(features, labels, num_classes, full=True, weights=weights)
    unbiased = stats.count / jnp.maximum(stats.count - 1.0, 1.0)
    seen = (stats.count > 0)[:, None, None]
    return stats._replace(cov=jnp.where(seen, unbiased[:, None, None] * stats.cov, stats.cov))
