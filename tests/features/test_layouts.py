import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.features import layouts

NUM_CLASSES, SHAPE, SIZE = 4, (5, 4, 1), 20  # so few pixels are a layout as they are


def draw(seed, num, classes, rank=3):
    """Vectors of several classes, each with a mean and a covariance of its own, of one rank."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, num).astype(np.int32)
    shared = np.random.default_rng(9).normal(size=(rank, SIZE))
    own = np.random.default_rng(8).normal(size=(NUM_CLASSES, rank, rank))
    noise = np.einsum("br,brs->bs", rng.normal(size=(num, rank)), own[labels])
    return (noise @ shared + 3.0 * labels[:, None]).astype(np.float32), labels


def add(known, vectors, labels, padding=5):
    """`add_layouts` of vectors followed by padding rows, which must not count."""
    weights = np.pad(np.ones(len(labels), np.float32), (0, padding))
    vectors = np.pad(vectors, ((0, padding), (0, 0)), constant_values=7.0)
    return jax.jit(layouts.add_layouts)(known, vectors, np.pad(labels, (0, padding)), weights)


def empty():
    return layouts.init_layouts(NUM_CLASSES, SHAPE)


def covariances(known):
    return np.einsum("rp,crs,sq->cpq", known.directions, known.cov, known.directions)


TASKS = [draw(0, 50, (0, 1)), draw(1, 40, (2,)), draw(2, 30, (0,))]


def test_classes_keep_their_own_means_and_covariances_over_tasks():
    """One task after another is as good as all at once, the last one of a class seen before."""
    known = functools.reduce(lambda stats, part: add(stats, *part), TASKS, empty())
    vectors, labels = (np.concatenate(part) for part in zip(*TASKS, strict=True))
    np.testing.assert_array_equal(known.count, np.bincount(labels, minlength=NUM_CLASSES))
    for c in range(3):
        own = vectors[labels == c]
        np.testing.assert_allclose(known.mean[c], own.mean(0), rtol=1e-4, atol=1e-4)
        wanted = np.cov(own.T, bias=True)
        np.testing.assert_allclose(covariances(known)[c], wanted, atol=1e-3 * wanted.max())
    assert not covariances(known)[3].any() and not np.any(known.mean[3])
    once = add(empty(), vectors, labels)
    np.testing.assert_allclose(covariances(once), covariances(known), atol=1e-2)


def test_of_too_many_directions_the_leading_ones_are_kept(monkeypatch):
    monkeypatch.setattr(layouts, "NUM_DIRECTIONS", 2)
    vectors, labels = draw(0, 200, (0, 1, 2))
    known = add(empty(), vectors, labels)
    assert known.directions.shape == (2, SIZE) and known.cov.shape == (NUM_CLASSES, 2, 2)
    np.testing.assert_allclose(known.directions @ known.directions.T, np.eye(2), atol=1e-5)
    means = np.stack([vectors[labels == c].mean(0) for c in range(3)])
    values = np.linalg.eigvalsh(np.cov((vectors - means[labels]).T, bias=True))
    kept = np.einsum("c,crr->", np.bincount(labels) / len(labels), known.cov[:3])
    np.testing.assert_allclose(kept, values[-2:].sum(), rtol=1e-3)


def test_draws_have_the_moments_of_their_class():
    known = add(empty(), *TASKS[0])
    labels = np.tile([0, 1], 20_000)
    drawn = layouts.sample_layouts(known, jnp.asarray(labels), jax.random.key(0))
    for c in (0, 1):
        wanted = covariances(known)[c]
        np.testing.assert_allclose(drawn[labels == c].mean(0), known.mean[c], atol=0.1)
        found = np.cov(drawn[labels == c].T, bias=True)
        np.testing.assert_allclose(found, wanted, atol=0.03 * wanted.max())


def test_a_class_of_one_image_is_drawn_as_that_image():
    vectors, labels = draw(0, 1, (1,))
    drawn = layouts.sample_layouts(add(empty(), vectors, labels), labels, jax.random.key(0))
    np.testing.assert_allclose(drawn, vectors, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        ((28, 28, 1), (14, 14, 1)),
        ((32, 32, 3), (16, 16, 3)),
        ((16, 9, 1), (16, 9, 1)),
        ((224, 160, 3), (16, 12, 3)),
    ],
)
def test_layouts_are_small_however_large_images_are(image, layout):
    assert layouts.layout_shape(image) == layout
    images = jax.random.normal(jax.random.key(0), (3, *image))
    assert layouts.layouts_of(images).shape == (3, int(np.prod(layout)))


def test_images_take_a_layout_and_keep_what_is_finer():
    key_image, key_other = jax.random.split(jax.random.key(0))
    shape = (2, 28, 28, 1)
    images = jax.random.normal(key_image, shape)
    smooth = jax.image.resize(jax.random.normal(key_other, (2, 5, 5, 1)), shape, "cubic")
    wanted = layouts.layouts_of(smooth)
    given = layouts.with_layouts(images, wanted)
    np.testing.assert_allclose(layouts.with_layouts(images, layouts.layouts_of(images)), images)
    before = np.abs(layouts.layouts_of(images) - wanted).mean()
    assert np.abs(layouts.layouts_of(given) - wanted).mean() < 0.4 * before
    fine = np.asarray(images)[:, ::2] - np.asarray(images)[:, 1::2]
    kept = np.asarray(given)[:, ::2] - np.asarray(given)[:, 1::2]
    assert np.corrcoef(fine.ravel(), kept.ravel())[0, 1] > 0.9
