"""What synthetic images must mean to the network: target features, labels, or both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.inversion import objectives


class Targets(NamedTuple):
    """Per image: a feature to reach and the class that it was drawn from."""

    features: jax.Array  # f32[B, D]
    labels: jax.Array  # i32[B]
    head: jax.Array  # f32[D, C], the network's classifier
    class_mask: jax.Array  # bool[C], classes the classifier knows


def target_terms(
    features: jax.Array, targets: Targets, *, feature_weight: float, cross_entropy_weight: float
) -> dict[str, jax.Array]:
    """The feature and label terms of weight > 0, on features f32[B, D] of the images."""
    terms = {}
    if feature_weight > 0:
        terms["feature_match"] = objectives.feature_match(features, targets.features)
    if cross_entropy_weight > 0:
        logits = jnp.where(targets.class_mask[None], features @ targets.head, -1e9)
        terms["cross_entropy"] = objectives.class_cross_entropy(logits, targets.labels)
    return terms
