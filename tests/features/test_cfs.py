import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.features import cfs
from jaxpmi.features import gaussian

NUM_CLASSES, PLACES, DIM = 3, 24, 6
SETTINGS = {"learning_rate": 1e-2, "num_epochs": 5, "batch_size": 8, "temperature": 1.0}
SAMPLING = {"num_per_class": 60, "num_rounds": 20, "keep_rate": 0.25}


def class_features(seed, num_classes=NUM_CLASSES, places=PLACES, dim=DIM):
    """Two uneven clumps per class, so that the mass of a class has a direction."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random((num_classes, places, 1)) < 0.8, 1.0, -1.0)
    return (1.5 * sign + rng.normal(size=(num_classes, places, dim))).astype(np.float32)


def one_class(tree, c):
    return jax.tree.map(lambda x: x[c], tree)


def assert_trees_close(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


fit_class = jax.jit(functools.partial(cfs.fit_class, **SETTINGS))


@functools.cache
def fresh():
    return cfs.init(jax.random.key(1), NUM_CLASSES, DIM)


@functools.cache
def trained():
    features, model = class_features(0, places=128), fresh()
    mask = jnp.ones(features.shape[:2])
    model, _ = cfs.fit(model, features, mask, jax.random.key(2), num_epochs=60)
    labels = jnp.repeat(jnp.arange(NUM_CLASSES), 128)
    return model, gaussian.fit_class_stats(features.reshape(-1, DIM), labels, NUM_CLASSES)


def test_group_by_class_fills_in_order_and_drops_overflow_and_foreign_labels():
    labels = np.asarray([2, 0, 2, -1, 2, 5, 0], np.int32)
    features = np.arange(14, dtype=np.float32).reshape(7, 2) + 1.0
    grouped, mask = cfs.group_by_class(features, labels, num_classes=3, capacity=2)
    np.testing.assert_array_equal(mask, [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(grouped[0], features[[1, 6]])
    np.testing.assert_array_equal(grouped[1], np.zeros((2, 2)))
    np.testing.assert_array_equal(grouped[2], features[[0, 2]])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_uniformity_of_collapsed_features_is_one_over_temperature(temperature):
    embeddings = jnp.tile(jnp.eye(4)[:1], (10, 1))
    loss = cfs.uniformity_loss(embeddings, jnp.ones(10), temperature=temperature)
    np.testing.assert_allclose(loss, 1.0 / temperature, rtol=1e-5)


def test_uniformity_of_orthogonal_features():
    loss = cfs.uniformity_loss(jnp.eye(64), jnp.ones(64))
    np.testing.assert_allclose(loss, np.log((np.e + 63.0) / 64.0), rtol=1e-4)
    np.testing.assert_allclose(loss, 0.0265, atol=5e-5)


def test_uniformity_ignores_padding():
    embeddings = class_features(3)[0] / 4.0
    mask = (np.arange(PLACES) < 10).astype(np.float32)
    got, grad = jax.jit(jax.value_and_grad(cfs.uniformity_loss))(embeddings, mask)
    want = np.log(np.exp(embeddings[:10] @ embeddings[:10].T).mean(1)).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(grad[10:], 0.0)
    assert cfs.uniformity_loss(embeddings, jnp.zeros(PLACES)) == 0.0


@pytest.mark.parametrize("count", [20, 5])  # more and fewer than one batch
def test_fit_with_padding_equals_fit_without(count):
    features = class_features(4)[0]
    features[count:] = 1e3
    model = one_class(fresh(), 0)
    mask = (np.arange(PLACES) < count).astype(np.float32)
    key = jax.random.key(6)
    padded = fit_class(model, features, mask, key)
    plain = fit_class(model, features[:count], mask[:count], key)
    assert_trees_close(padded, plain, rtol=1e-3, atol=1e-4)
    # There is something to compare: the weights have moved.
    assert np.abs(padded[0].params["weight"] - model.params["weight"]).max() > 1e-2


def test_fit_equals_a_loop_over_classes_and_keeps_classes_without_features():
    features = class_features(7)
    mask = np.ones((NUM_CLASSES, PLACES), np.float32)
    mask[0, 12:], mask[1] = 0.0, 0.0
    model = fresh()
    got, metrics = cfs.fit(model, features, mask, jax.random.key(9), **SETTINGS)
    keys = jax.random.split(jax.random.key(9), NUM_CLASSES)
    for c in (0, 2):
        want, loss = fit_class(one_class(model, c), features[c], mask[c], keys[c])
        assert_trees_close(one_class(got, c), want, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(metrics["uniformity"][c], loss, rtol=1e-4)
    assert_trees_close(one_class(got, 1), one_class(model, 1), rtol=0)
    assert metrics["uniformity"][1] == jnp.inf


def test_fit_keeps_the_weights_that_had_the_loss_not_the_updated_ones():
    features, model = class_features(10), fresh()
    settings = SETTINGS | {"num_epochs": 1, "batch_size": PLACES}
    mask, key = np.ones((NUM_CLASSES, PLACES), np.float32), jax.random.key(12)
    got, _ = cfs.fit(model, features, mask, key, **settings)
    assert_trees_close(got.params, model.params, rtol=0)
    # The running moments do include that loss's batch, with momentum 0.1.
    hidden = features[0] @ np.asarray(model.params["weight"][0, 0])
    np.testing.assert_allclose(got.running.mean[0, 0], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.running.var[0, 0], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)


def test_fit_spreads_the_class():
    features, mask = class_features(0, places=128), np.ones(128, np.float32)

    def loss(model):
        embeddings = cfs.apply(model, features)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=2), 1.0, atol=1e-3)
        return cfs.uniformity_loss(embeddings[0], mask)

    assert loss(trained()[0]) < 0.5 * loss(fresh())


def test_embeddings_have_a_finite_gradient_where_they_vanish():
    """As they do in training on equal features: BatchNorm maps them to zero."""
    loss = lambda x: cfs.apply(fresh(), x).sum()  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(loss))(np.zeros((NUM_CLASSES, 2, DIM), np.float32))
    assert value == 0.0
    assert np.isfinite(grad).all()


def test_fit_traces_once_for_equal_shapes(monkeypatch):
    traces, loss = [], cfs.uniformity_loss
    count = lambda *args, **kwargs: (traces.append(0), loss(*args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(cfs, "uniformity_loss", count)
    model, num_traces = fresh(), []
    for seed in (16, 17):
        features = class_features(seed, places=11)
        mask = (np.arange(11)[None] < [[seed - 10], [11], [11]]).astype(np.float32)
        settings = SETTINGS | {"learning_rate": 1e-3 * seed, "temperature": 0.1 * seed}
        cfs.fit.eval_shape(model, features, mask, jax.random.key(seed), **settings)
        num_traces.append(len(traces))
    assert num_traces[0] > 0 and num_traces[1] == num_traces[0]


def test_select_picks_the_lowest_mean_similarity_to_all_kept():
    kept, candidates = class_features(18)[0], class_features(19)[0]
    scores = (candidates @ kept.T).mean(1)
    picked = cfs.select(candidates, kept.mean(0), 5)
    np.testing.assert_array_equal(picked, np.argsort(scores)[:5])


@pytest.mark.parametrize("num_per_class", [1, 7])
def test_sample_features_returns_the_number_asked_for(num_per_class):
    model, stats = trained()
    samples = cfs.sample_features(
        model, stats, jax.random.key(20), num_per_class=num_per_class, num_rounds=5
    )
    assert samples.shape == (NUM_CLASSES, num_per_class, DIM)
    assert len(np.unique(samples, axis=1)[0]) == num_per_class
    assert bool(jnp.isfinite(samples).all())


@pytest.mark.parametrize("full", [False, True])
def test_samples_match_the_stored_mean_and_std(full):
    model, stats = trained()
    if full:
        cov = np.eye(DIM) * np.asarray(stats.cov)[:, None] + 0.5 * float(stats.cov.min())
        cov = cov.astype(np.float32)
        stats = stats._replace(cov=cov)
    samples = cfs.sample_features(model, stats, jax.random.key(21), **SAMPLING)
    samples = np.asarray(samples)
    np.testing.assert_allclose(samples.mean(1), stats.mean, atol=1e-5)
    np.testing.assert_allclose(samples.std(1, ddof=1), stats.std, atol=1e-5)


def test_oversampling_returns_a_random_choice_of_more_samples():
    """Of five times as many, whose moments are those of the class; each class its own choice."""
    (model, stats), key, places = trained(), jax.random.key(27), []
    samples = cfs.sample_features(model, stats, key, **SAMPLING, oversampling=5)
    more, key_draw = SAMPLING | {"num_per_class": 300}, jax.random.split(key)[0]
    drawn = cfs.sample_features(model, stats, key_draw, **more)
    assert samples.shape == (NUM_CLASSES, 60, DIM)
    for chosen, pool in zip(np.asarray(samples), np.asarray(drawn), strict=True):
        same = np.abs(chosen[:, None] - pool[None]).max(-1) < 1e-5
        assert (same.sum(1) == 1).all(), "every sample is a draw"
        places.append(same.argmax(1))
        assert len(set(places[-1])) == 60, "and none is taken twice"
        assert places[-1].min() < 60 and places[-1].max() >= 240
    assert not np.array_equal(places[0], places[1])
    # 60 of 300: the deviation of their mean is sigma sqrt((1 - 1/5) / 60).
    error = (samples.mean(1) - stats.mean) / stats.std
    assert 0.0 < float(jnp.abs(error).max()) < 4 * (0.8 / 60) ** 0.5
    np.testing.assert_allclose(samples.std(1) / stats.std, 1.0, atol=0.4)


@pytest.mark.parametrize("keep_rate", [0.0, 1.5])
def test_a_keep_rate_outside_its_range_is_an_error(keep_rate):
    model, stats = trained()
    with pytest.raises(ValueError, match="keep_rate=.* is not in"):
        cfs.sample_features(model, stats, jax.random.key(0), num_per_class=4, keep_rate=keep_rate)


def test_kept_samples_are_less_alike_than_plain_draws(monkeypatch):
    """Before they get the moments of their class."""
    monkeypatch.setattr(cfs, "match_moments", lambda features, *moments: features)
    model, stats = trained()
    sample = cfs.sample_features.__wrapped__  # not the program that others have compiled

    def alikeness(keep_rate):
        settings = SAMPLING | {"keep_rate": keep_rate}
        samples = sample(model, stats, jax.random.key(24), **settings)
        centre = np.asarray(cfs.apply(model, samples)).mean(1)
        return np.square(centre).sum(1)  # the mean pairwise cosine

    assert (alikeness(0.25) < 0.5 * alikeness(1.0)).all()


def test_pairwise_distances_are_nearer_to_real_ones_than_those_of_plain_draws():
    """Over several draws: the Wasserstein distance of two sets of as many distances."""
    model, stats = trained()
    real, settings = class_features(0, places=128), SAMPLING | {"num_per_class": 128}
    labels = jnp.repeat(jnp.arange(NUM_CLASSES), 128)

    def distances(x):
        pairs = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
        return np.sort(pairs[:, *np.triu_indices(x.shape[1], 1)], axis=1)

    def error(samples):
        samples = np.asarray(samples).reshape(NUM_CLASSES, 128, DIM)
        return np.abs(distances(samples) - distances(real)).mean()

    keys = jax.random.split(jax.random.key(26), 8)
    chosen = [error(cfs.sample_features(model, stats, key, **settings)) for key in keys]
    plain = [error(gaussian.sample_class_features(stats, labels, key)) for key in keys]
    noise = np.sqrt((np.var(chosen, ddof=1) + np.var(plain, ddof=1)) / len(keys))
    assert np.mean(plain) - np.mean(chosen) > 3.0 * noise


def test_a_full_covariance_shapes_the_draws():
    model, stats = trained()
    stats = stats._replace(cov=np.ones((NUM_CLASSES, DIM, DIM), np.float32))  # rank one
    samples = cfs.sample_features(model, stats, jax.random.key(25), **SAMPLING)
    offsets = np.asarray(samples) - np.asarray(stats.mean)[:, None]
    np.testing.assert_allclose(offsets, np.tile(offsets[..., :1], DIM), atol=0.02)
    assert offsets.std() > 0.5
