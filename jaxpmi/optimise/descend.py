"""The one loop of gradient steps, of all that is trained, searched for or inverted.

A loss says what else a step changes, such as running moments, and what it shows; how a gradient
becomes the direction of a step is the business of an Optax transformation.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Maps params, state and the number of the step to the loss, the next state and what is shown.
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, tuple[Any, Any]]]


class Descent(NamedTuple):
    """What goes from step to step.

    Attributes:
      params: what the loss is differentiated by, any pytree.
      opt_state: of the transformation.
      state: what else the loss reads and changes, any pytree.
    """

    params: Any
    opt_state: optax.OptState
    state: Any


class Best(NamedTuple):
    """What there was at the least loss, f32[]; infinite before the first step."""

    loss: jax.Array
    kept: Any


def keep_best(best: Best, loss: jax.Array, kept: Any) -> Best:
    """`kept` at `loss` if that is less; never at a loss that is not finite."""
    return jax.tree.map(functools.partial(jnp.where, loss < best.loss), Best(loss, kept), best)


def descend(
    loss_fn: LossFn,
    start: Descent,
    *,
    tx: optax.GradientTransformation,
    learning_rates: jax.Array,
    scales: Any = 1.0,
    num_steps: jax.Array | None = None,
    project: Callable[[Any], Any] | None = None,
) -> tuple[Descent, Any]:
    """Takes steps against the gradient of a loss, each `rate * scale * direction` long.

    Args:
      loss_fn: maps params, state and the step's number i32[] to `loss, (state, shown)`. Batches and
        keys are its own: what it closes over, at that number.
      start: as it is before the first step.
      tx: makes directions of gradients, such as `optax.scale_by_adam()`.
      learning_rates: f32[S], one per step; their number is the number of steps.
      scales: factors on the learning rate, per part of `params`: a tree prefix of it.
      num_steps: i32[], as data: the first so many of the S steps are taken.
      project: applied to `params` after every update.

    Returns:
      As it is after the last step, and what every step showed, stacked; None with `num_steps`.
    """

    def step(descent, index, rate):
        params, opt_state, state = descent
        grads, (state, shown) = jax.grad(loss_fn, has_aux=True)(params, state, index)
        updates, opt_state = tx.update(grads, opt_state, params)
        move = lambda scale, p, u: p - rate * scale * u  # noqa: E731
        part = lambda scale, *trees: jax.tree.map(functools.partial(move, scale), *trees)  # noqa: E731
        params = jax.tree.map(part, scales, params, updates)
        return Descent(params if project is None else project(params), opt_state, state), shown

    if num_steps is None:
        steps = jnp.arange(learning_rates.shape[0]), learning_rates
        return jax.lax.scan(lambda descent, inputs: step(descent, *inputs), start, steps)
    rates = jnp.asarray(learning_rates)
    body = lambda index, descent: step(descent, index, rates[index])[0]  # noqa: E731
    return jax.lax.fori_loop(0, num_steps, body, start), None
