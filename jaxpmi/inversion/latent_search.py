"""Search for images among the outputs of a generator: what CMI and FastDFKD share.

Adam moves latents and the generator's weights together for a few steps. The images that count are
those of the least loss, and what else was seen of them is kept beside them.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.config import CmiConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.models.blockwise import forward
from jaxpmi.network import Network
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

Parts = dict[str, Params]  # what is optimised, by name: each part has an Adam of its own
TermsFn = Callable[[Parts, PRNGKey], tuple[dict[str, jax.Array], Any]]


class Found(NamedTuple):
    """What `search` returns."""

    parts: Parts  # after the last step
    opt_states: dict[str, optax.OptState]
    grads: Parts  # summed over the steps
    best: Any  # what was seen at the least loss
    last: Any  # what was seen at the last step
    loss: jax.Array  # f32[], the least
    losses: jax.Array  # f32[S], before every step
    terms: dict[str, jax.Array]  # unweighted, at the least loss
    finite: jax.Array  # bool[], False if any loss was NaN or infinite


class _Carry(NamedTuple):
    parts: Parts
    opt_states: dict[str, optax.OptState]
    grads: Parts
    best: tuple[Any, dict[str, jax.Array]]
    last: Any
    loss: jax.Array


def optimisers(config: CmiConfig, variant: CmiVariant) -> dict[str, optax.GradientTransformation]:
    """Adam for the generator, its latents and the projection head, which alone is never reset."""
    latent_rate = variant.latent_rate_factor * config.learning_rate
    return {
        "generator": optax.adam(config.learning_rate, b1=0.5),
        "latents": optax.adam(latent_rate, b1=0.5),
        "projection": optax.adam(config.learning_rate),
    }


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


def search(
    terms_fn: TermsFn,
    parts: Parts,
    opt_states: dict[str, optax.OptState],
    key: PRNGKey,
    *,
    optimisers: Mapping[str, optax.GradientTransformation],
    weights: Mapping[str, jax.Array | float],
    num_steps: int,
) -> Found:
    """Minimises `sum_k weights[k] * terms[k]` over all parts for `num_steps` steps.

    Args:
      terms_fn: maps parts and a step key to the terms, a dict of scalars with the keys of
        `weights`, and to what else is worth keeping: any pytree, such as the images.
      parts: the start.
      opt_states: of the optimisers, one per part.
      key: folded with the step number.
      optimisers: one per part.
      weights: per term; may be traced.
      num_steps: S.
    """

    def objective(parts, key):
        terms, seen = terms_fn(parts, key)
        return sum(weights[name] * terms[name] for name in weights), (terms, seen)

    def step(carry: _Carry, index):
        grad_fn = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, seen)), grads = grad_fn(carry.parts, jax.random.fold_in(key, index))
        seen, better = jax.lax.stop_gradient(seen), loss < carry.loss
        keep = functools.partial(jnp.where, better)
        parts, opt_states = {}, {}
        for name, tx in optimisers.items():
            updates, opt_states[name] = tx.update(grads[name], carry.opt_states[name])
            parts[name] = optax.apply_updates(carry.parts[name], updates)
        new = _Carry(
            parts=parts,
            opt_states=opt_states,
            grads=jax.tree.map(jnp.add, carry.grads, grads),
            best=jax.tree.map(keep, (seen, terms), carry.best),
            last=seen,
            loss=jnp.where(better, loss, carry.loss),
        )
        return new, loss

    def zeros(tree):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

    terms, seen = jax.eval_shape(terms_fn, parts, key)
    start = _Carry(
        parts, opt_states, zeros(parts), zeros((seen, terms)), zeros(seen), jnp.asarray(jnp.inf)
    )
    end, losses = jax.lax.scan(step, start, jnp.arange(num_steps))
    best, terms = end.best
    return Found(
        parts=end.parts,
        opt_states=end.opt_states,
        grads=end.grads,
        best=best,
        last=end.last,
        loss=end.loss,
        losses=losses,
        terms=terms,
        finite=jnp.isfinite(losses).all(),
    )
