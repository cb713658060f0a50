"""Classification of features by the statistics of classes: nearest mean, Mahalanobis distance.

Features and means have length 1 when they are compared; covariances are of features as they are
(docs/methods/apr.md, eqs. 7 to 9).
"""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.features.gaussian import ClassStats

LEAST = 1e-12  # of lengths and variances


class MahalanobisHead(NamedTuple):
    """A classifier: the less distant a class's mean, the higher its score.

    Attributes:
      mean: f32[C, D], of length 1.
      precision: f32[C, D, D], symmetric, of each class.
    """

    mean: jax.Array
    precision: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Scores f32[B, C] of features f32[B, D]: minus the squared distances."""
        gap = unit(features)[:, None] - self.mean[None]
        return -jnp.einsum("bcd,cde,bce->bc", gap, self.precision, gap, precision="highest")


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors f32[..., D] at length 1."""
    length = jnp.sqrt(jnp.square(vectors).sum(-1, keepdims=True))
    return vectors / jnp.maximum(length, LEAST)


def shrink(
    cov: jax.Array, shrinkage: float, *, over: Literal["all", "nonzero"] = "all"
) -> jax.Array:
    """A = S + g a I + g b (1 - I) of covariances S f32[..., D, D].

    a is their mean variance, b their mean covariance of two features: over all pairs, so that A is
    positive semi-definite as S is; or over those that are not 0 (as published).
    """
    eye = jnp.eye(cov.shape[-1], dtype=cov.dtype).reshape((1,) * (cov.ndim - 2) + cov.shape[-2:])
    pairs = cov * (1.0 - eye)
    if over == "all":
        number = cov.shape[-1] * (cov.shape[-1] - 1)
    else:
        number = jnp.count_nonzero(pairs, axis=(-2, -1), keepdims=True)
    variance = (cov * eye).sum((-2, -1), keepdims=True) / cov.shape[-1]
    covariance = pairs.sum((-2, -1), keepdims=True) / number
    return cov + shrinkage * (variance * eye + covariance * (1.0 - eye))


def correlations(cov: jax.Array) -> jax.Array:
    """R_ij = A_ij / sqrt(A_ii A_jj) of covariances A f32[..., D, D]."""
    deviation = jnp.sqrt(jnp.maximum(jnp.diagonal(cov, axis1=-2, axis2=-1), LEAST))
    return cov / deviation[..., None] / deviation[..., None, :]


def mahalanobis_head(
    stats: ClassStats, *, shrinkage: float, over: Literal["all", "nonzero"] = "all"
) -> MahalanobisHead:
    """The classifier by distances d = (x - mu)^T R^+ (x - mu), R of shrunk full covariances."""
    scaled = correlations(shrink(stats.cov, shrinkage, over=over))
    return MahalanobisHead(unit(stats.mean), jnp.linalg.pinv(scaled, hermitian=True))


def nearest_mean_kernel(stats: ClassStats) -> jax.Array:
    """The linear classifier f32[D, C] that takes a feature for the class of the nearest mean.

    Of vectors of length 1, |x - mu|^2 = 2 - 2 x mu; the length of x changes no order.
    """
    return unit(stats.mean).T
