"""The one solver of inversion: named terms, weight boosting, best or last iterate.

Per-layer inversion, full-model refinement, inversion from noise and the searches with a generator
all minimise a weighted sum of named terms; they differ in the terms, and in what these look at.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpmi.optimise.descend import Best
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.optimise.descend import keep_best
from jaxpmi.types import PRNGKey

ADAM = optax.scale_by_adam()


class Solution(NamedTuple):
    """What a descent ends with, of `minimise` and of every method made of it.

    Attributes:
      x: the best iterate, or the last; with `has_aux` what the terms showed of it.
      loss: f32[], its loss (unboosted weights).
      losses: f32[S], loss before every step, that of step 0 being the start's.
      terms: its unweighted terms.
      finite: bool[], False if any loss was NaN or infinite.
    """

    x: Any
    loss: jax.Array
    losses: jax.Array
    terms: dict[str, jax.Array]
    finite: jax.Array


class Ending(NamedTuple):
    """Where the steps of `minimise` ended, for what goes on from there.

    Attributes:
      x: after the last step.
      opt_state: the optimiser's.
      shown: what the terms showed at the last step, of x before it.
    """

    x: Any
    opt_state: optax.OptState
    shown: Any


class _State(NamedTuple):
    boost: dict[str, jax.Array]  # factor on each term's weight, 1 at the start
    first: dict[str, jax.Array]  # each term at step 0
    best: Best  # of what is shown, and terms
    last: Any  # what is shown


def minimise(
    terms_fn: Callable[[Any, PRNGKey], Any],
    x: Any,
    key: PRNGKey,
    *,
    weights: Mapping[str, jax.Array | float],
    learning_rates: jax.Array,
    scales: Any = 1.0,
    max_boost: Mapping[str, float] | None = None,
    project: Callable[[Any], Any] | None = None,
    iterate: Literal["best", "last"] = "best",
    tx: optax.GradientTransformation = ADAM,
    opt_state: optax.OptState | None = None,
    has_aux: bool = False,
) -> Any:
    """Minimises `sum_k weights[k] * terms_fn(x, key)[k]` over x.

    Args:
      terms_fn: maps x and a step key to a dict of scalars; its keys are those of `weights`.
      x: the start, an array or any pytree of them.
      key: folded with the step number for random terms.
      weights: base weight per term; may be traced.
      learning_rates: f32[S], one per step; their number is the number of steps.
      scales: factors on them, per part of x: a tree prefix of it.
      max_boost: per term, how far its weight may grow. After a step at which a term exceeds its
        value at step 0 its weight doubles, up to this factor; weights never fall again
        (docs/methods/pmi.md, eq. 3). None: no boosting. Terms not named are not boosted.
      project: applied after every update, e.g. clipping to valid pixels.
      iterate: which to return, the "best" of those before a step by unboosted loss, or the "last",
        after all steps (as published for CLIP), for which the terms are evaluated once more.
      tx: the direction of a step, Adam's.
      opt_state: of `tx`; None: a fresh one.
      has_aux: `terms_fn` returns the terms and what else it shows, any pytree such as images that
        a generator x makes. This is then kept of the best iterate instead of x itself.

    Returns:
      The `Solution`: the iterate with its own unboosted loss and terms (the published code is off
      by one). With `has_aux` also the `Ending`.
    """
    weights = {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}

    def show(x, key):
        terms, shown = terms_fn(x, key) if has_aux else (terms_fn(x, key), x)
        # Where a user has JAX compute in 64 bits, terms of x in 32 may have more.
        return {name: jnp.asarray(term, jnp.float32) for name, term in terms.items()}, shown

    def total(terms):
        return sum(weights[k] * terms[k] for k in weights)

    def loss_fn(x, state: _State, index):
        terms, shown = show(x, jax.random.fold_in(key, index))
        loss = total(terms)
        first = {k: jnp.where(index == 0, terms[k], state.first[k]) for k in terms}
        boost = dict(state.boost)
        for name, limit in (max_boost or {}).items():
            grown = jnp.minimum(2.0 * boost[name], limit)
            boost[name] = jnp.where(terms[name] > first[name], grown, boost[name])
        new = _State(
            boost=boost,
            first=first,
            best=keep_best(state.best, loss, (shown, terms)),
            last=shown if has_aux else (),
        )
        boosted = sum(weights[k] * state.boost[k] * terms[k] for k in weights)
        return boosted, (new, loss)

    one = jnp.ones((), jnp.float32)
    zeros = dict.fromkeys(weights, 0.0 * one)
    shown = x
    if has_aux:
        shown = jax.tree.map(jnp.zeros_like, jax.eval_shape(terms_fn, x, key)[1])
    state = _State(
        boost=dict.fromkeys(weights, one),
        first=zeros,
        best=Best(jnp.inf * one, (shown, zeros)),
        last=shown if has_aux else (),
    )
    start = Descent(x, tx.init(x) if opt_state is None else opt_state, state)
    end, losses = descend(
        loss_fn, start, tx=tx, learning_rates=learning_rates, scales=scales, project=project
    )
    (loss, (shown, terms)), finite = end.state.best, jnp.isfinite(losses).all()
    if iterate == "last":
        terms, shown = show(end.params, jax.random.fold_in(key, learning_rates.shape[0]))
        loss = total(terms)
        finite &= jnp.isfinite(loss)
    solution = Solution(shown, loss, losses, terms, finite)
    if has_aux:
        return solution, Ending(end.params, end.opt_state, end.state.last)
    return solution
