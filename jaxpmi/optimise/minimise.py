"""The one inner loop of inversion: Adam on the input, weight boosting, best or last iterate.

Per-layer inversion, full-model refinement and inversion from noise all minimise a weighted sum of
named terms over an array; they differ in the terms only.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.types import PRNGKey

TermsFn = Callable[[jax.Array, PRNGKey], dict[str, jax.Array]]


class Solution(NamedTuple):
    """What a descent ends with, of `minimise` and of every method made of it.

    Attributes:
      x: the best iterate, or the last.
      loss: f32[], its loss (unboosted weights).
      losses: f32[S], loss before every step, that of step 0 being the start's.
      terms: its unweighted terms.
      finite: bool[], False if any loss was NaN or infinite.
    """

    x: jax.Array
    loss: jax.Array
    losses: jax.Array
    terms: dict[str, jax.Array]
    finite: jax.Array


class _Carry(NamedTuple):
    x: jax.Array
    opt_state: optax.OptState
    boost: dict[str, jax.Array]  # factor on each term's weight, 1 at the start
    first: dict[str, jax.Array]  # each term at step 0
    best_x: jax.Array
    best_loss: jax.Array
    best_terms: dict[str, jax.Array]
    finite: jax.Array


def minimise(
    terms_fn: TermsFn,
    x: jax.Array,
    key: PRNGKey,
    *,
    weights: Mapping[str, jax.Array | float],
    learning_rates: jax.Array,
    max_boost: Mapping[str, float] | None = None,
    project: Callable[[jax.Array], jax.Array] | None = None,
    iterate: Literal["best", "last"] = "best",
    betas: tuple[float, float] = (0.9, 0.999),
) -> Solution:
    """Minimises `sum_k weights[k] * terms_fn(x, key)[k]` over x with Adam.

    Args:
      terms_fn: maps x and a step key to a dict of scalars; its keys are those of `weights`.
      x: the start, f32[B, ...].
      key: folded with the step number for random terms.
      weights: base weight per term; may be traced.
      learning_rates: f32[S], one per step; their number is the number of steps.
      max_boost: per term, how far its weight may grow. After a step at which a term exceeds its
        value at step 0 its weight doubles, up to this factor; weights never fall again
        (docs/methods/pmi.md, eq. 3). None: no boosting. Terms not named are not boosted.
      project: applied after every update, e.g. clipping to valid pixels.
      iterate: which to return, the "best" of those before a step by unboosted loss, or the "last",
        after all steps (as published for CLIP), for which the terms are evaluated once more.
      betas: decay of Adam's two moments.

    Returns:
      The iterate with its own unboosted loss and terms (the published code is off by one).
    """
    weights = {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}
    max_boost = dict(max_boost or {})
    tx = optax.scale_by_adam(*betas)
    zero = jnp.zeros((), jnp.float32)

    def objective(x, key, boost):
        terms = terms_fn(x, key)
        return sum(weights[k] * boost[k] * terms[k] for k in weights), terms

    def step(carry: _Carry, inputs):
        index, learning_rate = inputs
        grad_fn = jax.grad(objective, has_aux=True)
        grads, terms = grad_fn(carry.x, jax.random.fold_in(key, index), carry.boost)
        loss = sum(weights[k] * terms[k] for k in weights)
        better = loss < carry.best_loss
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        first = {k: jnp.where(index == 0, terms[k], carry.first[k]) for k in terms}
        boost = dict(carry.boost)
        for name, limit in max_boost.items():
            grown = jnp.minimum(2.0 * boost[name], limit)
            boost[name] = jnp.where(terms[name] > first[name], grown, boost[name])
        updates, opt_state = tx.update(grads, carry.opt_state)
        x = carry.x - learning_rate * updates
        new = _Carry(
            x=x if project is None else project(x),
            opt_state=opt_state,
            boost=boost,
            first=first,
            best_x=keep(carry.x, carry.best_x),
            best_loss=keep(loss, carry.best_loss),
            best_terms=jax.tree.map(keep, terms, carry.best_terms),
            finite=carry.finite & jnp.isfinite(loss),
        )
        return new, loss

    zeros = dict.fromkeys(weights, zero)
    carry = _Carry(
        x=x,
        opt_state=tx.init(x),
        boost=dict.fromkeys(weights, zero + 1.0),
        first=zeros,
        best_x=x,
        best_loss=zero + jnp.inf,
        best_terms=zeros,
        finite=jnp.asarray(True),
    )
    steps = jnp.arange(learning_rates.shape[0])
    carry, losses = jax.lax.scan(step, carry, (steps, learning_rates))
    if iterate == "best":
        return Solution(carry.best_x, carry.best_loss, losses, carry.best_terms, carry.finite)
    terms = terms_fn(carry.x, jax.random.fold_in(key, learning_rates.shape[0]))
    loss = sum(weights[k] * terms[k] for k in weights)
    return Solution(carry.x, loss, losses, terms, carry.finite & jnp.isfinite(loss))
