"""Search for images among the outputs of a generator: what CMI and FastDFKD share.

`minimise` moves latents and the generator's weights together for a few steps, each with an Adam of
its own. The images that count are those of the least loss.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import CmiConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.network import Network


def adams(names: Iterable[str]) -> dict[str, optax.GradientTransformation]:
    """Adam for the generator, its latents and the projection head, which alone is never reset."""
    return {name: optax.scale_by_adam(b1=0.9 if name == "projection" else 0.5) for name in names}


def part_rates(config: CmiConfig, variant: CmiVariant, names: Iterable[str]) -> dict[str, float]:
    """The learning rate of each of these parts, at all steps."""
    rate = config.learning_rate
    of_latents = variant.latent_rate_factor * rate
    return {name: of_latents if name == "latents" else rate for name in names}


def by_part(
    transformations: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Of a dict of parts, each by its own transformation; the state is a dict of theirs."""

    def init(parts):
        return {name: tx.init(parts[name]) for name, tx in transformations.items()}

    def update(grads, states, parts=None):
        del parts
        both = {k: tx.update(grads[k], states[k]) for k, tx in transformations.items()}
        return tuple({k: pair[i] for k, pair in both.items()} for i in range(2))

    return optax.GradientTransformation(init, update)


def term_weights(config: CmiConfig, student: Any) -> dict[str, float]:
    """Weights of the terms of `network_terms` that are used, those above 0."""
    weights = {
        "statistics": config.statistics_weight,
        "cross_entropy": config.cross_entropy_weight,
        "adversarial": 0.0 if student is None else config.adversarial_weight,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


def network_terms(
    views: jax.Array,
    features: jax.Array,
    moments: dict[str, Any],
    labels: jax.Array,
    teacher: Network,
    student: Network | None,
    *,
    names: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """The terms `names` of what the teacher shows of normalised views f32[B, H, W, C].

    statistics: distance of its batch `moments` to the stored ones; cross_entropy: of i32[B]
    `labels`; adversarial: minus the divergence of the student where both name the same class
    (docs/methods/cmi.md, eqs. 5, 6).
    """
    logits = teacher.head(features)
    terms = {}
    if "statistics" in names:
        stored = teacher.variables.batch_stats
        terms["statistics"] = objectives.batch_norm_distance(teacher.model, moments, stored)
    if "cross_entropy" in names:
        terms["cross_entropy"] = objectives.class_cross_entropy(logits, labels)
    if "adversarial" in names:
        seen = forward(student.model, student.variables, views)
        student_logits = student.head(seen.features)
        terms["adversarial"] = -objectives.agreed_divergence(logits, student_logits)
    return terms


def to_normalised(pixels: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """From f32[B, H, W, C] in [0, 1] to normalised units; `mean` and `std` are f32[C]."""
    return (pixels - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
