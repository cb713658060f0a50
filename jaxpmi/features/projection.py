"""Features for classes known by name only: those of similar seen classes, rotated in place.

In a joint image-text space (CLIP) the text of a new class tells where its images lie. Draws from
the Gaussians of the seen classes with the most similar text are turned by the rotation that takes
the seen class's direction to the new class's text (Tong et al. 2025; docs/methods/clip.md).
"""

import functools
from typing import Literal
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.types import PRNGKey

Pivot = Literal["text", "image_mean"]


@jax.jit
def text_prototypes(text_features: jax.Array) -> jax.Array:
    """Unit mean f32[C, D] of each class's normalised text features (docs/methods/clip.md).

    Args:
      text_features: f32[C, P, D] of P prompt templates per class, of any norm above 0.

    Raises:
      ValueError: `text_features` does not have three axes.
    """
    if text_features.ndim != 3:
        raise ValueError(
            f"got text features of shape {text_features.shape}; expected [C, P, D], so keep an "
            "axis of length 1 for a single prompt template."
        )
    return _normalise(_normalise(text_features).mean(1))


@jax.jit
def rotate(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Rotates x in the plane of a and b by the angle from a to b (docs/methods/clip.md, eq. 6).

    A reflection along a and then one along a + b are that rotation. Unlike the published formula,
    which they equal, they are smooth at a = b, where x stays as it is. At b = -a there is no such
    plane: within 4e-4 rad of it (float32) x is only reflected along a, which still takes a to -a
    and keeps norms, inner products and all that is perpendicular to a.

    Args:
      x: f32[..., D].
      a: f32[D] of norm 1.
      b: f32[D] of norm 1.

    Returns:
      f32[..., D], with finite gradients for all a and b.

    Raises:
      ValueError: shapes that do not fit.
    """
    if not a.shape == b.shape == x.shape[-1:]:
        raise ValueError(
            f"got x of shape {x.shape}, a of shape {a.shape} and b of shape {b.shape}; expected "
            "[..., D], [D] and [D], so use jax.vmap for several rotations."
        )
    between = a + b
    # So short a sum is mostly the rounding of a and b. Along a zero vector nothing is reflected.
    opposite = jnp.sum(jnp.square(between)) < jnp.finfo(between.dtype).eps
    return _reflect(_reflect(x, a), _normalise(jnp.where(opposite, 0.0, between)))


@functools.partial(jax.jit, static_argnames="num_neighbours")
def nearest_classes(
    prototypes: jax.Array, seen: jax.Array, new: jax.Array, num_neighbours: int
) -> tuple[jax.Array, jax.Array]:
    """Finds the seen classes whose prototypes are nearest to a new one (docs/methods/clip.md).

    Args:
      prototypes: f32[C, D], of any norm above 0.
      seen: i32[num_seen], distinct classes in [0, C).
      new: f32[D], the new class's prototype.
      num_neighbours: how many, in [1, num_seen].

    Returns:
      Classes i32[num_neighbours], nearest first, and their cosines f32[num_neighbours].

    Raises:
      ValueError: too few seen classes, or shapes that do not fit.
    """
    seen = jnp.asarray(seen)
    if prototypes.ndim != 2 or new.shape != prototypes.shape[1:]:
        raise ValueError(
            f"got prototypes of shape {prototypes.shape} and a new one of shape {new.shape}; "
            "expected [C, D] and [D], so use jax.vmap for several new classes."
        )
    if seen.ndim != 1 or not jnp.issubdtype(seen.dtype, jnp.integer):
        raise ValueError(
            f"got seen classes {seen.dtype}{list(seen.shape)}; expected indices int32[num_seen], "
            "so use np.flatnonzero on a mask."
        )
    if not 1 <= num_neighbours <= seen.size:
        raise ValueError(
            f"got num_neighbours={num_neighbours} with {seen.size} seen classes; expected at least "
            "1 and no more than are seen, so change num_neighbours."
        )
    directions = _normalise(jnp.take(prototypes, seen, axis=0))
    cosines = jnp.dot(directions, _normalise(new), precision="highest")
    cosines, order = jax.lax.top_k(cosines, num_neighbours)
    return seen[order], cosines


@functools.partial(jax.jit, static_argnames=("num_seen", "num_neighbours"))
def neighbour_shares(prototypes: jax.Array, num_seen: int, num_neighbours: int) -> jax.Array:
    """Says by which seen classes every class is stood for, in equal parts: f32[C, C].

    Args:
      prototypes: f32[C, D], of any norm above 0; the first `num_seen` are of seen classes.
      num_seen: how many.
      num_neighbours: by how many a class that is not seen is stood for, in [1, num_seen].

    Returns:
      A row per class that sums to 1: a seen class stands for itself.

    Raises:
      ValueError: as `nearest_classes`.
    """

    def row(prototype):
        nearest, _ = nearest_classes(prototypes, jnp.arange(num_seen), prototype, num_neighbours)
        return jax.nn.one_hot(nearest, len(prototypes)).mean(0)

    itself = jnp.eye(len(prototypes))[:num_seen]
    return jnp.concatenate([itself, jax.vmap(row)(prototypes[num_seen:])])


def project_features(
    stats: ClassStats,
    prototypes: jax.Array,
    new_prototype: jax.Array,
    key: PRNGKey,
    *,
    num_features: int,
    num_neighbours: int = 5,
    average: bool = True,
    text_share: float = 0.1,
    pivot: Pivot = "text",
) -> jax.Array:
    """Draws features for a class without data from its nearest classes.

    docs/methods/clip.md, eqs. 6, 7.

    Use jax.vmap over `new_prototype` and `key` for several new classes.

    Args:
      stats: Gaussians of C classes, not traced: classes with count 0 are never used.
      prototypes: f32[C, D], text prototypes of the same classes.
      new_prototype: f32[D], text prototype of the new class.
      key: consumed.
      num_features: how many features to draw, at least 1.
      num_neighbours: how many of the nearest seen classes to draw from, at least 1.
      average: each feature is the mean of one draw from every neighbour, as published, which
        shrinks the variance within the class about `num_neighbours`-fold, but lies far closer to
        the class where neighbours lead to different places (cosine to the mean of real features
        .82 against .68, coloured digits, pivot "text"); if not, feature i is one draw, from
        neighbour i modulo `num_neighbours`.
      text_share: weight of `new_prototype` in the result, in [0, 1].
      pivot: what is rotated to `new_prototype`, the neighbour's "text" prototype or the direction
        of its "image_mean".

    Returns:
      f32[num_features, D], rows of norm 1.

    Raises:
      ValueError: a setting out of its range, or shapes that do not fit.
    """
    if prototypes.shape != stats.mean.shape:
        raise ValueError(
            f"got prototypes of shape {prototypes.shape} and class means of shape "
            f"{stats.mean.shape}; expected the same [C, D], so pass one prototype per class."
        )
    if num_features < 1:
        raise ValueError(f"got num_features={num_features}; expected at least 1, so raise it.")
    if not 0 <= text_share <= 1:
        raise ValueError(f"got text_share={text_share}; expected [0, 1], so use a share like 0.1.")
    if pivot not in get_args(Pivot):
        raise ValueError(f"got pivot={pivot!r}; expected 'text' or 'image_mean', so use one.")

    seen = np.flatnonzero(np.asarray(stats.count) > 0)
    nearest, _ = nearest_classes(prototypes, seen, new_prototype, num_neighbours)
    neighbours = jax.tree.map(lambda leaf: jnp.take(leaf, nearest, axis=0), stats)
    texts = jnp.take(prototypes, nearest, axis=0)
    pivots = _normalise(texts if pivot == "text" else neighbours.mean)
    new_prototype = _normalise(new_prototype)

    features = _draw_rotated(
        neighbours,
        pivots,
        new_prototype,
        key,
        num_features=num_features,
        num_averaged=num_neighbours if average else 1,
    )
    return _normalise((1.0 - text_share) * features + text_share * new_prototype[None])


@functools.partial(jax.jit, static_argnames=("num_features", "num_averaged"))
def _draw_rotated(neighbours, pivots, new_prototype, key, *, num_features, num_averaged):
    """Unit features f32[num_features, D], each the mean of `num_averaged` rotated draws."""
    # Neighbours take turns: the draws that are averaged, if any are, come from one of each.
    labels = jnp.arange(num_features * num_averaged) % pivots.shape[0]
    draws = _normalise(sample_class_features(neighbours, labels, key))
    rotated = jax.vmap(rotate, in_axes=(0, 0, None))(draws, pivots[labels], new_prototype)
    return _normalise(rotated.reshape(num_features, num_averaged, -1).mean(1))


def _reflect(x, normal):
    """Turns over the part of f32[..., D] that is along the unit vector f32[D]."""
    along = jnp.dot(x, normal, precision="highest")
    return x - 2.0 * jnp.multiply.outer(along, normal)


def _normalise(x):
    """Rows of norm 1; zero rows stay zero and have a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
