"""The inner loop against the same loop written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpmi.inversion.per_layer import MAX_INPUT_BOOST
from jaxpmi.optimise.minimise import minimise

START = np.asarray([[2.0, -1.0], [0.5, 3.0]], np.float32)
WEIGHTS = {"bowl": 1.0, "wall": 3.0, "tilt": 0.5}
KEY = jax.random.key(0)


def terms(x, key=None):
    """Terms that fight each other, so that some grow beyond their first value."""
    del key
    return {
        "bowl": jnp.square(x).mean(),
        "wall": jnp.square(x - 3.0).mean(),
        "tilt": jnp.square(x[0] - x[1]).sum(),
    }


def written_out(x, rates, weights, max_boost=None, project=None):
    """Iterates, unboosted losses and boost factors of every step, in float64."""
    gradients = lambda x: {  # noqa: E731
        "bowl": 2 * x / x.size,
        "wall": 2 * (x - 3.0) / x.size,
        "tilt": 2 * np.stack([x[0] - x[1], x[1] - x[0]]),
    }
    values = lambda x: {k: float(v) for k, v in terms(x).items()}  # noqa: E731
    x, boost = x.astype(np.float64), dict.fromkeys(weights, 1.0)
    first, m, v, iterates, losses, boosts = values(x), 0.0, 0.0, [], [], []
    for i, rate in enumerate(rates):
        now = values(x)
        iterates.append(x)
        losses.append(sum(weights[k] * now[k] for k in weights))
        boosts.append(dict(boost))
        grad = sum(weights[k] * boost[k] * g for k, g in gradients(x).items())
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        step = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
        x = x - rate * step
        x = x if project is None else project(x)
        for k, limit in (max_boost or {}).items():
            if now[k] > first[k]:
                boost[k] = min(2 * boost[k], limit)
    return np.asarray(iterates), np.asarray(losses), boosts


LIMITS = {"bowl": 10.0, "wall": 10.0, "tilt": 5.0}


@pytest.mark.parametrize("max_boost", [None, LIMITS, {"bowl": 3.0}])
def test_every_loss_is_that_of_adam_written_out(max_boost):
    # The late jump makes things worse, so that the best iterate is neither first nor last.
    rates = np.asarray([0.3] * 22 + [2.0] * 8, np.float32)
    solution = minimise(
        terms, START, KEY, weights=WEIGHTS, learning_rates=jnp.asarray(rates), max_boost=max_boost
    )
    iterates, losses, boosts = written_out(START, rates, WEIGHTS, max_boost)
    np.testing.assert_allclose(solution.losses, losses, rtol=1e-3)
    best = int(np.argmin(losses))
    assert 0 < best < 29
    np.testing.assert_allclose(solution.x, iterates[best], rtol=1e-3, atol=1e-3)
    if max_boost:
        assert max(b["bowl"] for b in boosts) == max_boost["bowl"], "the limit was reached"
        for other in (None, dict.fromkeys(WEIGHTS, 1e3)):  # and it matters
            wrong = written_out(START, rates, WEIGHTS, other)[1]
            assert np.abs(np.asarray(solution.losses) / wrong - 1.0).max() > 0.01


@pytest.mark.parametrize("rate", [0.1, 1.5])
def test_loss_at_the_returned_iterate_is_the_recorded_best(rate):
    solution = minimise(
        terms, START, KEY, weights=WEIGHTS, learning_rates=jnp.full(40, rate), max_boost=LIMITS
    )
    again = terms(solution.x)
    np.testing.assert_allclose(sum(WEIGHTS[k] * again[k] for k in again), solution.loss, rtol=1e-6)
    for name, value in solution.terms.items():
        np.testing.assert_allclose(value, again[name], rtol=1e-6)
    np.testing.assert_array_equal(solution.loss, solution.losses.min())
    first = terms(START)
    np.testing.assert_allclose(
        solution.losses[0], sum(WEIGHTS[k] * first[k] for k in first), rtol=1e-6
    )
    assert bool(solution.finite)


@pytest.mark.parametrize("max_boost", [None, LIMITS])
def test_the_last_iterate_comes_with_its_own_loss(max_boost):
    """It lies after the last update, so its loss is none of those before the steps."""
    rates = np.asarray([0.3] * 22 + [2.0] * 8, np.float32)  # worse at the end than in the middle
    solve = lambda **options: minimise(  # noqa: E731
        terms, START, KEY, weights=WEIGHTS, learning_rates=rates, max_boost=max_boost, **options
    )
    last, best = solve(iterate="last"), solve()
    want = written_out(START, [*rates, 0.0], WEIGHTS, max_boost)[0][-1]
    np.testing.assert_allclose(last.x, want, rtol=1e-3, atol=1e-3)
    again = terms(last.x)
    np.testing.assert_allclose(sum(WEIGHTS[k] * again[k] for k in again), last.loss, rtol=1e-6)
    for name, value in last.terms.items():
        np.testing.assert_allclose(value, again[name], rtol=1e-6)
    np.testing.assert_array_equal(last.losses, best.losses)
    assert last.loss > 1.1 * best.loss and bool(last.finite)


def test_a_last_iterate_that_is_not_finite_is_told():
    solution = minimise(
        lambda x, key: {"bowl": jnp.where(x.min() < 1.8, jnp.nan, jnp.square(x).mean())},
        jnp.full((1, 2), 2.0),
        KEY,
        weights={"bowl": 1.0},
        learning_rates=jnp.full(2, 0.15),
        iterate="last",
    )
    assert np.isfinite(solution.losses).all() and not bool(solution.finite)


def test_random_terms_of_the_last_iterate_have_a_key_of_their_own():
    noisy = lambda x, key: {"noise": jax.random.normal(key) + 0.0 * x.sum()}  # noqa: E731
    solution = minimise(
        noisy, START, KEY, weights={"noise": 1.0}, learning_rates=jnp.ones(3), iterate="last"
    )
    np.testing.assert_allclose(solution.loss, jax.random.normal(jax.random.fold_in(KEY, 3)))


def test_the_best_iterate_is_the_one_before_the_update():
    """The published code stores the iterate after the step whose loss it is."""
    solution = minimise(
        lambda x, key: {"bowl": jnp.square(x).sum()},
        jnp.full((1, 1), 0.01),
        KEY,
        weights={"bowl": 1.0},
        learning_rates=jnp.full(3, 5.0),  # the start is best, every step overshoots
    )
    np.testing.assert_allclose(solution.x, 0.01, rtol=1e-6)
    assert solution.losses[1] > 1.0


def test_published_limits_of_boosting():
    assert MAX_INPUT_BOOST == {
        "feature_match": 10.0,
        "cross_entropy": 10.0,
        "statistics": 10.0,
        "input_statistics": 5.0,
    }


def test_weights_may_be_traced_and_scale_the_loss():
    def solve(weight):
        return minimise(
            terms,
            START,
            KEY,
            weights={"bowl": weight, "wall": 0.0, "tilt": 0.0},
            learning_rates=jnp.full(20, 0.3),
        )

    solutions = jax.jit(jax.vmap(solve))(jnp.asarray([1.0, 8.0]))
    # Adam does not see the scale of a loss, its value does.
    np.testing.assert_allclose(8.0 * solutions.losses[0], solutions.losses[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(solutions.x[0], solutions.x[1], atol=1e-3)


def test_iterates_are_projected():
    low, high = 0.5, 1.5
    solution = minimise(
        terms,
        START,
        KEY,
        weights=WEIGHTS,
        learning_rates=jnp.full(30, 0.3),
        project=lambda x: jnp.clip(x, low, high),
    )
    rates = np.full(30, 0.3)
    clip = lambda x: np.clip(x, low, high)  # noqa: E731
    iterates, losses, _ = written_out(START, rates, WEIGHTS, project=clip)
    np.testing.assert_allclose(solution.losses, losses, rtol=1e-3)
    assert solution.x.min() >= low and solution.x.max() <= high
    assert (np.asarray(iterates[1:]) == high).any(), "the border was reached"


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_is_told_and_never_kept(value):
    def broken(x, key):
        del key
        return {"bowl": jnp.where(x.min() < 1.8, value, jnp.square(x).mean())}

    solution = minimise(
        broken,
        jnp.full((1, 2), 2.0),
        KEY,
        weights={"bowl": 1.0},
        learning_rates=jnp.full(10, 0.15),
    )
    assert not bool(solution.finite)
    np.testing.assert_allclose(solution.x, 1.85, rtol=1e-4)  # the last finite iterate
    assert np.isfinite(solution.loss) and np.isfinite(solution.losses[1])
    assert not np.isfinite(solution.losses[2])


def test_a_step_key_is_that_of_its_number():
    """Random terms of step s do not depend on how many steps follow, nor on the devices."""
    noisy = lambda x, key: {"noise": jax.random.normal(key) + 0.0 * x.sum()}  # noqa: E731

    def run(steps):
        rates = jnp.ones(steps)
        return minimise(noisy, START, KEY, weights={"noise": 1.0}, learning_rates=rates).losses

    want = [jax.random.normal(jax.random.fold_in(KEY, i)) for i in range(6)]
    np.testing.assert_allclose(run(6), want, rtol=1e-6)
    np.testing.assert_allclose(run(4), want[:4], rtol=1e-6)


def there_and_back(**options):
    """Steps of 3 on 2 |x|, from 2 to -1 and back; x is shown under another name."""
    return minimise(
        lambda parts, key: ({"size": jnp.abs(parts["x"])}, {"seen": parts["x"]}),
        {"x": jnp.asarray(2.0)},
        KEY,
        weights={"size": 2.0},
        tx=optax.identity(),
        has_aux=True,
        **options,
    )


@pytest.mark.parametrize("num_steps", [1, 3])
def test_what_terms_show_is_kept_of_the_best_iterate_and_of_the_last_step(num_steps):
    solution, ending = there_and_back(learning_rates=jnp.full(num_steps, 1.5))
    visited = [2.0, -1.0, 2.0, -1.0]
    best = min(visited[:num_steps], key=abs)
    np.testing.assert_allclose(solution.losses, 2.0 * np.abs(visited[:num_steps]))
    assert solution.x == {"seen": best} and solution.loss == 2.0 * abs(best)
    assert solution.terms["size"] == abs(best)
    assert ending.shown == {"seen": visited[num_steps - 1]} and ending.x == {
        "x": visited[num_steps]
    }


def test_the_last_iterate_shows_itself():
    solution, ending = there_and_back(learning_rates=jnp.full(2, 1.5), iterate="last")
    assert solution.x == {"seen": 2.0} and ending.shown == {"seen": -1.0}
    assert solution.loss == 4.0 and solution.terms["size"] == 2.0


def test_parts_have_rates_of_their_own_and_an_optimiser_goes_on_where_it_was():
    """A run of 6 steps is one of 4 and then one of 2, the second from the first's optimiser."""
    tx = optax.trace(0.9)
    solve = lambda x, steps, opt_state=None: minimise(  # noqa: E731
        lambda x, key: ({"bowl": jnp.square(x["a"]).sum() + jnp.square(x["b"]).sum()}, ()),
        x,
        KEY,
        weights={"bowl": 1.0},
        learning_rates=jnp.full(steps, 0.01),
        scales={"a": 1.0, "b": 3.0},
        tx=tx,
        opt_state=opt_state,
        has_aux=True,
    )[1]
    start = {"a": jnp.ones(2), "b": jnp.ones(2)}
    whole, half = solve(start, 6), solve(start, 4)
    again = solve(half.x, 2, half.opt_state)
    for name, rate in (("a", 0.01), ("b", 0.03)):
        np.testing.assert_allclose(again.x[name], whole.x[name], rtol=1e-6)
        x, velocity = 1.0, 0.0
        for _ in range(6):
            velocity = 2.0 * x + 0.9 * velocity
            x -= rate * velocity
        np.testing.assert_allclose(whole.x[name], x, rtol=1e-5)
    forgot = solve(half.x, 2)
    assert np.abs(forgot.x["a"] - whole.x["a"]).max() > 1e-3
