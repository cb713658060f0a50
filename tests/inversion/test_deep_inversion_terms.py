"""The terms and the schedule of DeepInversion against the formulas written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import model_of
from rows import piece
from rows import sized
from rows import variables_of

from jaxpmi.blocks import blockwise
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion.deep_inversion import competition
from jaxpmi.inversion.deep_inversion import learning_rates
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.models.init_network import init_backbone
from jaxpmi.types import Moments

ARCHITECTURE = chain(piece(resnet.Stem, 3), piece(resnet.ResidualBlock, 4, stride=2, pool=True))
SHAPE, BATCH, KEY = (8, 8, 2), 8, jax.random.key(0)
MODEL = model_of(ARCHITECTURE, SHAPE)
FIRST, SECOND = np.asarray([[1.0, 2.0, 3.0]]), np.asarray([[3.0, 1.0, 0.0]])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def network():
    """A random network whose every gamma is alive."""
    fresh = variables_of(ARCHITECTURE, KEY, SHAPE)
    leaves, structure = jax.tree.flatten(fresh.params)
    leaves = [x + 0.3 * normal(i, *x.shape) for i, x in enumerate(leaves)]
    return fresh._replace(params=jax.tree.unflatten(structure, leaves))


# Statistics.


def distances(moments, stored):
    """|mean - mean| + |var - var| of every layer, in float64."""
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    pairs = zip(*(jax.tree.leaves(t, is_leaf=is_moments) for t in (moments, stored)), strict=True)
    norm = lambda a, b: np.sqrt(np.square(np.asarray(a, np.float64) - b).sum())  # noqa: E731
    return [norm(m.mean, s.mean) + norm(m.var, s.var) for m, s in pairs]


def test_a_batch_is_at_no_distance_from_its_own_moments():
    x, variables = normal(1, BATCH, *SHAPE), network()
    own = blockwise.forward(MODEL, variables, x, train=True).moments
    variables = variables._replace(batch_stats=own)

    def distance(x):
        moments = blockwise.forward(MODEL, variables, x).moments
        return objectives.batch_norm_distance(MODEL, moments, own, first_factor=10.0)

    value, grad = jax.jit(jax.value_and_grad(distance))(x)
    assert 0 <= value < 1e-4 and np.isfinite(grad).all()
    exact = lambda m: objectives.batch_norm_distance(MODEL, m, own)  # noqa: E731
    for leaf in jax.tree.leaves(jax.grad(exact)(own)):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize("factor", [1.0, 10.0, 0.0])
def test_the_distance_against_numpy_with_a_factor_on_the_first_layer_only(factor):
    stored = network().batch_stats
    moments = blockwise.forward(MODEL, network(), normal(2, BATCH, *SHAPE)).moments
    first, *others = distances(moments, stored)
    assert len(others) == 2
    value = objectives.batch_norm_distance(MODEL, moments, stored, first_factor=factor)
    np.testing.assert_allclose(value, factor * first + sum(others), rtol=1e-5)
    swap = lambda m: {**m, "block01": {"bn1": m["block01"]["bn2"], "bn2": m["block01"]["bn1"]}}  # noqa: E731
    again = objectives.batch_norm_distance(MODEL, swap(moments), swap(stored), first_factor=factor)
    np.testing.assert_allclose(again, value, rtol=1e-6)


def test_the_relative_distance_against_numpy_and_in_other_units():
    stored = network().batch_stats
    moments = blockwise.forward(MODEL, network(), normal(2, BATCH, *SHAPE)).moments
    stats = {k: jax.tree.map(lambda x: x + 0.3 * jnp.arange(x.size), v) for k, v in stored.items()}
    first, *others = relative_distances(moments, stats)
    distance = functools.partial(objectives.batch_norm_distance, MODEL, relative=True)
    value = distance(moments, stats, first_factor=10.0)
    np.testing.assert_allclose(value, 10.0 * first + sum(others), rtol=1e-5)
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    doubled = functools.partial(
        jax.tree.map, lambda m: Moments(2.0 * m.mean, 4.0 * m.var), is_leaf=is_moments
    )
    again = distance(doubled(moments), doubled(stats), first_factor=10.0)
    np.testing.assert_allclose(again, value, rtol=1e-5)


def relative_distances(moments, stored):
    """Root mean square over channels, in stored deviations, of every layer."""
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    pairs = zip(*(jax.tree.leaves(t, is_leaf=is_moments) for t in (moments, stored)), strict=True)
    rms = lambda x: np.sqrt(np.square(np.asarray(x, np.float64)).mean())  # noqa: E731
    return [
        rms((m.mean - s.mean) / np.sqrt(s.var)) + rms((m.var - s.var) / s.var) for m, s in pairs
    ]


def test_batch_moments_are_biased():
    x = normal(3, BATCH, *SHAPE)
    seen = blockwise.channel_moments(x)
    np.testing.assert_allclose(seen.mean, x.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(seen.var, x.var((0, 1, 2), ddof=0), rtol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_channels_that_the_network_never_uses_are_harmless(relative):
    """EfficientNet-Lite0 has 130 whose running variance is exactly 0, as is the batch's."""
    params, stats = network()
    kernel = params["block00"]["conv/kernel"].at[..., 0].set(0.0)
    params = {**params, "block00": {**params["block00"], "conv/kernel": kernel}}
    dead = jax.tree.map(lambda s: s.at[0].set(0.0), stats["block00"])
    with_dead = blockwise.Variables(params, {**stats, "block00": dead})

    def distance(x):
        moments = blockwise.forward(MODEL, with_dead, x).moments
        stored = with_dead.batch_stats
        return objectives.batch_norm_distance(MODEL, moments, stored, relative=relative)

    value, grad = jax.jit(jax.value_and_grad(distance))(normal(1, BATCH, *SHAPE))
    assert np.isfinite(value) and np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_every_layer_of_a_stack_counts():
    model, variables = init_backbone(sized(vit.vit_small, width=16), KEY, (8, 8, 2))
    run = jax.jit(functools.partial(blockwise.forward, model))
    moments = run(variables, normal(1, 4, 8, 8, 2)).moments
    layers = [jax.tree.map(lambda m, i=i: m[i], (moments, variables.batch_stats)) for i in range(4)]
    per_layer = [distances(*layer) for layer in layers]
    want = np.sum(per_layer) + 9.0 * per_layer[0][0]  # the first block's attention comes first
    value = objectives.batch_norm_distance(model, moments, variables.batch_stats, first_factor=10.0)
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_a_network_without_moments_is_an_error():
    model = model_of(chain(piece(resnet.Stem, 3, activation=False)), SHAPE)
    with pytest.raises(ValueError, match="the network keeps no moments of any layer"):
        objectives.batch_norm_distance(model, {"block00": {}}, {"block00": {}})


# Priors.


def test_total_variation_of_a_ramp_and_of_a_constant():
    ramp = (np.arange(4)[:, None] + 2.0 * np.arange(4)).astype(np.float32)[None, :, :, None]
    np.testing.assert_allclose(priors.total_variation(ramp, norm="batch_l2"), 22.392305, rtol=1e-6)
    np.testing.assert_allclose(priors.total_variation(ramp, norm="l1"), 7.0, rtol=1e-6)
    for norm in ("l1", "batch_l2"):
        flat = functools.partial(priors.total_variation, norm=norm)
        value, grad = jax.value_and_grad(flat)(jnp.full((2, 4, 4, 3), 0.7))
        assert value == 0.0 and np.isfinite(grad).all()


def test_norms_of_equal_images():
    @jax.jit
    def norms(x):
        variation = [priors.total_variation(x, norm=n) for n in ("batch_l2", "l1", "l2")]
        return [*variation, *(priors.pixel_norm(x, norm=n) for n in ("batch", "image"))]

    one = normal(1, 1, 5, 6, 2)
    ratios = np.divide(norms(np.repeat(one, 9, 0)), norms(one))
    np.testing.assert_allclose(ratios, [3.0, 1.0, 1.0, 3.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(norms(one)[3:], np.sqrt(np.square(one).sum()), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(priors.pixel_norm)(jnp.zeros((2, 4, 4, 1))), 0.0)


# Competition.


def test_jensen_shannon_numbers():
    for temperature, want in ((1.0, 0.3531536), (3.0, 0.0571212)):
        for pair in ((FIRST, SECOND), (SECOND, FIRST)):
            np.testing.assert_allclose(
                objectives.jensen_shannon(*pair, temperature), want, atol=1e-6
            )
    assert abs(objectives.jensen_shannon(FIRST, FIRST + 5.0, 1.0)) < 1e-7
    disjoint = objectives.jensen_shannon(*100.0 * np.eye(10)[None, :2].swapaxes(0, 1), 1.0)
    np.testing.assert_allclose(disjoint, 0.693147, atol=1e-6)
    grad = jax.grad(objectives.jensen_shannon)(
        jnp.asarray([[-1e9, 1.0]]), jnp.asarray([[-1e9, 0.0]]), 3.0
    )
    assert np.isfinite(grad).all()


def test_reference_divergence_numbers():
    for temperature, want in ((1.0, 0.5237850), (3.0, 0.0603558)):
        for pair in ((FIRST, SECOND), (SECOND, FIRST)):
            value = objectives.reference_divergence(*pair, temperature)
            np.testing.assert_allclose(value, want, atol=1e-6)
    for num_classes in (10, 1000):
        pair = [jnp.asarray(100.0 * np.eye(num_classes)[i : i + 1]) for i in (0, 1)]
        np.testing.assert_allclose(
            objectives.reference_divergence(*pair, 3.0), 1.6144631, rtol=1e-6
        )
        for name in ("published_cifar", "published_imagenet"):
            assert competition(*pair, variant=DEEP_INVERSION_VARIANTS[name]) == 0.0
        port = DEEP_INVERSION_VARIANTS["published_cmi"]
        np.testing.assert_allclose(competition(*pair, variant=port), -1.6144631, rtol=1e-6)
    # One-hot against even: the middle (.75, .25) is that of the probabilities before clamping.
    value = objectives.reference_divergence(jnp.asarray([[100.0, 0.0]]), jnp.zeros((1, 2)), 1.0)
    m, p, q = np.asarray([0.75, 0.25]), np.asarray([0.99, 0.01]), 0.5
    np.testing.assert_allclose(value, (m * np.log(m / np.sqrt(p * q))).sum(), rtol=1e-5)
    even = jnp.zeros((2, 1000))
    np.testing.assert_allclose(objectives.reference_divergence(even, even, 3.0), 0.0, atol=1e-6)


# The schedule.


def test_the_published_schedule():
    variant = DEEP_INVERSION_VARIANTS["published_imagenet"]
    rates = np.asarray(learning_rates(0.25, 2000, variant=variant))
    want = [0.0025, 0.125, 0.25, 0.25, 0.125, 1.71e-7]
    np.testing.assert_allclose(rates[[0, 49, 99, 100, 1050, 1999]], want, rtol=1e-3)
    variant = DEEP_INVERSION_VARIANTS["published_cifar"]
    constant = np.asarray(learning_rates(0.05, 4, variant=variant))
    np.testing.assert_allclose(constant, 0.05, rtol=1e-6)
