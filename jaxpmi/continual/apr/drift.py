"""How training has moved old classes' features: means by their shift, covariances by a map.

There are no images of old classes; new ones, pushed to an old class's mean in the old network,
stand in for them (docs/methods/apr.md, eqs. 4 to 6).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual.apr.push import push_images
from jaxpmi.continual.apr.variants import AprVariant
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.network import Network
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.types import PRNGKey

BATCH = 64  # images pushed together
RIDGE = 0.01  # the pull to the identity, in mean variances of old features
ADAM_RATE, ADAM_EPOCHS, ADAM_BATCH = 6e-4, 64, 16


class Moved(NamedTuple):
    """One class's statistics after a task.

    Attributes:
      mean: f32[D].
      cov: f32[D, D].
      reached: f32[], how many images came to the class; by none, nothing moves.
    """

    mean: jax.Array
    cov: jax.Array
    reached: jax.Array


@functools.partial(jax.jit, static_argnames="variant")
def move_class(
    teacher: Network,
    network: Network,
    stats: ClassStats,
    label: jax.Array,
    images: jax.Array,
    valid: jax.Array,
    old_mask: jax.Array,
    key: PRNGKey,
    *,
    variant: AprVariant,
) -> Moved:
    """Moves one old class's statistics from the old network to the one just trained.

    Args:
      teacher: the network before the task; both run in evaluation mode.
      network: the one after it.
      stats: of all old classes, for `teacher`.
      label: i32[], the class.
      images: u8[M, H, W, channels], M a multiple of `BATCH`, views of new images.
      valid: bool[M], False for padding.
      old_mask: f32[C], the classes whose means compete for an image.
      key: key[], of the fit by steps.
      variant: how images are pushed and what is fitted.
    """
    x = normalise(images, teacher.mean, teacher.std)
    parts = jax.tree.map(lambda a: a.reshape(-1, BATCH, *a.shape[1:]), (x, valid))
    push = functools.partial(_push_batch, teacher, stats, label, old_mask, variant=variant)

    def pairs(batch):
        pushed, reached = push(*batch)
        return (*(_features(n, pushed) for n in (teacher, network)), reached)

    before, after, reached = jax.lax.map(pairs, parts)
    dim = before.shape[-1]
    before, after, reached = before.reshape(-1, dim), after.reshape(-1, dim), reached.reshape(-1)
    weights = reached.astype(jnp.float32)
    mean = stats.mean[label] + mean_shift(before, after, weights)
    if variant.calibration == "ridge":
        matrix = fit_by_ridge(before, after, weights)
    else:
        matrix = fit_by_adam(before, after, weights, key=key)
    cov = carry_covariance(stats.cov[label], matrix)
    some = weights.sum() > 0
    cov = jnp.where(some, cov, stats.cov[label])
    return Moved(jnp.where(some, mean, stats.mean[label]), cov, weights.sum())


def nearest_class(features: jax.Array, stats: ClassStats, class_mask: jax.Array) -> jax.Array:
    """The masked class i32[B] whose mean is the nearest to each feature f32[B, D]."""
    distances = jnp.square(features[:, None] - stats.mean[None]).sum(-1)
    return jnp.where(class_mask[None] > 0, distances, jnp.inf).argmin(1)


def mean_shift(before: jax.Array, after: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean f32[D] of what features f32[M, D] moved by; 0 where all weights are 0."""
    return weights @ (after - before) / jnp.maximum(weights.sum(), 1.0)


def carry_covariance(cov: jax.Array, matrix: jax.Array) -> jax.Array:
    """W S W^T f32[D, D] of features W f, symmetric to the last bit."""
    moved = jnp.linalg.multi_dot([matrix, cov, matrix.T], precision="highest")
    return (moved + moved.T) / 2


def fit_by_ridge(
    before: jax.Array, after: jax.Array, weights: jax.Array, *, ridge: float = RIDGE
) -> jax.Array:
    """W f32[D, D] of the map W f + b nearest to taking features before to those after.

    min over W, b of  mean |W f + b - f'|^2 + ridge v |W - I|^2,  v the mean variance of f.
    """
    count = jnp.maximum(weights.sum(), 1.0)
    x, y = (f - (weights @ f / count)[None] for f in (before, after))
    dot = functools.partial(jnp.dot, precision="highest")
    scatter = dot((weights[:, None] * x).T, x) / count
    cross = dot((weights[:, None] * y).T, x) / count
    eye = jnp.eye(x.shape[1])
    pull = jnp.maximum(ridge * jnp.trace(scatter) / x.shape[1], 1e-12) * eye
    # W (scatter + pull) = cross + pull, and what multiplies W is symmetric.
    return jnp.linalg.solve(scatter + pull, (cross + pull).T).T


def fit_by_adam(
    before: jax.Array, after: jax.Array, weights: jax.Array, *, key: PRNGKey
) -> jax.Array:
    """The same as published: Adam from W = I, b = 0 on the mean length of the errors.

    An epoch's batches are drawn with replacement.
    """
    dim, count = before.shape[1], weights.sum()
    order = jnp.argsort(-weights)  # the ones of weight above 0 first
    per_epoch = jnp.ceil(count / ADAM_BATCH).astype(jnp.int32)
    most = ADAM_EPOCHS * -(-len(before) // ADAM_BATCH)

    def loss_fn(params, state, index):
        matrix, bias = params
        drawn = jax.random.randint(
            jax.random.fold_in(key, index), (ADAM_BATCH,), 0, jnp.maximum(count.astype(int), 1)
        )
        rows = order[drawn]
        errors = before[rows] @ matrix.T + bias[None] - after[rows]
        return jnp.sqrt(jnp.square(errors).sum(1) + 1e-12).mean(), (state, None)

    tx = optax.scale_by_adam()
    start = jnp.eye(dim), jnp.zeros(dim)
    end, _ = descend(
        loss_fn,
        Descent(start, tx.init(start), ()),
        tx=tx,
        learning_rates=jnp.full(most, ADAM_RATE),
        num_steps=ADAM_EPOCHS * per_epoch,
    )
    return end.params[0]


def _push_batch(teacher, stats, label, old_mask, images, valid, *, variant):
    """Pushes a batch until one of its images reaches the class, or no step is left."""
    targets = jnp.broadcast_to(stats.mean[label][None], (len(images), stats.mean.shape[1]))
    most_rounds = variant.most_drift_steps // variant.drift.num_steps

    def goes_on(carry):
        _, reached, rounds = carry
        return valid.any() & ~reached.any() & (rounds < most_rounds)

    def push_once(carry):
        x, _, rounds = carry
        x = push_images(teacher, x, targets, variant.drift)
        nearest = nearest_class(_features(teacher, x), stats, old_mask)
        return x, valid & (nearest == label), rounds + 1

    start = images, jnp.zeros_like(valid), jnp.zeros((), jnp.int32)
    pushed, reached, _ = jax.lax.while_loop(goes_on, push_once, start)
    return pushed, reached


def _features(network, images):
    return forward(network.model, network.variables, images).features
