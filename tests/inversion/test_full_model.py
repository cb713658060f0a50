import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_case import Case
from method_case import changed
from rows import chain
from rows import model_of
from rows import piece
from rows import variables_of
from small_network import as_network

from jaxpmi.augment import pixel_range
from jaxpmi.blocks import blockwise
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion.full_model import learning_rates
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import INVERSION_VARIANTS
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.inversion.views import random_view
from jaxpmi.models import resnet
from jaxpmi.network import Head
from jaxpmi.remember import empty_memory

SHAPE, NUM_CLASSES, BATCH = (8, 8, 2), 3, 6
ARCHITECTURE = chain(piece(resnet.Stem, 3), piece(resnet.ResidualBlock, 4, stride=2, pool=True))
MODEL = model_of(ARCHITECTURE, SHAPE)
PUBLISHED = Case(FullModelConfig(num_steps=160, learning_rate=0.4), INVERSION_VARIANTS["resnet"])
MATCH = Case(  # of features alone
    FullModelConfig(num_steps=12, learning_rate=0.1, statistics_weight=0.0),
    InversionVariant(boost_weights=False, clip_pixels=False),
)
WEIGHTS = ("cross_entropy", "statistics", "total_variation")
MEAN, STD = np.asarray([0.4, 0.2], np.float32), np.asarray([0.4, 0.4], np.float32)
LOW, HIGH = (np.asarray(limit) for limit in pixel_range(MEAN, STD))  # [-1, -0.5], [1.5, 2]
KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def network():
    """A random one whose every gamma is alive."""
    fresh = variables_of(ARCHITECTURE, jax.random.key(0), SHAPE)
    leaves, structure = jax.tree.flatten(fresh.params)
    leaves = [x + 0.3 * normal(i, *x.shape) for i, x in enumerate(leaves)]
    variables = fresh._replace(params=jax.tree.unflatten(structure, leaves))
    head = Head(jnp.asarray(3.0 * normal(4, 4, NUM_CLASSES)))
    return as_network(MODEL, variables, head, image_shape=SHAPE, mean=MEAN, std=STD)


def targets(labels=(0, 1, 1, 0, 1, 0)):
    mask = np.asarray([True, True, False])
    return Targets(
        jnp.asarray(normal(3, BATCH, 4)),
        jnp.asarray(labels, jnp.int32),
        network().head,
        jnp.asarray(mask),
    )


def memory():
    """Of which refinement reads what is known of pixels."""
    empty = empty_memory(network(), InversionConfig())
    histogram, spectrum = jnp.ones_like(empty.histogram), jnp.ones_like(empty.spectrum)
    return empty._replace(histogram=histogram, spectrum=spectrum)


def refine(case, start=None, key=KEY, goal=None, known=None, **options):
    start = jnp.asarray(2.0 * normal(1, BATCH, *SHAPE)) if start is None else start
    goal = targets() if goal is None else goal
    known = memory() if known is None else known
    return refine_images(network(), start, goal, known, key, **case._asdict(), **options)


def unweighted_terms(x):
    """Every term at images x, written out."""
    variables, goal = network().variables, targets()
    out = blockwise.forward(MODEL, variables, x)
    logits = np.asarray(out.features @ goal.head.kernel, np.float64)[:, :2]  # class 2 is not seen
    picked = logits[np.arange(BATCH), np.asarray(goal.labels)]
    return {
        "feature_match": np.square(out.features - goal.features).mean(),
        "cross_entropy": (np.log(np.exp(logits).sum(1)) - picked).mean(),
        "statistics": objectives.statistics_loss(out.moments, variables.batch_stats),
        "total_variation": priors.total_variation(x),
    }


# The schedule.


def test_the_published_schedule():
    """docs/methods/pmi.md, eq. 11: the exact sequence of the code."""
    rates = np.asarray(learning_rates(*PUBLISHED))
    want = [0.08, 0.08, 0.16, 0.24, 0.32] + [0.4] * 80 + [0.2] * 40 + [0.1] * 35
    np.testing.assert_allclose(rates, want, rtol=1e-5)


def test_a_cosine_falls_from_the_peak_to_0():
    rates = np.asarray(learning_rates(*changed(PUBLISHED, num_steps=105, schedule="cosine")))
    np.testing.assert_allclose(rates[:6], [0.08, 0.08, 0.16, 0.24, 0.32, 0.4], rtol=1e-5)
    want = 0.2 * (1.0 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(rates[5:], want, atol=1e-6)


def test_a_schedule_may_be_longer_than_the_run():
    """PMI for CLIP: 600 steps of a cosine of 2000 fall to 79 % of the peak only."""
    config = FullModelConfig(num_steps=600, learning_rate=0.01)
    rates = np.asarray(learning_rates(config, INVERSION_VARIANTS["published_clip"]))
    assert rates.shape == (600,)
    want = 0.005 * (1.0 + np.cos(np.pi * np.arange(600) / 2000))
    np.testing.assert_allclose(rates, want, rtol=1e-5)
    np.testing.assert_allclose(rates[-1] / rates[0], 0.794, atol=1e-3)
    step = np.asarray(learning_rates(*changed(PUBLISHED, schedule_steps=320)))
    np.testing.assert_allclose(step[5:], 0.4, rtol=1e-5)  # the halvings are still to come


@pytest.mark.parametrize("schedule", ["step", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_few_steps_have_a_schedule_too(schedule, steps):
    for warmup in (0, 1, 5):
        options = {"num_steps": steps, "warmup_steps": warmup, "schedule": schedule}
        rates = np.asarray(learning_rates(*changed(PUBLISHED, **options)))
        assert rates.shape == (steps,) and (rates > 0).all() and rates.max() <= 0.4 + 1e-6


# The terms.


@pytest.mark.parametrize("name", ["feature_match", *WEIGHTS])
def test_a_term_alone_has_its_value_and_falls(name):
    weight = 1.0 if name == "feature_match" else 2.5
    case = MATCH if name == "feature_match" else changed(MATCH, **{f"{name}_weight": weight})
    start = jnp.asarray(2.0 * normal(1, BATCH, *SHAPE))
    want = float(unweighted_terms(start)[name])
    solution = refine(case, start, labels_only=name != "feature_match")
    assert set(solution.terms) == {name}, "terms of weight 0 are left out"
    np.testing.assert_allclose(solution.losses[0], weight * want, rtol=1e-4)
    np.testing.assert_allclose(
        solution.loss, weight * unweighted_terms(solution.x)[name], rtol=1e-3
    )
    assert solution.loss < 0.9 * solution.losses[0]


def test_all_terms_together_are_weighted_and_added():
    weights = dict(zip(WEIGHTS, (0.5, 0.25, 0.1), strict=True))
    case = changed(MATCH, **{f"{k}_weight": v for k, v in weights.items()}, num_steps=3)
    start = jnp.asarray(2.0 * normal(1, BATCH, *SHAPE))
    terms = unweighted_terms(start)
    want = terms["feature_match"] + sum(weights[name] * terms[name] for name in WEIGHTS)
    np.testing.assert_allclose(refine(case, start).losses[0], want, rtol=1e-4)


def test_labels_are_reached():
    config = changed(MATCH, cross_entropy_weight=1.0, num_steps=60)
    for labels in ([0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1]):
        goal = targets(labels)
        solution = refine(config, goal=goal, labels_only=True)
        logits = blockwise.forward(MODEL, network().variables, solution.x).features
        logits = logits @ goal.head.kernel
        np.testing.assert_array_equal(logits[:, :2].argmax(1), labels)


def test_the_last_iterate_is_returned_if_asked():
    """It lies after the last update, so its loss is none of those before the steps."""
    config = changed(MATCH, learning_rate=5.0)
    best, last = refine(config), refine(changed(config, iterate="last"))
    np.testing.assert_array_equal(best.losses, last.losses)
    assert np.abs(last.loss / np.asarray(last.losses) - 1.0).min() > 1e-3
    np.testing.assert_allclose(last.loss, unweighted_terms(last.x)["feature_match"], rtol=1e-3)


def test_total_variation_has_the_norm_asked_for():
    start = jnp.asarray(2.0 * normal(1, BATCH, *SHAPE))
    want = float(priors.total_variation(start, norm="l2"))
    config = changed(MATCH, total_variation_weight=2.5, total_variation_norm="l2")
    solution = refine(config, start, labels_only=True)
    np.testing.assert_allclose(solution.losses[0], 2.5 * want, rtol=1e-4)
    assert solution.loss < 0.9 * solution.losses[0]


# Pixels.


def test_pixels_stay_in_their_range_from_the_start_on():
    config = changed(MATCH, clip_pixels=True, num_steps=8)
    start = 3.0 * normal(1, BATCH, *SHAPE)
    low, high = LOW.reshape(1, 1, 1, -1), HIGH.reshape(1, 1, 1, -1)
    want = float(unweighted_terms(jnp.asarray(np.clip(start, low, high)))["feature_match"])
    solution = refine(config, jnp.asarray(start))
    np.testing.assert_allclose(solution.losses[0], want, rtol=1e-4)
    x = np.asarray(solution.x)
    assert (x >= low).all() and (x <= high).all()
    for channel in range(2):
        assert (x[..., channel] == LOW[channel]).any() and (x[..., channel] == HIGH[channel]).any()
    free = np.asarray(refine(changed(config, clip_pixels=False), jnp.asarray(start)).x)
    assert (free < low).any() and (free > high).any()


def test_weights_are_boosted_only_if_asked():
    """From the very images of the target features that term can only grow: boosting pulls back."""
    config = changed(MATCH, statistics_weight=1.0)
    start = 2.0 * normal(1, BATCH, *SHAPE)
    features = blockwise.forward(MODEL, network().variables, start).features
    goal = targets()._replace(features=features)
    plain = refine(config, jnp.asarray(start), goal=goal)
    config = changed(config, boost_weights=True)
    boosted = refine(config, jnp.asarray(start), goal=goal)
    np.testing.assert_array_equal(plain.losses[:2], boosted.losses[:2])
    assert boosted.terms["feature_match"] < 0.9 * plain.terms["feature_match"]


def test_the_start_is_donated_and_new_data_is_not_compiled_again():
    config = changed(MATCH, num_steps=2)
    start = jnp.asarray(normal(1, BATCH, *SHAPE))
    refine(config, start)
    assert start.is_deleted()
    num_programs = refine_images._cache_size()
    refine(changed(config), jnp.asarray(normal(2, BATCH, *SHAPE)), jax.random.key(5))
    assert refine_images._cache_size() == num_programs


@pytest.mark.parametrize("term", ["spectrum", "histogram"])
def test_pixel_statistics_pull_the_batch_to_those_of_real_images(term):
    """Both at once, from grey; the histogram is measured on every pixel, not on the sample."""
    options = {"pixel_statistics_weight": 1.0, "clip_pixels": True, "num_steps": 60}
    config = changed(MATCH, learning_rate=0.2, **options)
    low, high = (limit.reshape(1, 1, 1, -1) for limit in (LOW, HIGH))
    real = np.random.default_rng(7).integers(0, 256, (BATCH, *SHAPE), np.uint8)
    known = memory()._replace(
        histogram=jnp.asarray(priors.pixel_histogram(real)),
        spectrum=priors.power_spectrum(low + (high - low) * real / np.float32(255)).mean(0),
    )

    def distance(x):
        if term == "spectrum":
            return float(priors.spectrum_distance(x, known.spectrum))
        pixels = ((x - low) / (high - low)).reshape(-1, SHAPE[-1])
        return float(priors.histogram_distance(pixels, known.histogram))

    start = jnp.asarray(0.05 * normal(1, BATCH, *SHAPE))
    before = distance(start)
    after = refine(config, start, known=known, labels_only=True).x
    assert distance(after) < 0.3 * before


def test_the_network_sees_views_of_the_images():
    """Shifted in every step, and mirrored in every other one: the same key gives the same views."""
    found = [
        refine(changed(MATCH, views=views, num_steps=8)).x
        for views in ("still", "shifted", "flipped", "flipped")
    ]
    *others, again = (np.asarray(x) for x in found)
    for i, x in enumerate(others):
        assert all(np.abs(x - y).max() > 0.01 for y in others[:i])
    np.testing.assert_array_equal(again, others[-1])


def test_a_single_step_descends_in_the_view_that_was_seen():
    """One step from a start: the loss of the view falls, whichever it was."""
    start = 2.0 * normal(1, BATCH, *SHAPE)
    config = changed(MATCH, views="flipped", num_steps=1, learning_rate=1e-3)
    solution = refine(config, jnp.asarray(start))
    key = jax.random.key(0)
    losses = [
        float(
            np.square(
                blockwise.forward(
                    MODEL,
                    network().variables,
                    random_view(
                        jnp.asarray(start), jax.random.fold_in(key, i), jitter_pixels=2, flip=True
                    ),
                ).features
                - targets().features
            ).mean()
        )
        for i in range(40)
    ]
    # The loss that was reported is that of one of the 50 views there are.
    assert np.abs(np.asarray(losses) - float(solution.losses[0])).min() < 1e-4
