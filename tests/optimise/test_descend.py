"""The loop of gradient steps against steps written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpmi.optimise.descend import Best
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.optimise.descend import keep_best

RATES = jnp.asarray([0.1, 0.2, 0.3, 0.4])
GOALS = np.asarray([1.0, -2.0, 3.0, 0.5], np.float32)


def chase(**options):
    """Halves of squares of the distance to a goal that every step has of its own."""

    def loss_fn(x, total, step):
        loss = jnp.square(x - jnp.asarray(GOALS)[step]).sum() / 2
        return loss, (total + loss, {"at": x, "step": step})

    start = Descent(jnp.zeros(2), optax.identity().init(None), jnp.zeros(()))
    return jax.jit(
        lambda options: descend(
            loss_fn, start, tx=optax.identity(), learning_rates=RATES, **options
        )
    )(options)


def written_out(num_steps, scale=1.0):
    x, total, visited = np.zeros(2), 0.0, []
    for rate, goal in zip(RATES[:num_steps], GOALS[:num_steps], strict=True):
        visited.append(x)
        total += np.square(x - goal).sum() / 2
        x = x - rate * scale * (x - goal)
    return x, total, visited


def test_steps_change_params_and_state_and_what_they_show_is_stacked():
    end, shown = chase()
    x, total, visited = written_out(4)
    np.testing.assert_allclose(end.params, x, rtol=1e-5)
    np.testing.assert_allclose(end.state, total, rtol=1e-5)
    np.testing.assert_allclose(shown["at"], visited, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shown["step"], range(4))


@pytest.mark.parametrize("num_steps", [0, 3, 4])
def test_the_number_of_steps_may_be_data(num_steps):
    end, shown = chase(num_steps=jnp.asarray(num_steps))
    x, total, _ = written_out(num_steps)
    np.testing.assert_allclose(end.params, x, rtol=1e-5)
    np.testing.assert_allclose(end.state, total, rtol=1e-5)
    assert shown is None


def test_rates_have_factors_by_part_or_row():
    end, _ = chase(scales=jnp.asarray([1.0, 0.0]))
    np.testing.assert_allclose(end.params, [written_out(4)[0][0], 0.0], rtol=1e-5)


def test_the_transformation_sees_the_params_and_updates_are_projected():
    """Nothing but decay, to a floor."""
    start = {"a": jnp.asarray([1.0, 8.0])}
    tx = optax.add_decayed_weights(1.0)
    end, _ = descend(
        lambda x, state, step: (0.0 * x["a"].sum(), (state, None)),
        Descent(start, tx.init(start), ()),
        tx=tx,
        learning_rates=jnp.full(2, 0.5),
        project=lambda x: jax.tree.map(lambda part: jnp.maximum(part, 0.75), x),
    )
    np.testing.assert_allclose(end.params["a"], [0.75, 2.0])


def test_one_step_by_the_gradient_of_many_lanes_is_that_of_each():
    """Lanes may have different numbers of steps."""
    run = lambda num_steps: chase(num_steps=num_steps)[0].params  # noqa: E731
    got = jax.vmap(run)(jnp.asarray([0, 2, 4]))
    np.testing.assert_allclose(got, [written_out(n)[0] for n in (0, 2, 4)], rtol=1e-5, atol=1e-6)


def test_the_best_is_the_first_of_the_least_and_never_what_is_not_finite():
    best = Best(jnp.asarray(jnp.inf), jnp.asarray(-1.0))
    for number, loss in enumerate((jnp.nan, jnp.inf, 2.0, 1.0, 1.0, jnp.nan, 3.0)):
        best = keep_best(best, jnp.asarray(loss), jnp.asarray(float(number)))
    assert best == Best(1.0, 3.0)
