import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import MEAN
from small_network import SHAPE
from small_network import STD
from small_network import blobs
from small_network import trained

from jaxpmi.augment import normalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import CfsConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import padded_batches
from jaxpmi.features.layouts import layouts_of
from jaxpmi.inversion import variants
from jaxpmi.memory import draw_features
from jaxpmi.memory import merge_moments
from jaxpmi.remember import Samples
from jaxpmi.remember import empty_memory
from jaxpmi.remember import remember
from jaxpmi.remember import update_memory
from jaxpmi.types import Moments

CONFIG = InversionConfig(
    variant="resnet",
    targets="gaussian",
    batch_size=24,  # divides no count below, so that there is padding
    per_layer=PerLayerConfig(start="gaussian", num_steps=1),
)
SETTINGS = CfsConfig(num_epochs=2)


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    """Of block inverses: what is hardly there in so few images is mostly rounding."""
    rows = {
        name: dataclasses.replace(row, inverse_rank=4)
        for name, row in variants.INVERSION_VARIANTS.items()
    }
    monkeypatch.setattr(variants, "INVERSION_VARIANTS", rows)


def empty(config=CONFIG, **options):
    return empty_memory(trained().network, config, SETTINGS, **options)


def all_of(part):
    return part.read(np.arange(len(part.labels)))


def images_of(classes, num_per_class, seed):
    images, labels = blobs(num_per_class, seed=seed)
    chosen = np.flatnonzero(np.isin(labels, classes))
    return LabelledSamples(lambda rows: images[chosen[rows]], labels[chosen])


NONE = LabelledSamples(np.zeros((0, *SHAPE), np.uint8).__getitem__, np.zeros(0, np.int32))
FIRST, SECOND = images_of([0, 1], 10, seed=1), images_of([2, 3], 17, seed=2)
REPLAY = images_of([0, 1], 13, seed=3)


def update(memory, real, replay, config=CONFIG):
    parts = [
        Samples(
            functools.partial(padded_batches, part, config.batch_size),
            len(part.labels),
            is_real,
            part.first_block,
        )
        for part, is_real in ((real, True), (replay, False))
    ]
    return update_memory(
        memory,
        trained().network,
        parts,
        jax.random.key(0),
        config=config,
        settings=SETTINGS,
        capacity=34,
        max_images=70,
    )


def features_of(part):
    return np.asarray(forward(normalise(all_of(part), MEAN, STD)).features)


def forward(x):
    """All that the network makes of normalised images."""
    network = trained().network
    return jax.jit(functools.partial(blockwise.forward, network.model))(network.variables, x)


@functools.cache
def memories():
    """After a first task with classes 0 and 1, and after a second with 2 and 3."""
    first = update(empty(), FIRST, NONE)
    return first, update(first, SECOND, REPLAY)


def test_new_classes_are_described_by_real_images_and_old_ones_by_synthetic_ones():
    first, second = memories()
    for memory, parts in ((first, {0: FIRST, 1: FIRST}), (second, {0: REPLAY, 3: SECOND})):
        for label, part in parts.items():
            members = features_of(part)[part.labels == label]
            stats = memory.class_stats
            assert int(stats.count[label]) == len(members)
            np.testing.assert_allclose(stats.mean[label], members.mean(0), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(stats.cov[label], members.var(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(first.class_stats.count[2:], 0.0)
    np.testing.assert_array_equal(first.class_stats.cov[2:], 1.0)


def test_full_covariances_are_kept_if_asked():
    full = dataclasses.replace(CONFIG, variant="standard")
    memory = update(empty(full), SECOND, NONE, full)
    members = features_of(SECOND)[SECOND.labels == 3]
    np.testing.assert_allclose(
        memory.class_stats.cov[3], np.cov(members.T, bias=True), rtol=1e-3, atol=1e-3
    )


def test_moments_of_layer_inputs_are_merged_where_they_are_kept():
    """Batches of 24 divide no count here: what pads an image batch must not count."""
    kept = trained().network.variables.batch_stats
    first = update(empty(layer_moments=kept), FIRST, NONE)
    second = update(first, SECOND, REPLAY)
    x = normalise(jnp.concatenate([all_of(FIRST), all_of(SECOND)]), MEAN, STD)
    wanted = forward(x).moments
    assert jax.tree.structure(second.layer_moments) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4),
        second.layer_moments,
        wanted,
    )
    assert memories()[1].layer_moments == {}


def test_layer_knowledge_is_that_of_the_union_of_all_real_images():
    """One network for both tasks here, so merged moments equal those of all images at once."""
    first, second = memories()
    everything = np.concatenate([all_of(FIRST), all_of(SECOND)])
    x = np.asarray(normalise(jnp.asarray(everything), MEAN, STD))
    wanted = forward(x).block_inputs
    assert int(first.num_images) == 20 and int(second.num_images) == 54
    assert len(second.block_inputs) == len(wanted) == 5
    for got, want in zip(second.block_inputs, wanted, strict=True):
        np.testing.assert_allclose(got.mean, want.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got.var, want.var, rtol=1e-3, atol=1e-4)
    counts = np.bincount(everything.ravel(), minlength=256)
    np.testing.assert_array_equal(second.histogram.sum(1), counts)
    power = np.square(np.abs(np.fft.rfft2(x, axes=(1, 2)))).mean(0)
    np.testing.assert_allclose(second.spectrum, power, rtol=1e-3, atol=1e-3)
    # Synthetic images would have moved it.
    with_replay = np.concatenate([x, np.asarray(normalise(all_of(REPLAY), MEAN, STD))])
    moved = np.square(np.abs(np.fft.rfft2(with_replay, axes=(1, 2)))).mean(0)
    assert np.abs(second.spectrum - moved).max() > 1e-2


def test_layouts_are_those_of_real_images_whatever_synthetic_ones_look_like():
    """So what is known of old classes does not fade, and is there only where it is used."""
    per_layer = dataclasses.replace(CONFIG.per_layer, start="layout")
    config = dataclasses.replace(CONFIG, per_layer=per_layer)
    first = update(empty(config), FIRST, NONE, config)
    second = update(first, SECOND, REPLAY, config)
    np.testing.assert_array_equal(first.layouts.count, [10, 10, 0, 0])
    np.testing.assert_array_equal(second.layouts.count, [10, 10, 17, 17])
    np.testing.assert_array_equal(second.layouts.mean[:2], first.layouts.mean[:2])
    for part, label in ((FIRST, 0), (SECOND, 3)):
        x = layouts_of(normalise(all_of(part)[part.labels == label], MEAN, STD))
        np.testing.assert_allclose(second.layouts.mean[label], x.mean(0), rtol=1e-4, atol=1e-5)
    assert memories()[1].layouts is None
    of_maps = dataclasses.replace(config, variant="published_clip")
    assert empty(of_maps).layouts is None


@pytest.mark.parametrize(("num_a", "num_b"), [(3, 7), (0, 4), (5, 1)])
def test_merged_moments_are_those_of_the_union(num_a, num_b):
    x = np.random.default_rng(0).normal(size=(num_a + num_b, 3)).astype(np.float32)
    x[num_a:] += 5.0
    a, b = x[:num_a], x[num_a:]
    moments = lambda x: Moments(jnp.asarray(x.mean(0)), jnp.asarray(x.var(0)))  # noqa: E731
    nothing = Moments(jnp.zeros(3), jnp.ones(3))
    got = merge_moments(moments(a) if num_a else nothing, float(num_a), moments(b), float(num_b))
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.var, x.var(0), rtol=1e-4)


def test_feature_models_are_fitted_only_for_cfs():
    cfs = dataclasses.replace(CONFIG, targets="cfs")
    start = empty(cfs)
    others = update(start, FIRST, NONE)
    for a, b in zip(
        jax.tree.leaves(others.feature_models), jax.tree.leaves(start.feature_models), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    memory = update(start, FIRST, NONE, cfs)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(memory.feature_models) == shapes(start.feature_models)
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(
            jax.tree.leaves(memory.feature_models),
            jax.tree.leaves(start.feature_models),
            strict=True,
        )
    )
    # Where CFS is not used they take no space.
    first, _ = memories()
    assert all(leaf.size == 0 for leaf in jax.tree.leaves(first.feature_models))


def test_synthetic_samples_may_be_inputs_of_a_later_block():
    """Made of images, they tell the same of the classes and of all blocks from there on."""
    network = trained().network
    per_layer = dataclasses.replace(CONFIG.per_layer, start="inverse")
    inverse = dataclasses.replace(CONFIG, per_layer=per_layer)
    later = dataclasses.replace(inverse, variant="published_clip")
    images = normalise(jnp.asarray(all_of(REPLAY)), MEAN, STD)
    maps = np.asarray(blockwise.block_input(network.model, network.variables, images, 1))
    replay = LabelledSamples(maps.__getitem__, REPLAY.labels, first_block=1)
    of_images, of_maps = (
        update(empty(config), SECOND, part, config)
        for part, config in ((REPLAY, inverse), (replay, later))
    )
    assert of_maps.inverses[0] == () and of_images.inverses[0] != ()
    wanted = of_images._replace(inverses=((), *of_images.inverses[1:]))
    assert jax.tree.structure(of_maps) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(of_maps), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(theirs).max(initial=1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2 * scale)


def test_inverses_give_every_class_the_same_say():
    """Twice as many synthetic images of the old classes change nothing."""
    per_layer = dataclasses.replace(CONFIG.per_layer, start="inverse")
    config = dataclasses.replace(CONFIG, per_layer=per_layer)
    few = images_of([0, 1], 6, 5)
    size = len(few.labels)
    twice = LabelledSamples(lambda rows: few.read(rows % size), np.tile(few.labels, 2))
    once = update(empty(config), SECOND, images_of([0, 1], 6, 5), config).inverses
    doubled = update(empty(config), SECOND, twice, config).inverses
    assert len(once) == 5
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(doubled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * np.abs(a).max(initial=1e-3))
    # But other images do.
    other = update(empty(config), SECOND, REPLAY, config).inverses
    assert np.abs(once[-1].weight - other[-1].weight).max() > 0.02 * np.abs(once[-1].weight).max()
    first, _ = memories()
    assert first.inverses == ()


# `remember`, which describes data once.


def batches_of(part, size=24):
    images = all_of(part)
    return [(images[i : i + size], part.labels[i : i + size]) for i in range(0, len(images), size)]


def test_remember_is_one_update_of_an_empty_memory():
    """In batches of any size, the last one smaller."""
    want = update(empty(), SECOND, NONE)
    got = remember(trained().network, batches_of(SECOND), config=CONFIG, settings=SETTINGS)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_features_are_drawn_for_classes_that_were_seen():
    first, _ = memories()
    labels = np.repeat([0, 1], 500)
    drawn = np.asarray(draw_features(first, jnp.asarray(labels), jax.random.key(0)))
    for label in (0, 1):
        mean, var = first.class_stats.mean[label], first.class_stats.cov[label]
        error = np.abs(drawn[labels == label].mean(0) - mean)
        assert (error <= 5 * np.sqrt(var / 500) + 1e-6).all()
    gap = np.abs(first.class_stats.mean[0] - first.class_stats.mean[1])
    assert (gap > 10 * np.sqrt(first.class_stats.cov[:2].max(0) / 500)).any(), "or it shows nothing"
    with pytest.raises(ValueError, match="has seen no image of class 2; ask for classes"):
        draw_features(first, jnp.asarray([0, 2]), jax.random.key(0))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "got no batch of images; give at least one"),
        (iter([]), ValueError, "can be read only once, but remember reads them twice"),
        ([(np.zeros((2, *SHAPE), np.uint8), np.zeros(1, np.int32))], ValueError,
         "has 2 images and 1 labels; give one each"),
        ([(np.zeros((1, *SHAPE), np.uint8), np.asarray([4]))], ValueError,
         "labels range from 4 to 4, but the network has 4 classes"),
        ([(np.zeros((1, *SHAPE), np.float32), np.asarray([0]))], TypeError, "as they are stored"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        remember(trained().network, batches, config=CONFIG)
