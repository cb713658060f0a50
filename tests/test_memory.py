"""What is kept of data, merged and drawn from: moments, and features of a class."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import trained

from jaxpmi.config import CfsConfig
from jaxpmi.features import cfs
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.memory import Memory
from jaxpmi.memory import draw_features
from jaxpmi.memory import merge_moments
from jaxpmi.memory import sample_by_cfs
from jaxpmi.types import Moments

DIM, NUM_CLASSES = 6, 4
SETTINGS = CfsConfig(num_rounds=3)
CENTRES = 10.0 * np.arange(NUM_CLASSES)  # classes are far apart
CFS_LABELS = np.asarray([2, 0, 2, 1, 2, 0], np.int32)


@functools.cache
def memory(full=False, with_models=True):
    """Of classes 0 to 2; class 3 was never seen."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 200)
    mixing = rng.normal(size=(3, DIM, DIM)) / DIM
    features = np.einsum("nd,nde->ne", rng.normal(size=(600, DIM)), mixing[labels])
    features = (features + CENTRES[labels][:, None]).astype(np.float32)
    stats = fit_class_stats(features, labels, NUM_CLASSES, full=full)
    models = cfs.init(jax.random.key(1), NUM_CLASSES if with_models else 0, DIM, num_blocks=1)
    return trained().memory._replace(class_stats=stats, feature_models=models)


def class_of(features):
    """To which class's centre a feature is nearest."""
    return np.abs(np.asarray(features).mean(-1)[..., None] - CENTRES).argmin(-1)


# Drawing features.


@pytest.mark.parametrize("full", [False, True])
def test_by_default_features_are_those_of_the_gaussians(full):
    labels = jnp.asarray([2, 0, 1, 2])
    got = draw_features(memory(full), labels, jax.random.key(0))
    want = sample_class_features(memory(full).class_stats, labels, jax.random.key(0))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(class_of(got), labels)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_features_have_the_moments_of_their_class(full):
    labels = np.tile(np.asarray([2, 0], np.int32), 20_000)
    drawn = np.asarray(draw_features(memory(full), labels, jax.random.key(0), targets="gaussian"))
    stats = memory(full).class_stats
    for label in (2, 0):
        own, scale = drawn[labels == label], float(stats.std[label].max())
        cov = np.cov(own.T, bias=True)
        np.testing.assert_allclose(own.mean(0), stats.mean[label], atol=0.05 * scale)
        want = stats.cov[label] if full else np.diag(stats.cov[label])
        np.testing.assert_allclose(cov, want, atol=0.05 * scale**2)


def test_by_cfs_the_nth_image_of_a_class_gets_its_nth_feature():
    key, most = jax.random.key(3), 3
    got = draw_features(memory(), CFS_LABELS, key, targets="cfs", settings=SETTINGS)
    drawn = sample_by_cfs(memory(), key, num_per_class=most, settings=SETTINGS)
    assert got.shape == (6, DIM) and drawn.shape == (NUM_CLASSES, most, DIM)
    want = [drawn[2, 0], drawn[0, 0], drawn[2, 1], drawn[1, 0], drawn[2, 2], drawn[0, 1]]
    np.testing.assert_array_equal(got, np.stack(want))
    np.testing.assert_array_equal(class_of(got), CFS_LABELS)
    assert len(np.unique(np.asarray(got), axis=0)) == 6  # none is drawn twice


@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray])
def test_labels_may_be_of_any_kind(kind):
    draw = functools.partial(draw_features, memory(), key=jax.random.key(3), targets="cfs")
    got = draw(kind([2, 0, 2]), settings=SETTINGS)
    np.testing.assert_array_equal(got, draw(np.asarray([2, 0, 2]), settings=SETTINGS))


def test_settings_of_cfs_are_those_of_the_defaults_unless_given():
    draw = functools.partial(draw_features, memory(), CFS_LABELS, jax.random.key(3), targets="cfs")
    np.testing.assert_array_equal(draw(), draw(settings=CfsConfig()))
    other = draw(settings=CfsConfig(oversampling=3))
    assert np.abs(draw() - other).max() > 1e-3


def test_cfs_selects_other_features_than_the_gaussians_give():
    key = jax.random.key(3)
    by_cfs = draw_features(memory(), CFS_LABELS, key, targets="cfs", settings=SETTINGS)
    plain = draw_features(memory(), CFS_LABELS, key)
    assert np.abs(by_cfs - plain).max() > 1e-2


def test_without_feature_models_the_gaussians_serve():
    alone = memory(with_models=False)
    got = draw_features(alone, CFS_LABELS, jax.random.key(0), targets="cfs", settings=SETTINGS)
    want = sample_class_features(alone.class_stats, CFS_LABELS, jax.random.key(0))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("targets", ["cfs", "gaussian"])
def test_a_class_that_was_never_seen_is_an_error(targets):
    message = (
        r"^the memory has seen no image of class 3; ask for classes that were remembered, or give "
        r"features\.$"
    )
    with pytest.raises(ValueError, match=message):
        draw_features(memory(), np.asarray([0, 3, 1]), jax.random.key(0), targets=targets)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_class_that_there_is_not_is_an_error(label):
    with pytest.raises(ValueError, match=f"seen no image of class {label}; "):
        draw_features(memory(), np.asarray([0, label]), jax.random.key(0))


def test_features_drawn_inside_a_trace_are_those_drawn_outside():
    key, labels = jax.random.key(0), jnp.asarray([2, 0, 1])
    want = draw_features(memory(), labels, key)
    traced = jax.jit(draw_features)(memory(), labels, key)
    np.testing.assert_allclose(traced, want, rtol=1e-6)
    by_memory = jax.jit(lambda memory: draw_features(memory, np.asarray([2, 0, 1]), key))
    np.testing.assert_allclose(by_memory(memory()), want, rtol=1e-6)
    by_cfs = functools.partial(draw_features, labels=CFS_LABELS, targets="cfs", settings=SETTINGS)
    got = jax.jit(lambda memory, key: by_cfs(memory, key=key))(memory(), key)
    np.testing.assert_allclose(got, by_cfs(memory(), key=key), rtol=1e-5, atol=1e-5)


# The memory itself.


def test_no_field_of_a_memory_is_per_image():
    """Of 128 images: no axis is as long, but for what has 256 values or a pixel of its own."""
    kept = trained().memory
    assert isinstance(kept, Memory) and int(kept.num_images) == len(trained().labels) == 128
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        assert 128 not in leaf.shape, jax.tree_util.keystr(path)
    np.testing.assert_array_equal(kept.class_stats.count, np.bincount(trained().labels))


# Merging moments.


def moments(x):
    return Moments(jnp.asarray(x.mean(0)), jnp.asarray(x.var(0)))


@pytest.mark.parametrize(("num_a", "num_b"), [(3, 7), (5, 1), (1, 1)])
def test_merged_moments_are_those_of_the_union_whatever_comes_first(num_a, num_b):
    x = np.random.default_rng(0).normal(size=(num_a + num_b, 3)).astype(np.float32)
    x[num_a:] += 5.0
    a, b = (moments(x[:num_a]), float(num_a)), (moments(x[num_a:]), float(num_b))
    for got in (merge_moments(*a, *b), merge_moments(*b, *a), jax.jit(merge_moments)(*a, *b)):
        np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(got.var, x.var(0), rtol=1e-4)


@pytest.mark.parametrize("empty_first", [False, True])
def test_what_has_seen_nothing_adds_nothing(empty_first):
    x = 3.0 + np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    empty, full = (Moments(jnp.full(3, 9.0), jnp.ones(3)), 0.0), (moments(x), 8.0)
    got = merge_moments(*empty, *full) if empty_first else merge_moments(*full, *empty)
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.var, x.var(0), rtol=1e-6)


def test_two_sets_of_nothing_are_nothing():
    first, second = (Moments(jnp.full(3, value), jnp.ones(3)) for value in (0.0, 9.0))
    got = merge_moments(first, jnp.zeros(()), second, jnp.zeros(()))
    chex.assert_trees_all_equal(got, first)
