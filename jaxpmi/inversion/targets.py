"""What synthetic images must mean to the network: target features, labels, or both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.inversion import objectives
from jaxpmi.network import Head


class Targets(NamedTuple):
    """Per image: a feature to reach and the class that it was drawn from.

    Attributes:
      features: f32[B, D].
      labels: i32[B].
      head: the network's classifier.
      class_mask: bool[C], the classes that it knows.
    """

    features: jax.Array
    labels: jax.Array
    head: Head
    class_mask: jax.Array


def target_terms(
    features: jax.Array, targets: Targets, *, feature_weight: float, cross_entropy_weight: float
) -> dict[str, jax.Array]:
    """The feature and label terms of weight > 0, on features f32[B, D] of the images."""
    terms = {}
    if feature_weight > 0:
        terms["feature_match"] = objectives.feature_match(features, targets.features)
    if cross_entropy_weight > 0:
        logits = jnp.where(targets.class_mask[None], targets.head(features), -1e9)
        terms["cross_entropy"] = objectives.class_cross_entropy(logits, targets.labels)
    return terms
