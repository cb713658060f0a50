import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.features import mahalanobis
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import fit_class_stats

NUM_CLASSES, DIM = 3, 5


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stats_of(seed=0, num=90):
    """Of features that are correlated and away from 0."""
    labels = np.arange(num, dtype=np.int32) % NUM_CLASSES
    features = normal(seed, num, DIM) @ normal(seed + 1, DIM, DIM) + 4.0 * normal(2, 3, DIM)[labels]
    return fit_class_stats(features, labels, NUM_CLASSES, full=True)


def test_shrinking_adds_the_mean_variance_and_the_mean_covariance():
    """docs/methods/apr.md, eq. 7: the numbers of a case by hand."""
    shrunk = mahalanobis.shrink(jnp.asarray([[2.0, 1.0], [1.0, 4.0]]), 24.0)
    np.testing.assert_allclose(shrunk, [[74.0, 25.0], [25.0, 76.0]], rtol=1e-6)
    scaled = mahalanobis.correlations(shrunk)
    np.testing.assert_allclose(np.diagonal(scaled), 1.0, rtol=1e-6)
    np.testing.assert_allclose(scaled[0, 1], 0.333363, atol=1e-6)
    gap = np.asarray([1.0, -1.0])
    distance = gap @ np.linalg.pinv(np.asarray(scaled, np.float64)) @ gap
    np.testing.assert_allclose(distance, 3.00013, rtol=1e-5)


def test_dead_features_leave_it_positive_unless_as_published():
    cov = np.zeros((4, 4), np.float32)
    cov[:2, :2] = [[1.0, 0.9], [0.9, 1.0]]
    least = {
        over: np.linalg.eigvalsh(mahalanobis.shrink(jnp.asarray(cov), 24.0, over=over)).min()
        for over in ("all", "nonzero")
    }
    np.testing.assert_allclose(least["all"], 8.4, rtol=1e-5)
    np.testing.assert_allclose(least["nonzero"], -9.6, rtol=1e-5)


def test_with_the_identity_it_is_the_nearest_mean():
    stats = stats_of()._replace(cov=jnp.broadcast_to(jnp.eye(DIM), (NUM_CLASSES, DIM, DIM)))
    features = normal(7, 200, DIM) + 2.0
    scores = mahalanobis.mahalanobis_head(stats, shrinkage=24.0)(features)
    assert np.isfinite(scores).all()
    means, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (stats.mean, features))
    nearest = np.square(x[:, None] - means[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(scores.argmax(1), nearest)
    linear = features @ mahalanobis.nearest_mean_kernel(stats)
    np.testing.assert_array_equal(linear.argmax(1), nearest)
    assert len(np.unique(nearest)) == NUM_CLASSES


def test_scores_are_the_distances_of_the_formula():
    stats, features = stats_of(), normal(8, 10, DIM)
    scores = np.asarray(mahalanobis.mahalanobis_head(stats, shrinkage=1.0)(features))
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    for c in range(NUM_CLASSES):
        cov = np.asarray(stats.cov[c], np.float64)
        off = ~np.eye(DIM, dtype=bool)
        shrunk = cov + np.where(off, cov[off].mean(), np.diagonal(cov).mean())
        deviation = np.sqrt(np.diagonal(shrunk))
        gap = x - np.asarray(stats.mean[c]) / np.linalg.norm(stats.mean[c])
        precision = np.linalg.inv(shrunk / np.outer(deviation, deviation))
        want = np.einsum("bd,de,be->b", gap, precision, gap)
        np.testing.assert_allclose(-scores[:, c], want, rtol=1e-3)


@pytest.mark.parametrize("factor", [3.0, 0.01])
def test_the_scale_of_features_cancels(factor):
    stats, features = stats_of(), normal(9, 100, DIM) + 1.0
    scaled = ClassStats(stats.count, factor * stats.mean, factor**2 * stats.cov)
    one, other = (mahalanobis.mahalanobis_head(s, shrinkage=8.0) for s in (stats, scaled))
    predicted = one(features).argmax(1)
    np.testing.assert_array_equal(other(factor * features).argmax(1), predicted)
    assert len(np.unique(predicted)) > 1


def test_the_classifier_goes_through_jit():
    stats, features = stats_of(), normal(9, 4, DIM)
    head = jax.jit(mahalanobis.mahalanobis_head, static_argnames="shrinkage")(stats, shrinkage=8.0)
    want = mahalanobis.mahalanobis_head(stats, shrinkage=8.0)(features)
    np.testing.assert_allclose(jax.jit(lambda h, x: h(x))(head, features), want, rtol=1e-4)
