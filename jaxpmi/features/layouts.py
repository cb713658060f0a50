"""Layouts: small images of every class, as Gaussians; how images of one class differ.

A layout is an image of `SIDE` pixels a side at most. A class's Gaussian is N(mean_c, U^T S_c U): an
own mean, and an own covariance S_c in R directions U, the leading ones in which images of one class
differ, over all classes together. Unlike features, layouts are of images alone: what is known of a
class does not fade while the network goes on learning (docs/methods/pmi.md, eqs. 6a, 6b).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.types import PRNGKey

SIDE = 16  # pixels, at most, of a layout's longer side
NUM_DIRECTIONS = 32


class Layouts(NamedTuple):
    """A Gaussian of layouts per class, P values each. Classes never seen have count 0.

    Attributes:
      count: f32[C], number of layouts behind each Gaussian.
      mean: f32[C, P].
      directions: f32[R, P], U, orthonormal rows.
      cov: f32[C, R, R], S_c.
    """

    count: jax.Array
    mean: jax.Array
    directions: jax.Array
    cov: jax.Array


def layout_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(h, w, C) of the layouts of images (H, W, C): sides over the least s that keeps to `SIDE`."""
    height, width, channels = image_shape
    scale = math.ceil(max(height, width) / SIDE)
    return math.ceil(height / scale), math.ceil(width / scale), channels


def init_layouts(num_classes: int, image_shape: tuple[int, int, int]) -> Layouts:
    """Layouts of no images, of C classes; what they take does not grow with the images."""
    size = math.prod(layout_shape(image_shape))
    kept = min(NUM_DIRECTIONS, size)
    return Layouts(
        count=jnp.zeros(num_classes),
        mean=jnp.zeros((num_classes, size)),
        directions=jnp.zeros((kept, size)),
        cov=jnp.zeros((num_classes, kept, kept)),
    )


def layouts_of(images: jax.Array) -> jax.Array:
    """Layouts f32[B, P] of images f32[B, H, W, C]: bilinear, smoothed before."""
    shape = (len(images), *layout_shape(images.shape[1:]))
    return jax.image.resize(images, shape, "linear").reshape(len(images), -1)


def with_layouts(images: jax.Array, layouts: jax.Array) -> jax.Array:
    """Images f32[B, H, W, C] given other layouts f32[B, P]; what is finer stays as it was."""
    small = (layouts - layouts_of(images)).reshape(-1, *layout_shape(images.shape[1:]))
    return images + jax.image.resize(small, images.shape, "cubic")


def add_layouts(
    known: Layouts, vectors: jax.Array, labels: jax.Array, weights: jax.Array
) -> Layouts:
    """Adds images' layouts to what is known of their classes; directions are chosen anew.

    The new U are the R leading directions of the covariance within classes, pooled over all
    images; old classes' covariances are carried over to them.

    Args:
      known: before.
      vectors: f32[B, P], see `layouts_of`.
      labels: i32[B].
      weights: f32[B], 0 for padding rows, else 1.
    """
    member = jax.nn.one_hot(labels, len(known.count)) * weights[:, None]
    added = member.sum(0)
    count = known.count + added
    safe = jnp.maximum(count, 1.0)[:, None]
    mean = known.mean + (_dot(member.T, vectors) - added[:, None] * known.mean) / safe
    moved = jnp.sqrt(known.count)[:, None] * (known.mean - mean)
    centred = (vectors - mean[labels]) * weights[:, None]
    sums = jnp.einsum("c,crs->crs", known.count, known.cov)  # of squares, in old directions
    old = known.directions
    pooled = _dot(old.T, _dot(sums.sum(0), old)) + _dot(moved.T, moved) + _dot(centred.T, centred)
    _, vectors_up = jnp.linalg.eigh(pooled)
    new = vectors_up[:, ::-1][:, : len(old)].T
    turn, moved, centred = _dot(new, old.T), _dot(moved, new.T), _dot(centred, new.T)
    sums = jnp.einsum("qr,crs,ts->cqt", turn, sums, turn, precision=_HIGHEST)
    sums = sums + jnp.einsum("cr,cs->crs", moved, moved)
    sums = sums + jnp.einsum("bc,br,bs->crs", member, centred, centred, precision=_HIGHEST)
    return Layouts(count, mean, new, sums / safe[..., None])


def sample_layouts(known: Layouts, labels: jax.Array, key: PRNGKey) -> jax.Array:
    """Draws one layout f32[B, P] per label i32[B] from that class's Gaussian."""
    values, turns = jnp.linalg.eigh(known.cov)  # of few images it has no Cholesky factor
    factor = turns * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]
    noise = jax.random.normal(key, (len(labels), len(known.directions)))
    drawn = jnp.einsum("brs,bs->br", factor[labels], noise)
    return known.mean[labels] + _dot(drawn, known.directions)


_HIGHEST = jax.lax.Precision.HIGHEST


def _dot(a, b):
    return jnp.dot(a, b, precision=_HIGHEST)
