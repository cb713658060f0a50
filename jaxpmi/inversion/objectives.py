"""Inversion objectives: pure functions from arrays to a scalar."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpmi.types import Moments

VARIANCE_FLOOR = 1e-4  # of stored variances: channels a network never uses have variance ~ 0


def feature_match(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error over all elements (PMI, E2)."""
    return jnp.square(output - target).mean()


def moment_kl(batch: Moments, stored: Moments) -> jax.Array:
    """KL(N(batch) || N(stored)), averaged over channels (PMI, E1).

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


def class_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of f32[B, C] logits against i32[B] labels."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - picked).mean()


def reverse_moment_kl(batch: Moments, stored: Moments) -> jax.Array:
    """KL(N(stored) || N(batch)), averaged over channels: ABD's direction (baselines 4.1).

    ln(s_b / s_r) - (1 - (s_r^2 + (m_r - m_b)^2) / s_b^2) / 2, with 1e-8 added to both variances.
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

    0 where the batch f32[B, C] covers the classes evenly, 1 where it shows one (baselines 4.1).
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
