import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.features import gaussian

NUM_CLASSES, DIM = 3, 4


def draw(seed, num=60, num_classes=NUM_CLASSES):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    mixing = rng.normal(size=(DIM, DIM))
    features = rng.normal(size=(num, DIM)) @ mixing + 3.0 * labels[:, None]
    return features.astype(np.float32), labels.astype(np.int32)


def reference(features, full):
    covariance = np.cov(features.T, bias=True)
    return features.mean(0), covariance if full else np.diagonal(covariance)


@pytest.mark.parametrize("full", [False, True])
def test_fit_gives_each_class_its_mean_and_population_covariance(full):
    features, labels = draw(0)
    stats = gaussian.fit_class_stats(features, labels, NUM_CLASSES, full=full)
    for c in range(NUM_CLASSES):
        mean, cov = reference(features[labels == c], full)
        assert stats.count[c] == (labels == c).sum()
        np.testing.assert_allclose(stats.mean[c], mean, rtol=1e-4)
        np.testing.assert_allclose(stats.cov[c], cov, rtol=1e-3, atol=1e-4)
        std = np.sqrt(np.diagonal(cov) if full else cov)
        np.testing.assert_allclose(stats.std[c], std, rtol=1e-3)


@pytest.mark.parametrize("full", [False, True])
def test_a_class_without_features_keeps_its_initial_statistics(full):
    features, labels = draw(1, num_classes=2)
    stats = gaussian.fit_class_stats(features, labels, NUM_CLASSES, full=full)
    empty = gaussian.init_class_stats(NUM_CLASSES, DIM, full=full)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b[2]), stats, empty)


@pytest.mark.parametrize("full", [False, True])
def test_padding_rows_do_not_count(full):
    features, labels = draw(2)
    padded = np.concatenate([features, np.full((5, DIM), 100.0, np.float32)])
    padded_labels = np.concatenate([labels, np.zeros(5, np.int32)])
    weights = np.concatenate([np.ones(len(labels)), np.zeros(5)]).astype(np.float32)
    got = gaussian.fit_class_stats(padded, padded_labels, NUM_CLASSES, full=full, weights=weights)
    want = gaussian.fit_class_stats(features, labels, NUM_CLASSES, full=full)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.parametrize("full", [False, True])
def test_merge_gives_the_moments_of_the_union(full):
    a, b = draw(3, num=50), draw(4, num=20, num_classes=2)  # class 2 in the first part only
    fit = lambda data: gaussian.fit_class_stats(*data, NUM_CLASSES, full=full)  # noqa: E731
    union = tuple(np.concatenate(parts) for parts in zip(a, b, strict=True))
    for got in (
        gaussian.merge_class_stats(fit(a), fit(b)),
        gaussian.merge_class_stats(fit(b), fit(a)),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), got, fit(union)
        )


@pytest.mark.parametrize("full", [False, True])
def test_samples_have_the_stored_moments(full):
    stats = gaussian.fit_class_stats(*draw(5), NUM_CLASSES, full=full)
    labels = jnp.tile(jnp.asarray([2, 0]), 20_000)
    samples = gaussian.sample_class_features(stats, labels, jax.random.key(0))
    for c in (2, 0):
        mean, cov = reference(np.asarray(samples[labels == c]), full)
        scale = float(stats.std[c].max())
        np.testing.assert_allclose(mean, stats.mean[c], atol=0.05 * scale)
        np.testing.assert_allclose(cov, stats.cov[c], atol=0.05 * scale**2)


@pytest.mark.parametrize("labels", [[1, 2, 3], [-1, 0, 1], [0, 1, 300]])
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_labels_of_no_class_are_refused(labels, of):
    """Else their features would be left out of all, or draws be of another class."""
    features, labels = np.zeros((3, DIM), np.float32), of(labels)
    message = f"labels range from {labels.min()} to {labels.max()}, but there are 3 classes, 0 to 2"
    with pytest.raises(ValueError, match=message):
        gaussian.fit_class_stats(features, labels, NUM_CLASSES)
    stats = gaussian.fit_class_stats(*draw(0), NUM_CLASSES)
    with pytest.raises(ValueError, match=message):
        gaussian.sample_class_features(stats, labels, jax.random.key(0))


def test_labels_of_no_class_may_fill_up_a_batch():
    features, labels = draw(0)
    filled = np.concatenate([features, features[:2]]), np.append(labels, [-1, 99])
    weights = np.append(np.ones(len(labels), np.float32), [0, 0])
    got = gaussian.fit_class_stats(*filled, NUM_CLASSES, weights=weights)
    want = gaussian.fit_class_stats(features, labels, NUM_CLASSES)
    np.testing.assert_array_equal(got.count, want.count)
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6)


def test_labels_of_another_kind_are_refused():
    features, labels = draw(0)
    with pytest.raises(ValueError, match="labels are of type float32; expected integers"):
        gaussian.fit_class_stats(features, labels.astype(np.float32), NUM_CLASSES)
    with pytest.raises(ValueError, match=r"and labels \(59,\); expected .* a label for each"):
        gaussian.fit_class_stats(features, labels[1:], NUM_CLASSES)
