"""Gaussians of vectors too long for a covariance each: own means, one covariance of low rank.

Meant for whole images: a class's Gaussian is N(mean_c, F^T F), where the R rows of F are the
leading directions in which images of one class differ, over all classes together
(docs/methods/baselines.md, eqs. 11 and 12).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.types import PRNGKey


class SharedGaussians(NamedTuple):
    """A Gaussian per class, of vectors of P values. Classes never seen have count and mean 0.

    Attributes:
      count: f32[C], number of vectors behind each mean.
      mean: f32[C, P].
      factor: f32[R, P], F; the covariance of every class is F^T F.
    """

    count: jax.Array
    mean: jax.Array
    factor: jax.Array


def init_shared_gaussians(num_classes: int, size: int, *, num_directions: int) -> SharedGaussians:
    """Gaussians of no data: C classes, vectors of P = `size` values, R directions (P at most)."""
    return SharedGaussians(
        count=jnp.zeros(num_classes),
        mean=jnp.zeros((num_classes, size)),
        factor=jnp.zeros((min(num_directions, size), size)),
    )


def sum_by_class(
    vectors: jax.Array, labels: jax.Array, weights: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Sums f32[C, P] of vectors f32[B, P] by label i32[B], and how many each is of, f32[C].

    `weights` f32[B] are 0 for padding rows, else 1.
    """
    member = jax.nn.one_hot(labels, num_classes) * weights[:, None]
    return _dot(member.T, vectors), member.sum(0)


def with_means(gaussians: SharedGaussians, sums: jax.Array, counts: jax.Array) -> SharedGaussians:
    """Sets the means of the classes with vectors to their sums over counts; see `sum_by_class`."""
    means = sums / jnp.maximum(counts, 1.0)[:, None]
    return gaussians._replace(mean=jnp.where(counts[:, None] > 0, means, gaussians.mean))


def add_vectors(
    gaussians: SharedGaussians, vectors: jax.Array, labels: jax.Array, weights: jax.Array
) -> SharedGaussians:
    """Adds vectors f32[B, P] to the covariance, by their distance to the mean of their class.

    With n vectors before and m of weight above 0 among these, the new F has the R leading
    directions of n / (n + m) F^T F + 1 / (n + m) sum (x - mean)(x - mean)^T: exactly the pooled
    covariance while that has no more directions than R.

    Args:
      gaussians: with the means of all these vectors' classes; see `with_means`.
      vectors: f32[B, P].
      labels: i32[B].
      weights: f32[B], 0 for padding rows, else 1.
    """
    before, added = gaussians.count.sum(), weights.sum()
    total = jnp.maximum(before + added, 1.0)
    centred = (vectors - gaussians.mean[labels]) * weights[:, None]
    rows = jnp.concatenate([jnp.sqrt(before) * gaussians.factor, centred]) / jnp.sqrt(total)
    # rows^T rows has the eigenvectors of the small rows rows^T = U S U^T, as rows^T U.
    _, left = jnp.linalg.eigh(_dot(rows, rows.T))
    leading = left[:, ::-1][:, : len(gaussians.factor)]
    count = gaussians.count + jax.nn.one_hot(labels, len(gaussians.count)).T @ weights
    return gaussians._replace(count=count, factor=_dot(leading.T, rows))


def sample_vectors(gaussians: SharedGaussians, labels: jax.Array, key: PRNGKey) -> jax.Array:
    """Draws one vector f32[B, P] per label i32[B] from that class's Gaussian."""
    noise = jax.random.normal(key, (len(labels), len(gaussians.factor)))
    return gaussians.mean[labels] + _dot(noise, gaussians.factor)


def _dot(a, b):
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
