"""Class Gaussians of penultimate features: fit, merge, sample (diagonal or full covariance)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.types import PRNGKey


class ClassStats(NamedTuple):
    """One Gaussian per class. Classes never seen have count 0, mean 0, covariance identity.

    Attributes:
      count: f32[C], number of features behind each Gaussian.
      mean: f32[C, D].
      cov: f32[C, D] variances (diagonal) or f32[C, D, D] covariances (full).
    """

    count: jax.Array
    mean: jax.Array
    cov: jax.Array

    @property
    def std(self) -> jax.Array:
        """Standard deviation per class and dimension, f32[C, D]."""
        var = self.cov if self.cov.ndim == 2 else jnp.diagonal(self.cov, axis1=1, axis2=2)
        return jnp.sqrt(var)


def init_class_stats(num_classes: int, feature_dim: int, *, full: bool = False) -> ClassStats:
    """Statistics of no data at all, for `num_classes` classes of D-dimensional features."""
    shape = (num_classes, feature_dim)
    cov = jnp.broadcast_to(jnp.eye(feature_dim), (*shape, feature_dim)) if full else jnp.ones(shape)
    return ClassStats(jnp.zeros(num_classes), jnp.zeros(shape), cov)


def fit_class_stats(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    *,
    full: bool = False,
    weights: jax.Array | None = None,
) -> ClassStats:
    """Mean and population (co)variance of each class's features (docs/methods/pmi.md).

    Args:
      features: f32[B, D].
      labels: i32[B], each in [0, num_classes).
      num_classes: C.
      full: keep f32[C, D, D] covariances instead of f32[C, D] variances.
      weights: f32[B], 0 for padding rows; all ones when None.

    Returns:
      ClassStats; classes without features keep mean 0 and unit variance.

    Raises:
      ValueError: labels that are no integers, not one per feature, or of no class where their
        weight is not 0; those of a trace are not looked at.
    """
    if np.ndim(features) != 2 or np.shape(labels) != np.shape(features)[:1]:
        raise ValueError(
            f"features have shape {np.shape(features)} and labels {np.shape(labels)}; expected "
            "f32[B, D] and i32[B], a label for each feature."
        )
    _check_labels(labels, num_classes, weights)
    member = jax.nn.one_hot(labels, num_classes)  # f32[B, C]
    if weights is not None:
        member = member * weights[:, None]
    count = member.sum(0)
    share = member / jnp.maximum(count, 1.0)[None, :]
    mean = share.T @ features
    centred = features - (member > 0).astype(features.dtype) @ mean
    if full:
        cov = jnp.einsum("bc,bd,be->cde", share, centred, centred)
        empty = jnp.eye(features.shape[1])[None]
    else:
        cov = share.T @ jnp.square(centred)
        empty = jnp.ones((1, features.shape[1]))
    seen = (count > 0).reshape((-1,) + (1,) * (cov.ndim - 1))
    return ClassStats(count, mean, jnp.where(seen, cov, empty))


def merge_class_stats(a: ClassStats, b: ClassStats) -> ClassStats:
    """Statistics of the union of the data behind `a` and `b`, class by class."""
    count = a.count + b.count
    share_a = (a.count / jnp.maximum(count, 1.0))[:, None]
    share_b = (b.count / jnp.maximum(count, 1.0))[:, None]
    mean = share_a * a.mean + share_b * b.mean
    gap = a.mean - b.mean
    if a.cov.ndim == 3:
        spread = jnp.einsum("cd,ce->cde", gap, gap)
        share_a, share_b = share_a[..., None], share_b[..., None]
    else:
        spread = jnp.square(gap)
    cov = share_a * a.cov + share_b * b.cov + share_a * share_b * spread
    seen = (count > 0).reshape((-1,) + (1,) * (cov.ndim - 1))
    return ClassStats(count, mean, jnp.where(seen, cov, a.cov))


def sample_class_features(
    stats: ClassStats, labels: jax.Array, key: PRNGKey, *, jitter: float = 1e-6
) -> jax.Array:
    """Draws one feature f32[B, D] per label i32[B] from that class's Gaussian.

    `jitter` is added to the diagonal of full covariances before their Cholesky factor. Labels of
    no class are a ValueError where they are known, not traced.
    """
    _check_labels(labels, stats.count.shape[0])
    noise = jax.random.normal(key, (*labels.shape, stats.mean.shape[1]), stats.mean.dtype)
    if stats.cov.ndim == 2:
        return stats.mean[labels] + stats.std[labels] * noise
    factor = jnp.linalg.cholesky(stats.cov + jitter * jnp.eye(stats.cov.shape[-1])[None])
    return stats.mean[labels] + jnp.einsum("bde,be->bd", factor[labels], noise)


def _check_labels(labels, num_classes, weights=None):
    """Raises if known labels are not those of classes; indexing would take another's unasked."""
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"labels are of type {jnp.result_type(labels)}; expected integers, i32[B]."
        )
    if any(isinstance(x, jax.core.Tracer) for x in (labels, weights)):
        return
    counted = np.asarray(labels) if weights is None else np.asarray(labels)[np.asarray(weights) > 0]
    if counted.size and (counted.min() < 0 or counted.max() >= num_classes):
        raise ValueError(
            f"labels range from {counted.min()} to {counted.max()}, but there are {num_classes} "
            f"classes, 0 to {num_classes - 1}; renumber them or raise num_classes."
        )
