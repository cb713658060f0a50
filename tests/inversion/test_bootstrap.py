"""Starts from earlier pictures: what is drawn, whose pictures are seen, and that it pays."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import NUM_CLASSES
from small_network import SHAPE
from small_network import trained

from jaxpmi.augment import denormalise
from jaxpmi.config import DeepInversionConfig
from jaxpmi.inversion import bootstrap
from jaxpmi.inversion.bootstrap import draw_combined_features
from jaxpmi.inversion.bootstrap import remember_pictures
from jaxpmi.inversion.bootstrap import start_from_pictures
from jaxpmi.inversion.deep_inversion import deep_inversion

LABELS = np.tile(np.arange(NUM_CLASSES, dtype=np.int32), 3)
CONFIG = DeepInversionConfig(
    stage_steps=(30,),
    variant="few_steps",
    learning_rate=0.2,
    statistics_weight=0.5,
    statistics_distance="relative",
    jitter_pixels=1,
)


@functools.cache
def first():
    """Pictures from noise, three of every class, and what is remembered of them."""
    network = trained().network
    made = deep_inversion(network, LABELS, jax.random.key(1), config=CONFIG)
    return made, remember_pictures(network, made.images, LABELS, jax.random.key(2), config=CONFIG)


def start(key=3, pictures=None, picture_labels=LABELS, labels=LABELS):
    made, memory = first()
    pictures = made.images if pictures is None else pictures
    return start_from_pictures(
        trained().network,
        memory,
        pictures,
        picture_labels,
        labels,
        jax.random.key(key),
        config=CONFIG,
    )


def test_new_pictures_begin_where_noise_comes_late():
    noise, later = first()[0], start()
    assert later.shape == (len(LABELS), *SHAPE)
    refined = deep_inversion(
        trained().network, LABELS, jax.random.key(5), config=CONFIG, start=later
    )
    # Means over steps, as every step sees another view.
    assert refined.losses[:5].mean() < 0.75 * noise.losses[:5].mean()
    assert refined.losses[5:10].mean() < noise.losses[10:15].mean()


def test_another_key_gives_other_pictures():
    assert float(jnp.abs(start(4) - start()).mean()) > 0.05
    np.testing.assert_array_equal(start(), start())


def test_a_network_sees_the_labels_in_what_is_decoded():
    network, (_, memory) = trained().network, first()
    decoded = bootstrap._decode(
        network, memory, jnp.asarray(LABELS), jax.random.key(0), jax.random.key(1)
    )
    seen = network.head(bootstrap._features(network, decoded)).argmax(1)
    assert float((seen == LABELS).mean()) > 0.5, seen


def test_only_pictures_of_the_label_are_seen(monkeypatch):
    """And none of rows that are not pictures yet, as those are that a batch has yet to fill."""
    monkeypatch.setattr(bootstrap, "DECODED_SHARE", 0.0)
    bootstrap._blend.clear_cache()
    values = 40 * (1 + np.arange(NUM_CLASSES))  # one shade of grey for every class
    pictures = np.broadcast_to(values[LABELS, None, None, None], (len(LABELS), *SHAPE))
    pictures = np.concatenate([pictures, np.full((4, *SHAPE), 255)]).astype(np.uint8)
    network = trained().network
    x = start(0, pictures, np.concatenate([LABELS, np.full(4, -1)]))
    shades = denormalise(x, network.mean, network.std).mean((1, 2, 3))
    bootstrap._blend.clear_cache()
    np.testing.assert_allclose(shades, values[LABELS], atol=1)


def test_drawn_features_have_the_moments_of_their_class():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 3)).astype(np.float32) + np.repeat([[0.0], [9.0]], 6, 0)
    features = jnp.asarray(features, jnp.float32)
    places = jnp.repeat(jnp.arange(2), 6)
    drawn = draw_combined_features(features, places, jnp.full(40_000, 1), jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(0), features[6:].mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(features[6:].T), atol=0.06)


def test_all_batches_are_one_program(monkeypatch):
    """However many pictures there are already."""
    made, _ = first()
    start()
    sizes = [f._cache_size() for f in (bootstrap._earlier_views, bootstrap._blend)]
    some = np.where(np.arange(len(LABELS)) < 2 * NUM_CLASSES, LABELS, -1)
    start(9, made.images, some)
    assert [f._cache_size() for f in (bootstrap._earlier_views, bootstrap._blend)] == sizes
    chex.assert_tree_all_finite(start(9, made.images, some))


def test_mistakes_are_told():
    network, (made, memory) = trained().network, first()
    with pytest.raises(ValueError, match="no picture of class 3 yet; make the first"):
        start(picture_labels=np.minimum(LABELS, 2))
    with pytest.raises(ValueError, match="12 pictures and 11 labels; give one each"):
        remember_pictures(network, made.images, LABELS[:11], jax.random.key(0))
    with pytest.raises(TypeError, match="as they are stored"):
        start(pictures=made.images / 255.0)
    few = remember_pictures(network, made.images[:3], LABELS[:3], jax.random.key(0))
    with pytest.raises(ValueError, match="no picture of class 3 yet"):
        start_from_pictures(network, few, made.images, LABELS, LABELS, jax.random.key(0))
    assert memory.classes.tolist() == list(range(NUM_CLASSES))
