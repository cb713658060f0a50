import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.features import shared_gaussian

NUM_CLASSES, SIZE = 3, 6


def draw(seed, num=60, rank=2, classes=(0, 1)):
    """Vectors that differ within their class in `rank` directions, the same for all classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, num).astype(np.int32)
    directions = np.random.default_rng(9).normal(size=(rank, SIZE))
    vectors = rng.normal(size=(num, rank)) @ directions + 3.0 * labels[:, None]
    return vectors.astype(np.float32), labels


def fitted(parts, num_directions, batch_size=25):
    """Gaussians of parts that come one after another, each in padded batches."""
    stats = shared_gaussian.init_shared_gaussians(NUM_CLASSES, SIZE, num_directions=num_directions)
    for vectors, labels in parts:
        batches = []
        for start in range(0, len(labels), batch_size):
            x, y = vectors[start : start + batch_size], labels[start : start + batch_size]
            room = batch_size - len(y)
            x = np.pad(x, ((0, room), (0, 0)), constant_values=7.0)
            batches.append((x, np.pad(y, (0, room)), np.arange(batch_size) < len(y)))
        batches = [tuple(jnp.asarray(a, a.dtype) for a in batch) for batch in batches]
        batches = [(x, y, w.astype(jnp.float32)) for x, y, w in batches]
        sums = [shared_gaussian.sum_by_class(*batch, NUM_CLASSES) for batch in batches]
        stats = shared_gaussian.with_means(stats, *map(sum, zip(*sums, strict=True)))
        for batch in batches:
            stats = shared_gaussian.add_vectors(stats, *batch)
    return stats


def pooled(parts):
    """Means per class and the covariance of all vectors about their class's mean."""
    vectors, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    means = {c: vectors[labels == c].mean(0) for c in np.unique(labels)}
    centred = vectors - np.stack([means[c] for c in labels])
    return means, centred.T @ centred / len(labels)


TASKS = [draw(0, classes=(0, 1)), draw(1, num=40, classes=(2,))]


@pytest.mark.parametrize("num_directions", [2, 5])
def test_classes_have_their_means_and_share_the_pooled_covariance(num_directions):
    """Vectors that come in batches and tasks are as good as all at once."""
    stats = fitted(TASKS, num_directions)
    means, covariance = pooled(TASKS)
    assert stats.factor.shape == (num_directions, SIZE)
    np.testing.assert_array_equal(
        stats.count, np.bincount(np.concatenate([labels for _, labels in TASKS]))
    )
    for c, mean in means.items():
        np.testing.assert_allclose(stats.mean[c], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats.factor.T @ stats.factor, covariance, rtol=1e-3, atol=1e-3)


def test_the_leading_directions_are_kept():
    """Of one batch exactly those of the largest eigenvalues."""
    part = draw(2, rank=SIZE)
    stats = fitted([part], 2, batch_size=len(part[1]))
    _, covariance = pooled([part])
    values, vectors = np.linalg.eigh(covariance)
    want = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
    np.testing.assert_allclose(stats.factor.T @ stats.factor, want, rtol=1e-3, atol=1e-3)


def test_there_are_no_more_directions_than_values():
    stats = shared_gaussian.init_shared_gaussians(2, 4, num_directions=32)
    assert stats.factor.shape == (4, 4) and stats.mean.shape == (2, 4)


def test_samples_have_the_stored_mean_and_covariance():
    stats = fitted(TASKS, 2)
    labels = jnp.tile(jnp.asarray([2, 0]), 20_000)
    samples = np.asarray(shared_gaussian.sample_vectors(stats, labels, jax.random.key(0)))
    stored = np.asarray(stats.factor.T @ stats.factor)
    for c in (2, 0):
        own = samples[np.asarray(labels) == c]
        np.testing.assert_allclose(own.mean(0), stats.mean[c], atol=0.05 * stored.max() ** 0.5)
        np.testing.assert_allclose(np.cov(own.T), stored, atol=0.05 * stored.max())
