import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxpmi.features import projection
from jaxpmi.features.gaussian import ClassStats

NUM_CLASSES, DIM = 6, 8
CLOSE = {"rtol": 0, "atol": 2e-6}  # a few roundings of numbers about 1


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw_units(seed, *shape):
    return unit(np.random.default_rng(seed).normal(size=(*shape, DIM))).astype(np.float32)


def rotation_matrix(a, b):
    """The rotation by the angle between a and b, generated in float64 in their plane."""
    a, b = unit(a.astype(np.float64)), unit(b.astype(np.float64))
    across = unit(b - (a @ b) * a)
    angle = np.arctan2(across @ b, a @ b)
    return expm(angle * (np.outer(across, a) - np.outer(a, across)))


def class_gaussians(mean, *, std=0.0, count=None, full=False):
    """Gaussians of the same spread `std` in every direction."""
    count = np.ones(len(mean)) if count is None else count
    cov = np.broadcast_to(np.eye(DIM) if full else np.ones(DIM), (len(mean), *[DIM] * (1 + full)))
    return ClassStats(*(jnp.asarray(x, jnp.float32) for x in (count, mean, std**2 * cov)))


def problem(**kwargs):
    """Classes with means off their prototypes, these prototypes, and that of a new class."""
    lengths = np.linspace(1.0, 4.0, NUM_CLASSES)[:, None]
    stats = class_gaussians(lengths * draw_units(0, NUM_CLASSES), **kwargs)
    return stats, draw_units(1, NUM_CLASSES), draw_units(2)


def project(stats, prototypes, new, key=None, **settings):
    key = jax.random.key(0) if key is None else key
    return projection.project_features(stats, prototypes, new, key, **settings)


def test_text_prototype_is_the_direction_of_the_mean_of_unit_features():
    rng = np.random.default_rng(0)
    lengths = rng.uniform(0.1, 10.0, size=(3, 4, 1))
    features = (lengths * rng.normal(size=(3, 4, DIM))).astype(np.float32)
    want = unit(unit(features).mean(1))
    np.testing.assert_allclose(projection.text_prototypes(jnp.asarray(features)), want, **CLOSE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eager", [False, True])
def test_rotation_is_the_one_of_its_plane(seed, eager):
    a, b = draw_units(seed, 2)
    x = 2.0 * draw_units(seed + 10, 3, 4)
    with jax.disable_jit(eager):
        got = projection.rotate(x, a, b)
    np.testing.assert_allclose(got, x @ rotation_matrix(a, b).T, **CLOSE)


# 60 degrees, and both limits: the limit itself, so near that rounding prevails, and less near.
ANGLES = [np.pi / 3, 0.0, 1e-6, 1e-4, np.pi, np.pi - 1e-6, np.pi - 1e-2]


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_takes_a_to_b_and_keeps_lengths_angles_and_what_is_outside_the_plane(angle):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].T
    a, across, outside = basis[0], basis[1], basis[2:]
    b = np.cos(angle) * a + np.sin(angle) * across
    a, b, outside = (jnp.asarray(x, jnp.float32) for x in (a, b, outside))
    # What a and b are rounded by, 1e-7, weighs more the less of a + b is left, here 1e-2.
    close = {"rtol": 0, "atol": 2e-5}
    np.testing.assert_allclose(projection.rotate(a, a, b), b, **close)
    np.testing.assert_allclose(projection.rotate(outside, a, b), outside, **close)
    x = draw_units(1, 5)
    rotated = projection.rotate(x, a, b)
    np.testing.assert_allclose(rotated @ rotated.T, x @ x.T, **close)
    np.testing.assert_allclose(rotated @ b, x @ a, **close)


def test_rotation_from_a_to_itself_is_the_identity():
    x, a = draw_units(0, 5), draw_units(1)
    np.testing.assert_allclose(projection.rotate(x, a, a), x, **CLOSE)


def test_rotation_to_the_opposite_is_the_reflection_along_a():
    x, a = draw_units(0, 5), draw_units(1)
    want = x - 2 * np.outer(x @ a, a)
    np.testing.assert_allclose(projection.rotate(x, a, -a), want, **CLOSE)


def test_rotation_starts_as_its_generator():
    """At b = a, moving b by d in a direction perpendicular to a moves x by (a.x) d - (d.x) a."""
    x, a, d = draw_units(0, 3)
    d = unit(d - (d @ a) * a)
    _, got = jax.jvp(lambda b: projection.rotate(x, a, b), (a,), (d,))
    np.testing.assert_allclose(got, (a @ x) * d - (d @ x) * a, **CLOSE)


# On axes, offsets far below the rounding of a and b survive; their squares' inverses overflow.
@pytest.mark.parametrize("offset", [0.0, 1e-30, 1e-15, 1e-7, 1e-4, 1e-3, 0.1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_the_rotation_are_finite(sign, offset):
    x, weights = draw_units(0, 2)
    a, side = np.eye(DIM, dtype=np.float32)[:2]
    b = sign * a + offset * side
    loss = lambda x, a, b: weights @ projection.rotate(x, a, b)  # noqa: E731
    for grad in jax.grad(loss, argnums=(0, 1, 2))(x, a, b):
        assert jnp.isfinite(grad).all()


def test_nearest_classes_are_the_seen_ones_of_the_highest_cosine():
    prototypes, new = draw_units(0, NUM_CLASSES), draw_units(1)
    ranked = np.argsort(-prototypes @ new)
    seen = np.sort(ranked[1:])  # all but the nearest
    classes, cosines = projection.nearest_classes(5.0 * prototypes, seen, 0.2 * new, 3)
    np.testing.assert_array_equal(classes, ranked[1:4])
    np.testing.assert_allclose(cosines, prototypes[ranked[1:4]] @ new, **CLOSE)


def test_neighbours_stand_for_classes_that_are_not_seen():
    _, prototypes, _ = problem()
    shares = np.asarray(projection.neighbour_shares(jnp.asarray(prototypes), 4, 2))
    np.testing.assert_array_equal(shares[:4], np.eye(NUM_CLASSES)[:4])
    for label in (4, 5):
        nearest = np.argsort(-prototypes[:4] @ prototypes[label])[:2]
        want = np.isin(np.arange(NUM_CLASSES), nearest) / 2
        np.testing.assert_allclose(shares[label], want, **CLOSE)
    with pytest.raises(ValueError, match="got num_neighbours=5 with 4 seen classes"):
        projection.neighbour_shares(jnp.asarray(prototypes), 4, 5)


@pytest.mark.parametrize("text_share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("pivot", ["text", "image_mean"])
@pytest.mark.parametrize("average", [False, True])
def test_features_of_point_classes_have_their_closed_form(average, pivot, text_share):
    stats, prototypes, new = problem()
    means = unit(np.asarray(stats.mean))
    pivots = prototypes if pivot == "text" else means
    nearest = np.argsort(-prototypes @ new)[:3]
    rotated = np.stack([rotation_matrix(pivots[c], new) @ means[c] for c in nearest])
    rotated = np.stack([unit(rotated.mean(0))] * 5) if average else rotated[[0, 1, 2, 0, 1]]
    want = unit((1 - text_share) * rotated + text_share * new)
    settings = {"average": average, "pivot": pivot, "text_share": text_share}
    # Neither prototype need have norm 1.
    got = project(stats, 5.0 * prototypes, 0.2 * new, num_features=5, num_neighbours=3, **settings)
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("average", [False, True])
def test_image_mean_pivot_takes_point_classes_to_the_new_prototype(average):
    stats, prototypes, new = problem()
    got = project(
        stats, prototypes, new, num_features=7, average=average, text_share=0.0, pivot="image_mean"
    )
    np.testing.assert_allclose(got, np.tile(new, (7, 1)), **CLOSE)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("average", "shrinkage"), [(False, 1.0), (True, 1 / 5)])
def test_only_averaging_shrinks_the_variance_within_the_class(average, shrinkage, full):
    """Classes on their prototypes all land on the new one: what is left is the draws' spread.

    Of 2000 x (D - 1) squares the mean is off by 1.2 % (one standard deviation); the curvature of
    the sphere takes less than 1 %, the jitter of full covariances adds 0.2 %.
    """
    prototypes, new, std = draw_units(1, NUM_CLASSES), draw_units(2), 0.02
    stats = class_gaussians(prototypes, std=std, full=full)
    got = project(stats, prototypes, new, num_features=2000, average=average, text_share=0.0)
    variance = np.square(got - new[None]).sum(1).mean() / (DIM - 1)  # none along the mean
    np.testing.assert_allclose(variance, shrinkage * std**2, rtol=0.05)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_classes_never_seen_are_never_used(full, average):
    count = np.array([3.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    stats, prototypes, new = problem(std=0.3, count=count, full=full)
    seen = np.flatnonzero(count)
    settings = {"num_features": 9, "num_neighbours": 3, "average": average}
    want = project(jax.tree.map(lambda x: x[seen], stats), prototypes[seen], new, **settings)
    # The others are nearest of all, and would spoil every feature.
    prototypes[count == 0] = new
    poison = lambda x: jnp.where((count > 0).reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)  # noqa: E731
    stats = ClassStats(stats.count, poison(stats.mean), poison(stats.cov))
    np.testing.assert_allclose(project(stats, prototypes, new, **settings), want, **CLOSE)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("pivot", ["text", "image_mean"])
def test_features_are_of_norm_1_and_nearer_to_the_new_prototype_than_to_the_pivots(pivot, average):
    # Means 27 degrees off their prototypes, and these far from one another and from the new one.
    axes = np.eye(DIM, dtype=np.float32)
    prototypes, new = axes[:5], axes[5]
    means = prototypes + 0.5 * axes[6]
    pivots = prototypes if pivot == "text" else unit(means)
    got = project(
        class_gaussians(means, std=0.1),
        prototypes,
        new,
        num_features=50,
        average=average,
        pivot=pivot,
    )
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, **CLOSE)
    assert np.all(got @ new > (got @ pivots.T).max(1))


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_several_new_classes_are_the_same_at_once_as_one_by_one(transform, average):
    stats, prototypes, _ = problem(std=0.3)
    new, keys = draw_units(3, 4), jax.random.split(jax.random.key(1), 4)
    one = functools.partial(project, stats, prototypes, num_features=6, average=average)
    got = transform(jax.vmap(one))(new, keys)
    want = np.stack([one(*each) for each in zip(new, keys, strict=True)])
    np.testing.assert_allclose(got, want, **CLOSE)
    assert not np.allclose(want[0], want[1], atol=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_neighbours": 7}, "got num_neighbours=7 with 6 seen classes; expected at least 1"),
        ({"num_neighbours": 0}, "got num_neighbours=0 with 6 seen classes; expected at least 1"),
        ({"num_features": 0}, "got num_features=0; expected at least 1"),
        ({"text_share": -0.1}, r"got text_share=-0.1; expected \[0, 1\]"),
        ({"text_share": 1.5}, r"got text_share=1.5; expected \[0, 1\]"),
        ({"pivot": "mean"}, "got pivot='mean'; expected 'text' or 'image_mean'"),
        ({"prototypes": np.ones((5, DIM))}, r"prototypes of shape \(5, 8\) and class means of"),
        ({"new": np.ones((2, DIM))}, r"a new one of shape \(2, 8\); .* use jax.vmap"),
    ],
)
def test_bad_input_of_project_features_is_told(wrong, message):
    stats, prototypes, new = problem()
    arguments = {"prototypes": prototypes, "new": new, "num_features": 2, **wrong}
    with pytest.raises(ValueError, match=message):
        project(stats, **arguments)


def test_classes_never_seen_are_no_neighbours_to_ask_for():
    stats, prototypes, new = problem(count=[1, 0, 1, 0, 0, 1])
    with pytest.raises(ValueError, match="got num_neighbours=4 with 3 seen classes"):
        project(stats, prototypes, new, num_features=2, num_neighbours=4)


def test_nearest_classes_wants_indices_and_not_a_mask():
    _, prototypes, new = problem()
    with pytest.raises(ValueError, match=r"got seen classes bool\[6\]; .* use np.flatnonzero"):
        projection.nearest_classes(prototypes, np.ones(6, bool), new, 2)


def test_rotation_wants_one_plane():
    a, b = draw_units(0, 2, 3)
    with pytest.raises(ValueError, match=r"a of shape \(3, 8\) .* use jax.vmap"):
        projection.rotate(draw_units(1, 3), a, b)


def test_text_prototypes_want_an_axis_of_templates():
    with pytest.raises(ValueError, match=r"got text features of shape \(3, 8\); .* single prompt"):
        projection.text_prototypes(np.ones((3, DIM)))
