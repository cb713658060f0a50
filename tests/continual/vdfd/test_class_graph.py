"""Precisions from the class graph, and what is charged for drifts (docs/methods/vdfd.md)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.config import VdfdConfig
from jaxpmi.continual.vdfd import class_graph as cg
from jaxpmi.continual.vdfd import drift_penalty as penalty
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.runs.machine import enable_x64

CLASSES, FEATURES, EPSILON = 4, 6, 1e-3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def graph(seed=0, hidden=5, output=7, features=FEATURES):
    return cg.init_class_graph(jax.random.key(seed), features, hidden, output)


def nodes(seed=0, classes=CLASSES):
    head = jnp.asarray(normal(seed, FEATURES, classes))
    return cg.class_nodes(head, jnp.arange(classes), jnp.ones(classes))


def precision(graph, nodes, mask=None, **options):
    mask = jnp.ones(len(nodes)) if mask is None else mask
    return cg.class_precision(graph, nodes, mask, epsilon=EPSILON, **options)


def records(num_tasks, num_old, masks=None):
    """Records of which only what the penalty reads is there."""
    masks = np.ones((num_tasks, CLASSES)) if masks is None else np.asarray(masks, float)
    masks = jnp.asarray(masks * (np.arange(num_tasks) < num_old)[:, None])
    classes = np.arange(num_tasks * CLASSES, dtype=np.int32).reshape(num_tasks, CLASSES)
    return GradientRecords({}, (), (), (), jnp.asarray(classes), masks)


def fixed_graph(hidden=5, output=7):
    """The same in any precision, unlike what is drawn."""
    shapes = {"hidden": (FEATURES, hidden), "output": (hidden, output)}
    return {
        name: {"weight": jnp.asarray(normal(1, *shape)), "bias": jnp.asarray(normal(2, shape[1]))}
        for name, shape in shapes.items()
    }


def learned(num_old, drifts, num_tasks=3, masks=None, dims=(5, 7), **settings):
    """Both parts of the penalty, and the precisions, with `num_old` old tasks."""
    settings = VdfdConfig(**settings)
    kept = records(num_tasks, num_old, masks)
    head = jnp.asarray(normal(7, FEATURES, num_tasks * CLASSES))
    precisions = penalty.class_precisions(fixed_graph(*dims), head, kept, settings)
    return *penalty.learned_penalty(drifts, precisions, kept, settings), precisions


def drifts_of(num_old, num_tasks=3):
    return jnp.asarray(normal(5, num_tasks, CLASSES) * (np.arange(num_tasks) < num_old)[:, None])


# The precision matrix (docs/methods/vdfd.md, eqs. 7 to 9).


@pytest.mark.parametrize("residual", [False, True])
def test_precision_is_what_the_formulas_say(float64, residual):
    """Written out with loops over nodes."""
    params, x = graph(output=FEATURES), np.asarray(nodes())
    edges = np.asarray([[a @ b + (i == j) for j, b in enumerate(x)] for i, a in enumerate(x)])
    degree = edges.sum(1)
    assert (degree > 0).all()
    edges = np.asarray(
        [[e / np.sqrt(degree[i] * degree[j]) for j, e in enumerate(r)] for i, r in enumerate(edges)]
    )
    layers = [[np.asarray(params[n][p]) for p in ("weight", "bias")] for n in ("hidden", "output")]
    hidden = np.maximum(edges @ x @ layers[0][0] + layers[0][1], 0.0)
    z = edges @ hidden @ layers[1][0] + layers[1][1] + (x if residual else 0.0)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = u @ u.T + EPSILON * np.eye(CLASSES)
    got = precision(params, jnp.asarray(x), residual=residual)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_precision_is_symmetric_positive_and_bounded(float64):
    for seed in range(5):
        got = precision(graph(seed), nodes(seed))
        np.testing.assert_allclose(got, got.T, atol=1e-15)
        np.testing.assert_allclose(jnp.diagonal(got), 1 + EPSILON, rtol=1e-12)
        assert np.linalg.eigvalsh(got).min() >= EPSILON * (1 - 1e-9)
        value = cg.log_determinant(got)
        np.testing.assert_allclose(value, np.linalg.slogdet(got)[1], rtol=1e-10)
        low = (CLASSES - 1) * np.log(EPSILON) + np.log(CLASSES + EPSILON)
        assert low <= value <= CLASSES * np.log1p(EPSILON)


def test_precision_follows_the_order_of_the_classes(float64):
    order = np.asarray([2, 0, 3, 1])
    plain, permuted = precision(graph(), nodes()), precision(graph(), nodes()[order])
    np.testing.assert_allclose(permuted, plain[order][:, order], rtol=1e-12)
    d = normal(1, CLASSES)
    np.testing.assert_allclose(d[order] @ permuted @ d[order], d @ plain @ d, rtol=1e-12)


def test_nodes_of_degree_zero_or_less_are_cut_off(float64):
    """Two opposite classes have degree 1 + 1 - 1 = 1; three at 120 degrees and a pull less."""
    angles = np.asarray([0.0, np.pi, np.pi, np.pi])
    opposite = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1))
    degrees = (opposite @ opposite.T + np.eye(4)).sum(1)
    assert degrees[0] < 0
    exact = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert (exact @ exact.T + np.eye(3)).sum(1)[0] == 0
    params = graph(features=2)
    for x in (opposite, exact):
        loss = lambda g, x=x: cg.log_determinant(precision(g, x)).sum()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_float32_has_a_log_determinant_where_the_determinant_underflows():
    singular = jnp.ones((20, 20)) + EPSILON * jnp.eye(20)
    assert jnp.linalg.det(singular) < 1e-37
    want = 19 * np.log(EPSILON) + np.log(20 + EPSILON)
    np.testing.assert_allclose(cg.log_determinant(singular), want, rtol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_padded_classes_change_nothing(float64, residual):
    head = jnp.asarray(normal(0, FEATURES, CLASSES))
    mask = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    padded = cg.class_nodes(head, jnp.asarray([0, 1, 2, 0]), mask)
    got = precision(graph(output=FEATURES), padded, mask, residual=residual)
    small = cg.class_nodes(head, jnp.arange(3), jnp.ones(3))
    want = precision(graph(output=FEATURES), small, residual=residual)
    np.testing.assert_allclose(got[:3, :3], want, rtol=1e-12)
    np.testing.assert_array_equal(got[3], [0, 0, 0, 1])
    np.testing.assert_allclose(cg.log_determinant(got), cg.log_determinant(want), rtol=1e-12)


# Sizes and training.


@pytest.mark.parametrize(
    ("features", "kind", "count"),
    [(512, "task_given", 18_528), (512, "all_classes", 525_312)],
)
def test_published_sizes(features, kind, count):
    make = functools.partial(
        penalty.fresh_class_graph, feature_dim=features, config=VdfdConfig(variant=kind)
    )
    shapes = jax.eval_shape(make, jax.random.key(0))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


def test_initial_weights_are_uniform_within_the_fan_in():
    params = graph(features=400, hidden=300)
    for name, bound in (("hidden", 0.05), ("output", 300**-0.5)):
        for leaf in jax.tree.leaves(params[name]):
            assert np.abs(leaf).max() <= bound
        np.testing.assert_allclose(params[name]["weight"].std(), bound / 3**0.5, rtol=0.05)


def test_without_drift_training_the_graph_makes_the_precision_the_identity():
    """Down to the floor -C ln(1 + epsilon)."""
    import optax

    tx, params, x = optax.adam(1e-2), graph(hidden=16, output=16), nodes()

    def loss(params):
        return -cg.log_determinant(precision(params, x))

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 600, step, (params, tx.init(params)))[0]

    floor = -CLASSES * np.log1p(EPSILON)
    assert loss(params) > 1.0
    trained = train(params)
    assert floor - 1e-4 <= loss(trained) < floor + 0.02
    np.testing.assert_allclose(precision(trained, x), np.eye(CLASSES) * (1 + EPSILON), atol=0.1)


def test_the_graph_can_hide_a_drift():
    """It may make a large drift cheap: what `squared_drift` is monitored for."""
    drift = jnp.asarray([[100.0, -100.0, 100.0, -100.0]])
    alike = jnp.ones((1, CLASSES, CLASSES)) + EPSILON * jnp.eye(CLASSES)[None]
    kept = records(1, 1)
    quadratic, log_determinant = penalty.learned_penalty(drift, alike, kept, VdfdConfig())
    assert quadratic + log_determinant < 100 < penalty.squared_drift(drift) == 40_000


# The penalty (items 4 and 11).


@pytest.mark.parametrize("num_old", [0, 1, 2, 3])
def test_penalty_is_the_sum_over_old_tasks(float64, num_old):
    drifts = drifts_of(num_old)
    quadratic, log_determinant, precisions = learned(num_old, drifts)
    singles = [d @ s @ d for d, s in zip(drifts[:num_old], precisions[:num_old], strict=True)]
    np.testing.assert_allclose(quadratic, sum(singles), rtol=1e-10)
    want = -sum(np.linalg.slogdet(s)[1] for s in precisions[:num_old])
    np.testing.assert_allclose(log_determinant, want, rtol=1e-10)
    for rest in precisions[num_old:]:
        np.testing.assert_array_equal(rest, np.eye(CLASSES))


@pytest.mark.parametrize("num_old", [0, 1, 2, 3])
def test_published_sum_has_the_last_old_task_alone(float64, num_old):
    """(number of old tasks)^2 d^T P d - log det(P + epsilon I)."""
    drifts = drifts_of(num_old)
    quadratic, log_determinant, precisions = learned(
        num_old, drifts, variant="published_all_classes", dims=(FEATURES, FEATURES)
    )
    if num_old == 0:
        assert quadratic == log_determinant == 0
        return
    d, s = drifts[num_old - 1], precisions[num_old - 1]
    want = num_old**2 * d @ (s - EPSILON * np.eye(CLASSES)) @ d
    np.testing.assert_allclose(quadratic, want, rtol=1e-10)
    np.testing.assert_allclose(log_determinant, -np.linalg.slogdet(s)[1], rtol=1e-10)


def test_published_quadratic_form_lacks_epsilon(float64):
    drifts = drifts_of(2)
    plain, published = (
        learned(2, drifts, variant=name)[0] for name in ("task_given", "published_task_given")
    )
    np.testing.assert_allclose(plain - published, EPSILON * jnp.square(drifts).sum(), rtol=1e-8)


def test_unequal_tasks_are_padded(float64):
    masks = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    drifts = drifts_of(3) * masks
    quadratic, log_determinant, precisions = learned(3, drifts, masks=masks)
    parts = [(d[:n], s[:n, :n]) for d, s, n in zip(drifts, precisions, (4, 2, 3), strict=True)]
    np.testing.assert_allclose(quadratic, sum(d @ s @ d for d, s in parts), rtol=1e-10)
    want = -sum(np.linalg.slogdet(s)[1] for _, s in parts)
    np.testing.assert_allclose(log_determinant, want, rtol=1e-10)


def test_production_path_agrees_with_float64():
    with enable_x64(True):
        want = learned(2, drifts_of(2))[:2]
    got = learned(2, jnp.asarray(drifts_of(2), jnp.float32))[:2]
    np.testing.assert_allclose(got, want, rtol=1e-4)
