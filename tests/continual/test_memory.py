import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import MEAN
from small_network import NUM_CLASSES
from small_network import SHAPE
from small_network import STD
from small_network import blobs
from small_network import trained

from jaxpmi.augment import normalise
from jaxpmi.config import CfsConfig
from jaxpmi.config import Config
from jaxpmi.config import InversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.continual.memory import update_memory
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.state import Memory
from jaxpmi.continual.state import merge_moments
from jaxpmi.features import contrastive
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.models import blockwise
from jaxpmi.types import Moments

CONFIG = Config(
    inversion=InversionConfig(
        targets="gaussian",
        covariance="diagonal",
        batch_size=24,  # divides no count below, so that there is padding
        per_layer=PerLayerConfig(start="gaussian", num_steps=1, inverse_rank=4),
    ),
    cfs=CfsConfig(num_epochs=2, batch_size=16, num_blocks=1),
)
FEATURES = 16


def empty_memory(inverses=(), layer_moments=None):
    net = trained()
    shapes = blockwise.block_input_shapes(net.model, net.variables, SHAPE)[:-1]
    return Memory(
        class_stats=init_class_stats(NUM_CLASSES, FEATURES),
        feature_models=contrastive.init(jax.random.key(0), NUM_CLASSES, FEATURES, num_blocks=1),
        block_inputs=tuple(Moments(jnp.zeros(s[-1]), jnp.ones(s[-1])) for s in shapes),
        pixels=Moments(jnp.zeros(SHAPE), jnp.ones(SHAPE)),
        histogram=jnp.zeros((256, SHAPE[-1])),
        spectrum=jnp.zeros((SHAPE[0], SHAPE[1] // 2 + 1, SHAPE[2])),
        layer_moments=layer_moments or {},
        num_images=jnp.zeros(()),
        inverses=inverses,
    )


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
    net = trained()
    return update_memory(
        memory,
        net.model,
        net.variables,
        real,
        replay,
        jnp.asarray(MEAN),
        jnp.asarray(STD),
        jax.random.key(0),
        config=config,
        capacity=34,
        max_images=70,
    )


def features_of(part):
    forward = jax.jit(functools.partial(blockwise.forward, trained().model))
    return np.asarray(forward(trained().variables, normalise(all_of(part), MEAN, STD)).features)


@functools.cache
def memories():
    """After a first task with classes 0 and 1, and after a second with 2 and 3."""
    first = update(empty_memory(), FIRST, NONE)
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
    inversion = dataclasses.replace(CONFIG.inversion, covariance="full")
    memory = update(empty_memory(), SECOND, NONE, dataclasses.replace(CONFIG, inversion=inversion))
    members = features_of(SECOND)[SECOND.labels == 3]
    np.testing.assert_allclose(
        memory.class_stats.cov[3], np.cov(members.T, bias=True), rtol=1e-3, atol=1e-3
    )


def test_moments_of_layer_inputs_are_merged_where_they_are_kept():
    """Batches of 24 divide no count here: what pads an image batch must not count."""
    net = trained()
    first = update(empty_memory(layer_moments=net.variables.batch_stats), FIRST, NONE)
    second = update(first, SECOND, REPLAY)
    x = normalise(jnp.concatenate([all_of(FIRST), all_of(SECOND)]), MEAN, STD)
    wanted = jax.jit(functools.partial(blockwise.forward, net.model))(net.variables, x).moments
    assert jax.tree.structure(second.layer_moments) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4),
        second.layer_moments,
        wanted,
    )
    assert memories()[1].layer_moments == {}


def test_layer_knowledge_is_that_of_the_union_of_all_real_images():
    """One network for both tasks here, so merged moments equal those of all images at once."""
    net = trained()
    first, second = memories()
    everything = np.concatenate([all_of(FIRST), all_of(SECOND)])
    x = np.asarray(normalise(jnp.asarray(everything), MEAN, STD))
    forward = jax.jit(functools.partial(blockwise.forward, net.model))
    wanted = forward(net.variables, x).block_inputs
    assert int(first.num_images) == 20 and int(second.num_images) == 54
    assert len(second.block_inputs) == len(wanted) == 5
    for got, want in zip(second.block_inputs, wanted, strict=True):
        np.testing.assert_allclose(got.mean, want.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got.var, want.var, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second.pixels.mean, x.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second.pixels.var, x.var(0), rtol=1e-3, atol=1e-4)
    counts = np.bincount(everything.ravel(), minlength=256)
    np.testing.assert_array_equal(second.histogram.sum(1), counts)
    power = np.square(np.abs(np.fft.rfft2(x, axes=(1, 2)))).mean(0)
    np.testing.assert_allclose(second.spectrum, power, rtol=1e-3, atol=1e-3)
    # Synthetic images would have moved it.
    with_replay = np.concatenate([x, np.asarray(normalise(all_of(REPLAY), MEAN, STD))])
    assert np.abs(second.pixels.mean - with_replay.mean(0)).max() > 1e-2


@pytest.mark.parametrize(("num_a", "num_b"), [(3, 7), (0, 4), (5, 1)])
def test_merged_moments_are_those_of_the_union(num_a, num_b):
    """T7."""
    x = np.random.default_rng(0).normal(size=(num_a + num_b, 3)).astype(np.float32)
    x[num_a:] += 5.0
    a, b = x[:num_a], x[num_a:]
    moments = lambda x: Moments(jnp.asarray(x.mean(0)), jnp.asarray(x.var(0)))  # noqa: E731
    empty = Moments(jnp.zeros(3), jnp.ones(3))
    got = merge_moments(moments(a) if num_a else empty, float(num_a), moments(b), float(num_b))
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.var, x.var(0), rtol=1e-4)


def test_feature_models_are_fitted_only_for_cfs():
    start = empty_memory()
    first, _ = memories()
    for a, b in zip(
        jax.tree.leaves(first.feature_models), jax.tree.leaves(start.feature_models), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    inversion = dataclasses.replace(CONFIG.inversion, targets="cfs")
    memory = update(start, FIRST, NONE, dataclasses.replace(CONFIG, inversion=inversion))
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


def test_synthetic_samples_may_be_inputs_of_a_later_block():
    """Made of images, they tell the same of the classes and of all blocks from there on."""
    net = trained()
    per_layer = dataclasses.replace(CONFIG.inversion.per_layer, start="inverse")
    inversion = dataclasses.replace(CONFIG.inversion, per_layer=per_layer)
    later = dataclasses.replace(inversion, space="patch_embeddings")
    images = normalise(jnp.asarray(all_of(REPLAY)), MEAN, STD)
    maps = np.asarray(blockwise.block_input(net.model, net.variables, images, 1))
    replay = LabelledSamples(maps.__getitem__, REPLAY.labels, first_block=1)
    of_images, of_maps = (
        update(empty_memory(), SECOND, part, dataclasses.replace(CONFIG, inversion=settings))
        for part, settings in ((REPLAY, inversion), (replay, later))
    )
    assert of_maps.inverses[0] == () and of_images.inverses[0] != ()
    wanted = of_images._replace(inverses=((), *of_images.inverses[1:]))
    assert jax.tree.structure(of_maps) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(of_maps), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(theirs).max(initial=1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2 * scale)


def test_inverses_give_every_class_the_same_say():
    """Twice as many synthetic images of the old classes change nothing."""
    per_layer = dataclasses.replace(CONFIG.inversion.per_layer, start="inverse")
    inversion = dataclasses.replace(CONFIG.inversion, per_layer=per_layer)
    config = dataclasses.replace(CONFIG, inversion=inversion)
    few = images_of([0, 1], 6, 5)
    size = len(few.labels)
    twice = LabelledSamples(lambda rows: few.read(rows % size), np.tile(few.labels, 2))
    once = update(empty_memory(), SECOND, images_of([0, 1], 6, 5), config).inverses
    doubled = update(empty_memory(), SECOND, twice, config).inverses
    assert len(once) == 5
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(doubled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * np.abs(a).max(initial=1e-3))
    # But other images do.
    other = update(empty_memory(), SECOND, REPLAY, config).inverses
    assert np.abs(once[-1].weight - other[-1].weight).max() > 0.02 * np.abs(once[-1].weight).max()
    first, _ = memories()
    assert first.inverses == ()
