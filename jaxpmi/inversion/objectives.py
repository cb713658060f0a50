"""Inversion objectives: pure functions from arrays to a scalar."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.types import Moments

VARIANCE_FLOOR = 1e-4  # of stored variances: channels a network never uses have variance ~ 0


def feature_match(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error over all elements (docs/methods/pmi.md, eq. 2)."""
    return jnp.square(output - target).mean()


def moment_kl(batch: Moments, stored: Moments) -> jax.Array:
    """KL(N(batch) || N(stored)), averaged over channels (docs/methods/pmi.md, eq. 1).

    It is 0 exactly where the moments agree. Stored variances are floored at 1e-4.
    """
    floor = jnp.maximum(stored.var, VARIANCE_FLOOR)
    var = batch.var + 1e-8
    distance = (var + jnp.square(batch.mean - stored.mean)) / floor
    return 0.5 * (jnp.log(floor) - jnp.log(var) - 1.0 + distance).mean()


def statistics_loss(moments: Any, stored: Any) -> jax.Array:
    """Sum of `moment_kl` over all layers of two pytrees of `Moments` of equal structure."""
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    losses = jax.tree.map(moment_kl, moments, stored, is_leaf=is_moments)
    return sum(jax.tree.leaves(losses), start=jnp.zeros(()))


def euclidean_norm(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """Root of the sum of squares over `axis` (None: all), with a gradient of 0 where it is 0."""
    square = jnp.square(x).sum(axis)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def batch_norm_distance(
    model: BlockwiseModel,
    moments: dict[str, Any],
    stored: dict[str, Any],
    *,
    first_factor: float = 1.0,
    relative: bool = False,
) -> jax.Array:
    """Sum over layers of ||mean - stored mean|| + ||var - stored var||, f32[].

    DeepInversion's and CMI's regulariser (docs/methods/deep_inversion.md, eq. 2): Euclidean norms
    over channels, not squared. Nothing is divided by a variance, so channels that the network never
    uses need no floor. But layers count by the size of their inputs, which says nothing where
    BatchNorm evens it out: in EfficientNet-Lite0 typical variances go from 0.01 to 60, one layer
    after the other.

    Args:
      model: the network.
      moments: `Forward.moments` of a batch: biased moments of every BatchNorm's input. A network
        that keeps moments of other layers, such as a transformer, is compared at these.
      stored: running moments, `Variables.batch_stats`.
      first_factor: on the share of the first layer, which sees the image.
      relative: measure every channel in units of its stored deviation (floored at 0.01), and the
        root of the mean square over channels in place of the norm, so that all layers count alike.

    Raises:
      ValueError: the network keeps no moments at all.
    """
    distances = []
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        distance = functools.partial(_layer_distances, relative=relative)
        if name in moments:
            distance = jax.vmap(distance) if isinstance(block, Stack) else distance
            distances += [jnp.ravel(d) for d in distance(moments[name], stored[name])]
    if not distances:
        raise ValueError(
            "the network keeps no moments of any layer, so there are no statistics to "
            "match; use a network with BatchNorm, or set statistics_weight to 0."
        )
    total = sum(d.sum() for d in distances)
    return total + (first_factor - 1.0) * distances[0][0]


def _layer_distances(moments, stored, *, relative):
    """One distance per layer of a block, in the order of its pytree."""

    def distance(batch, running):
        mean, var = batch.mean - running.mean, batch.var - running.var
        if relative:
            unit = jnp.maximum(running.var, VARIANCE_FLOOR)
            mean, var = mean / jnp.sqrt(unit * unit.size), var / (unit * jnp.sqrt(unit.size))
        return euclidean_norm(mean) + euclidean_norm(var)

    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    return jax.tree.leaves(jax.tree.map(distance, moments, stored, is_leaf=is_moments))


def class_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of f32[B, C] logits against i32[B] labels."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - picked).mean()


def jensen_shannon(logits: jax.Array, others: jax.Array, temperature: float) -> jax.Array:
    """Jensen-Shannon divergence of two batches of f32[B, C] logits, in [0, ln 2], mean over B.

    KL(p || m) / 2 + KL(q || m) / 2 with p, q the softmax of logits / temperature, m = (p + q) / 2
    (docs/methods/deep_inversion.md, eq. 5).
    """
    p, q = (jax.nn.log_softmax(z / temperature) for z in (logits, others))
    middle = jnp.logaddexp(p, q) - jnp.log(2.0)
    halves = jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle)
    return 0.5 * halves.sum(1).mean()


def reference_divergence(logits: jax.Array, others: jax.Array, temperature: float) -> jax.Array:
    """What DeepInversion's published code computes in place of `jensen_shannon`.

    Probabilities and their mean m are each clamped to [0.01, 0.99], and the divergences are the
    reverse ones: KL(m || p) / 2 + KL(m || q) / 2, in [0, 1.6145] (docs/methods/deep_inversion.md,
    eq. 6).
    """
    p, q = (jax.nn.softmax(z / temperature) for z in (logits, others))
    m, p, q = (jnp.clip(x, 0.01, 0.99) for x in (0.5 * (p + q), p, q))
    return (m * (jnp.log(m) - 0.5 * (jnp.log(p) + jnp.log(q)))).sum(1).mean()


def reverse_moment_kl(batch: Moments, stored: Moments) -> jax.Array:
    """KL(N(stored) || N(batch)), averaged over channels: ABD's direction.

    ln(s_b / s_r) - (1 - (s_r^2 + (m_r - m_b)^2) / s_b^2) / 2, with 1e-8 added to both variances
    (docs/methods/baselines.md, eq. 5).
    """
    target, var = stored.var + 1e-8, batch.var + 1e-8
    distance = (target + jnp.square(stored.mean - batch.mean)) / var
    return 0.5 * (jnp.log(var) - jnp.log(target) - 1.0 + distance).mean()


def reverse_statistics_loss(moments: Any, stored: Any) -> jax.Array:
    """Mean of `reverse_moment_kl` over all layers of two pytrees of `Moments`."""
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    losses = jax.tree.map(reverse_moment_kl, moments, stored, is_leaf=is_moments)
    return jnp.stack(jax.tree.leaves(losses)).mean()


def class_imbalance(logits: jax.Array, class_mask: jax.Array) -> jax.Array:
    """1 - entropy(p) / ln n, p the batch mean of softmax over the n masked classes.

    0 where the batch f32[B, C] covers the classes evenly, 1 where it shows one
    (docs/methods/baselines.md, eq. 4).
    """
    mask = class_mask > 0
    probabilities = jax.nn.softmax(jnp.where(mask[None], logits, -1e9), axis=1).mean(0)
    # The floor keeps the gradient of p ln p finite at p = 0.
    entropy = -(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30))).sum()
    return 1.0 - entropy / jnp.log(jnp.maximum(mask.sum(), 2))


def self_cross_entropy(
    logits: jax.Array, class_mask: jax.Array, *, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Mean cross-entropy of logits / temperature to their own argmax, among masked classes."""
    logits = jnp.where((class_mask > 0)[None], logits / temperature, -1e9)
    return class_cross_entropy(logits, jnp.argmax(logits, axis=1))


def prediction_divergence(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """KL(softmax(teacher) || softmax(student)) of every row of f32[B, C] logits, f32[B]."""
    log_teacher, log_student = map(jax.nn.log_softmax, (teacher_logits, student_logits))
    return (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(1)


def distillation_kl(
    student_logits: jax.Array, teacher_logits: jax.Array, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """temperature^2 times the batch mean of KL(teacher || student) at that temperature, f32[].

    The square keeps the gradient about as large at any temperature
    (docs/distillation_and_pruning.md, eq. 1).
    """
    divergence = prediction_divergence(teacher_logits / temperature, student_logits / temperature)
    return jnp.square(temperature) * divergence.mean()


def agreed_divergence(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """Batch mean of `prediction_divergence`, with 0 where the two name different classes, f32[].

    CMI maximises it: images move to where the student is unsure, not to where it is wrong. Which
    images count carries no gradient.
    """
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return jnp.where(agree, prediction_divergence(teacher_logits, student_logits), 0.0).mean()
