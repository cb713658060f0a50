"""DeepInversion's views, stages and competition against the formulas written out in numpy."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_case import Case
from method_case import changed
from rows import chain
from rows import model_of
from rows import piece
from small_network import as_network
from small_network import fresh_network

from jaxpmi.augment import denormalise
from jaxpmi.augment import pixel_range
from jaxpmi.blocks import blockwise
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config.settings import annotations
from jaxpmi.inversion import deep_inversion as di
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import first_images
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.synthetic import label_agreement
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.inversion.variants import DeepInversionVariant
from jaxpmi.inversion.views import random_view
from jaxpmi.models import resnet
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import shard_batch

SHAPE, NUM_CLASSES, BATCH = (8, 8, 2), 3, 8
ARCHITECTURE = chain(piece(resnet.Stem, 3), piece(resnet.ResidualBlock, 4, stride=2, pool=True))
MODEL = model_of(ARCHITECTURE, SHAPE)
STUDENT_ARCHITECTURE = chain(piece(resnet.ResidualBlock, 3, pool=True))
STUDENT_MODEL = model_of(STUDENT_ARCHITECTURE, SHAPE)
LABELS = np.arange(BATCH, dtype=np.int32) % NUM_CLASSES
MEAN, STD = np.asarray([0.4, 0.2], np.float32), np.asarray([0.4, 0.4], np.float32)
LOW, HIGH = (np.asarray(limit) for limit in pixel_range(MEAN, STD))  # [-1, -0.5], [1.5, 2]
KEY = jax.random.key(0)
OFF = Case(
    DeepInversionConfig(
        stage_steps=(3,),
        cross_entropy_weight=0.0,
        statistics_weight=0.0,
        total_variation_weight=0.0,
        jitter_pixels=0,
    ),
    DeepInversionVariant(clip_pixels=False),
)
PLAIN = changed(OFF, cross_entropy_weight=1.0, statistics_weight=0.1)
WAVES = changed(PLAIN, parameters="spectrum")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def classifier(architecture=ARCHITECTURE, seed=0):
    """A random network whose every gamma is alive."""
    fresh = fresh_network(architecture, seed=seed, image_shape=SHAPE)
    leaves, structure = jax.tree.flatten(fresh.variables.params)
    leaves = [x + 0.3 * normal(seed + i, *x.shape) for i, x in enumerate(leaves)]
    variables = fresh.variables._replace(params=jax.tree.unflatten(structure, leaves))
    head = 3.0 * normal(seed + 4, fresh.feature_dim, NUM_CLASSES)
    return as_network(fresh.model, variables, head, image_shape=SHAPE, mean=MEAN, std=STD)


STUDENT = functools.partial(classifier, STUDENT_ARCHITECTURE, 7)


def invert(case, start=None, key=KEY, labels=LABELS, compete=False, **options):
    """The solution of `deep_inversion`, whose images are not yet rounded to what is stored."""
    start = jnp.asarray(normal(1, BATCH, *SHAPE) if start is None else start)
    options |= {"student": STUDENT()} if compete else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(di, "as_stored", lambda network, solution, labels, **rest: solution)
        return deep_inversion(classifier(), labels, key, **case._asdict(), start=start, **options)


@pytest.fixture
def scales(monkeypatch):
    """Sets what views are averaged down by, whatever the number of stages says."""

    def use(*scales):
        monkeypatch.setattr(di, "stage_scales", lambda config: scales)
        di._solve.clear_cache()  # of other scales

    yield use
    di._solve.clear_cache()


def logits_of(x, network=None):
    network = network or classifier()
    return network.head(blockwise.forward(network.model, network.variables, x).features)


def softmax(z):
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


# Views.


def test_one_shift_and_one_flip_serve_the_whole_batch():
    x = np.repeat(normal(1, 1, 6, 8, 2), 3, 0)
    seen = set()
    for i in range(60):
        view = np.asarray(random_view(x, jax.random.key(i), jitter_pixels=1, flip=True))
        np.testing.assert_array_equal(view, np.repeat(view[:1], 3, 0))
        found = [
            (dy, dx, flip)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            for flip in (1, -1)
            if np.array_equal(np.roll(view[..., ::flip, :], (-dy, -dx), (1, 2)), x)
        ]
        assert len(found) == 1, "shifting back (and mirroring back) gives the images"
        seen.add(found[0])
    assert len(seen) > 14, "of 18"


def test_the_shift_is_given_at_full_resolution():
    x = np.kron(normal(1, 1, 12, 12), np.ones((1, 2, 2)))[..., None].astype(np.float32)
    small, shifts = x[:, ::2, ::2], set()
    for i in range(30):
        view = np.asarray(random_view(x, jax.random.key(i), scale=2, jitter_pixels=5))
        shifts |= {d for d in range(-6, 6) if np.allclose(np.roll(small, d, 1).sum(2), view.sum(2))}
    assert shifts == set(range(-2, 3))


def test_averaging_pixels(scales):
    noise = normal(0, 16, 64, 64, 3)
    np.testing.assert_allclose(random_view(noise, KEY, scale=2).std(), 0.5, rtol=0.01)
    scales(2)
    config = changed(PLAIN, stage_steps=(1,), iterate="last")
    x = normal(1, BATCH, *SHAPE)
    step = np.asarray(invert(config, x).x) - x
    cells = step.reshape(BATCH, 4, 2, 4, 2, 2)
    np.testing.assert_allclose(
        cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape), atol=1e-5
    )
    assert np.abs(cells[:, 0] - cells[:, 1]).max() > 1e-3


@pytest.mark.parametrize(("kind", "norm"), [("augmented", "batch_l2"), ("plain", "l1")])
def test_the_smoothness_is_that_of_the_view_unless_asked_otherwise(scales, kind, norm):
    scales(2)
    x = normal(1, BATCH, *SHAPE)
    config = changed(OFF, total_variation_weight=2.0, total_variation_norm=norm)
    loss = invert(changed(config, total_variation_view=kind), x).losses[0]
    images = jnp.asarray(x) if kind == "plain" else random_view(x, KEY, scale=2)
    np.testing.assert_allclose(loss, 2.0 * priors.total_variation(images, norm=norm), rtol=1e-5)


def test_every_image_has_its_own_crop_of_the_common_view():
    x = np.repeat(normal(1, 1, *SHAPE), BATCH, 0)
    options = {"jitter_pixels": 2, "flip": True}
    whole = random_view(jnp.asarray(x), KEY, **options, crop_scale=(1.0, 1.0))
    crops = random_view(jnp.asarray(x), KEY, **options, crop_scale=(0.2, 0.5))
    assert crops.shape == x.shape
    assert len(np.unique(np.asarray(crops).round(4), axis=0)) > BATCH // 2
    common = np.asarray(random_view(jnp.asarray(x), KEY, **options))
    close = np.isclose(np.asarray(whole), common, atol=1e-5).all((1, 2, 3))
    assert close.any(), "a crop of everything, where its ratio of sides is 1, is the view itself"


def test_crops_are_what_the_network_sees():
    x = normal(1, BATCH, *SHAPE)
    config = changed(PLAIN, crop_scale=(0.2, 0.5), stage_steps=(1,), statistics_weight=0.0)
    views = random_view(
        jnp.asarray(x), jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), crop_scale=(0.2, 0.5)
    )
    picked = np.log(softmax(logits_of(views))[np.arange(BATCH), LABELS])
    np.testing.assert_allclose(invert(config, x).losses[0], -picked.mean(), rtol=1e-4)


# The procedure.


@pytest.mark.parametrize("form", ["paper", "reference", "negative"])
def test_the_competition_is_with_the_student_as_it_is_in_use(form):
    x = normal(1, BATCH, *SHAPE)
    config = changed(OFF, competition_weight=2.0, competition=form)
    pair = logits_of(x, STUDENT()), logits_of(x)
    p, q = (softmax(z / 3.0) for z in pair)
    m = (p + q) / 2
    if form == "paper":
        want = 1.0 - 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum(1).mean()
    else:
        p, q, m = (np.clip(z, 0.01, 0.99) for z in (p, q, m))
        divergence = 0.5 * (m * np.log(m / p) + m * np.log(m / q)).sum(1).mean()
        want = -divergence if form == "negative" else 1.0 - divergence
    solution = invert(config, x, compete=True)
    np.testing.assert_allclose(solution.losses[0], 2.0 * want, rtol=1e-4)
    assert solution.loss < solution.losses[0], "they come to disagree"


def test_pixels_stay_in_their_range():
    solution = invert(changed(PLAIN, clip_pixels=True), 3.0 * normal(1, BATCH, *SHAPE))
    unit = (np.asarray(solution.x) - LOW) / (HIGH - LOW)
    assert unit.min() >= -1e-6 and unit.max() <= 1 + 1e-6
    assert (unit < 1e-6).any() and (unit > 1 - 1e-6).any()
    np.testing.assert_array_equal(np.clip(solution.x, LOW, HIGH), solution.x)


def test_the_loss_falls_and_the_same_key_gives_the_same_images():
    config = changed(PLAIN, stage_steps=(50,), total_variation_weight=1e-3, learning_rate=0.05)
    one, two = invert(config), invert(config)
    assert one.losses.shape == (50,)
    assert one.loss < 0.5 * one.losses[0] and bool(one.finite)
    np.testing.assert_array_equal(one.x, two.x)


def test_images_are_returned_as_they_are_stored_with_the_share_that_is_right():
    """Also from noise, which is the start where none is given."""
    config = changed(PLAIN, stage_steps=(30,), clip_pixels=True, learning_rate=0.05)
    key_start, key = jax.random.split(KEY)
    want = invert(config, noise_start(jnp.asarray(LABELS), key_start, image_shape=SHAPE), key)
    got = deep_inversion(classifier(), LABELS, KEY, **config._asdict())
    assert got.images.dtype == np.uint8
    np.testing.assert_array_equal(got.images, denormalise(want.x, MEAN, STD))
    np.testing.assert_array_equal(got.losses, want.losses)
    assert got.loss == want.loss and got.terms == want.terms and bool(got.finite)
    assert got.agreement == label_agreement(classifier(), got.images, LABELS) > 0.5


def test_the_key_decides_the_views_of_every_stage():
    still = {"jitter_pixels": 2, "learning_rate": 1e-9}  # the views alone differ
    config = changed(PLAIN, **still, stage_steps=(3, 3))
    same, again, other = (
        invert(config, key=jax.random.key(k)).losses.reshape(2, 3) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(same, again)
    assert np.abs(np.subtract(same, other)).max() > 1e-5
    assert np.abs(same[0] - same[1]).max() > 1e-5


def test_a_loss_that_is_not_finite_is_told():
    config = changed(PLAIN, stage_steps=(1, 1))
    start = normal(1, BATCH, *SHAPE)
    start[0, 0, 0, 0] = np.nan
    assert not bool(invert(config, start).finite)


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.0, 0.999)])
def test_cross_entropy_alone_is_adam_on_its_gradient(betas):
    def loss(x):
        picked = jax.nn.log_softmax(logits_of(x))[jnp.arange(BATCH), LABELS]
        return -picked.mean()

    x, m, v = normal(1, BATCH, *SHAPE), 0.0, 0.0
    config = changed(
        OFF,
        cross_entropy_weight=1.0,
        adam_betas=betas,
        iterate="last",
        warmup_steps=2,
        learning_rate=0.2,
    )
    solution = invert(config, x)
    for i, rate in enumerate((0.1, 0.2, 0.2)):
        np.testing.assert_allclose(solution.losses[i], loss(x), rtol=1e-4)
        grad = np.asarray(jax.grad(loss)(x), np.float64)
        m, v = betas[0] * m + (1 - betas[0]) * grad, betas[1] * v + (1 - betas[1]) * grad**2
        scaled = m / (1 - betas[0] ** (i + 1)), v / (1 - betas[1] ** (i + 1))
        x = (x - rate * scaled[0] / (np.sqrt(scaled[1]) + 1e-8)).astype(np.float32)
    far = np.abs(np.asarray(solution.x) - x) > 1e-3  # where a gradient is about 1e-8
    assert far.mean() < 0.01


@pytest.mark.parametrize("unit", ["absolute", "relative"])
def test_all_terms_are_weighted_and_added(unit):
    x = normal(1, BATCH, *SHAPE)
    weights = {"cross_entropy": 1.0, "statistics": 0.5, "total_variation": 0.1, "pixel_norm": 2.0}
    config = changed(OFF, **{f"{k}_weight": w for k, w in weights.items()}, stage_steps=(1,))
    config = changed(config, first_statistics_factor=10.0, statistics_distance=unit)
    solution = invert(changed(config, pixel_norm="batch"), x)
    assert set(solution.terms) == set(weights), "terms of weight 0 are left out"
    moments = blockwise.forward(MODEL, classifier().variables, x).moments
    stored = classifier().variables.batch_stats
    distance = functools.partial(objectives.batch_norm_distance, MODEL, moments, stored)
    picked = np.log(softmax(logits_of(x))[np.arange(BATCH), LABELS])
    want = {
        "cross_entropy": -picked.mean(),
        "statistics": distance(first_factor=10.0, relative=unit == "relative"),
        "total_variation": priors.total_variation(x, norm="batch_l2"),
        "pixel_norm": np.sqrt(np.square(x).sum()),
    }
    for name, value in solution.terms.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4)
    np.testing.assert_allclose(solution.loss, sum(weights[k] * want[k] for k in want), rtol=1e-4)


def test_gradients_go_through_the_student_but_not_into_it():
    """Images alone are optimised."""
    x, kept = normal(1, BATCH, *SHAPE), jax.tree.map(np.array, STUDENT())
    config = changed(
        OFF, competition_weight=1.0, stage_steps=(1,), iterate="last", learning_rate=1e3
    )

    def loss(x):
        return 1.0 - objectives.jensen_shannon(logits_of(x, STUDENT()), logits_of(x), 3.0)

    # One step of Adam whose size is 1e3 times sign: its direction is the gradient's.
    step, grad = invert(config, x, compete=True).x - x, np.asarray(jax.grad(loss)(x))
    assert (np.sign(step) == -np.sign(grad))[np.abs(grad) > 1e-6].mean() > 0.99
    for before, after in zip(jax.tree.leaves(kept), jax.tree.leaves(STUDENT()), strict=True):
        np.testing.assert_array_equal(before, after)


CHECKERBOARD = np.where(np.indices((8, 8)).sum(0) % 2, 2.5, -2.4).astype(np.float32)
CHECKERBOARD = np.broadcast_to(CHECKERBOARD[None, :, :, None], (BATCH, *SHAPE))


@pytest.mark.parametrize("compare", [False, True])
def test_every_stage_keeps_its_own_best_iterate(compare):
    """At half the resolution a checkerboard is grey: the first stage's norm is the smaller one.

    Steps of 0.4 overshoot the best of the second stage as well: |x| falls from 2.4 and rises again.
    """
    config = changed(
        OFF,
        pixel_norm_weight=1.0,
        stage_steps=(3, 12),
        learning_rate=0.4,
        compare_stages=compare,
    )
    solution = invert(config, CHECKERBOARD)
    coarse, fine = np.split(np.asarray(solution.losses), [3])
    assert coarse.argmin() == 0 and 0 < fine.argmin() < 11 and coarse.min() < fine.min()
    np.testing.assert_array_equal(solution.loss, (coarse if compare else fine).min())
    view = random_view(solution.x, KEY, scale=2 if compare else 1)
    np.testing.assert_allclose(priors.pixel_norm(view), solution.loss, rtol=1e-5)
    np.testing.assert_allclose(fine[0], priors.pixel_norm(CHECKERBOARD), rtol=1e-5)
    np.testing.assert_array_equal(solution.terms["pixel_norm"], solution.loss)


def test_the_last_iterate_is_returned_and_goes_on_if_asked(scales):
    scales(1, 1)
    config = changed(OFF, pixel_norm_weight=1.0, stage_steps=(12, 1), learning_rate=0.4)
    best, last = (invert(changed(config, iterate=i), CHECKERBOARD) for i in ("best", "last"))
    np.testing.assert_array_equal(best.losses[:12], last.losses[:12])
    np.testing.assert_array_equal(best.losses[12], best.losses[:12].min())
    assert np.abs(last.losses[12] - np.asarray(last.losses[:12])).min() > 1e-3


def test_unknown_classes_have_no_say():
    x, mask = normal(1, BATCH, *SHAPE), np.asarray([True, False, True])
    solution = invert(
        changed(OFF, cross_entropy_weight=1.0), x, labels=2 * (LABELS // 2), class_mask=mask
    )
    log = np.log(softmax(logits_of(x)[:, mask]))[np.arange(BATCH), LABELS // 2]
    np.testing.assert_allclose(solution.losses[0], -log.mean(), rtol=1e-4)


# Precision and devices.


def test_bfloat16_is_close_and_its_statistics_are_float32():
    config = changed(PLAIN, stage_steps=(3,))
    full, half = (invert(changed(config, forward_precision=p)) for p in ("float32", "bfloat16"))
    assert half.x.dtype == half.loss.dtype == jnp.float32
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.02)
    assert np.abs(half.losses - full.losses).max() > 1e-6, "it is another precision"
    low = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    variables = classifier().variables
    x = normal(1, 64, 32, 32, 2)
    run = jax.jit(functools.partial(blockwise.forward, MODEL))
    exact = run(variables, x)
    rounded = run(variables._replace(params=low(variables.params)), low(x))
    assert rounded.features.dtype == jnp.bfloat16
    for a, b in zip(*map(jax.tree.leaves, (exact.moments, rounded.moments)), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(b, a, rtol=0.02, atol=3e-3)
    # 65,536 numbers that bfloat16 has, and whose sum it has not.
    ones = jnp.ones((64, 32, 32, 1), jnp.bfloat16).at[0].set(2.0)
    np.testing.assert_allclose(blockwise.channel_moments(ones).mean, 1.0 + 1 / 64, rtol=1e-6)


def test_eight_devices_give_the_images_of_one():
    config = changed(PLAIN, jitter_pixels=2, flip=True)
    x = normal(1, 16, *SHAPE)
    labels = np.arange(16, dtype=np.int32) % NUM_CLASSES
    one = invert(config, x, labels=labels)
    eight = invert(config, **shard_batch({"start": x, "labels": labels}, make_mesh(8)))
    assert eight.x.addressable_shards[0].data.shape == (2, *SHAPE)
    np.testing.assert_allclose(one.x, eight.x, atol=1e-3)
    np.testing.assert_allclose(one.losses, eight.losses, rtol=1e-4)


def test_devices_may_invert_their_shares_on_their_own():
    config = changed(PLAIN, jitter_pixels=2, flip=True, statistics_scope="device")
    x = normal(1, 16, *SHAPE)
    labels = np.arange(16, dtype=np.int32) % NUM_CLASSES
    eight = invert(config, **shard_batch({"start": x, "labels": labels}, make_mesh(8)))
    assert eight.x.addressable_shards[0].data.shape == (2, *SHAPE)
    shares = [
        invert(config, x[i : i + 2], jax.random.fold_in(KEY, i // 2), labels[i : i + 2])
        for i in range(0, 16, 2)
    ]
    np.testing.assert_allclose(eight.x, np.concatenate([s.x for s in shares]), atol=1e-3)
    np.testing.assert_allclose(eight.loss, np.mean([s.loss for s in shares]), rtol=1e-4)
    np.testing.assert_allclose(eight.losses, np.mean([s.losses for s in shares], 0), rtol=1e-4)
    whole = invert(changed(config, statistics_scope="global"), x, labels=labels)
    assert np.abs(whole.losses - eight.losses).max() > 1e-2


def test_noise_is_born_where_its_labels_are():
    labels = shard_batch(np.zeros(512, np.int32), make_mesh(8))
    noise = noise_start(labels, KEY, image_shape=SHAPE)
    assert noise.addressable_shards[0].data.shape == (64, *SHAPE)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1.0) < 0.02


def test_first_images_suit_what_is_moved():
    labels = shard_batch(np.zeros(64, np.int32), make_mesh(8))
    draw = functools.partial(first_images, classifier(), labels, KEY)
    np.testing.assert_array_equal(
        draw(variant=PLAIN.variant), noise_start(labels, KEY, image_shape=SHAPE)
    )
    grey = draw(variant=WAVES.variant)
    assert grey.addressable_shards[0].data.shape == (8, *SHAPE)
    far = np.abs(np.asarray(grey) - (LOW + HIGH) / 2) / (HIGH - LOW)
    assert 0 < far.max() < 0.05


@pytest.mark.parametrize("scope", ["global", "device"])
def test_waves_descend_from_any_start_to_valid_images(scope):
    start = jnp.clip(
        normal(1, BATCH, *SHAPE), 0.9 * LOW[None, None, None], 0.9 * HIGH[None, None, None]
    )
    config = changed(WAVES, stage_steps=(20,), statistics_scope=scope)
    solution = invert(config, start)
    losses = np.asarray(solution.losses)
    first = invert(changed(PLAIN, stage_steps=(1,)), start)
    np.testing.assert_allclose(losses[0], first.loss, rtol=1e-4)
    assert solution.loss < losses[0] - 0.1 and solution.loss == losses.min()
    images = np.asarray(solution.x)
    assert (images > LOW).all() and (images < HIGH).all()
    again = invert(changed(PLAIN, stage_steps=(1,)), solution.x)  # which the loss is that of
    np.testing.assert_allclose(again.loss, solution.loss, rtol=1e-4)


def test_waves_of_several_stages_go_on_where_the_last_ended(scales):
    scales(1, 1)
    start = first_images(classifier(), jnp.asarray(LABELS), KEY, variant=WAVES.variant)
    config = changed(WAVES, stage_steps=(20, 2))
    first, second = np.split(np.asarray(invert(config, start).losses), [20])
    np.testing.assert_allclose(second[0], first.min(), rtol=1e-4)


def test_new_data_is_not_compiled_again():
    invert(PLAIN)
    num_programs = di._solve._cache_size()
    invert(changed(PLAIN), normal(5, BATCH, *SHAPE), jax.random.key(3), LABELS[::-1].copy())
    assert di._solve._cache_size() == num_programs


# Bad input.


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({}, LABELS + 1, "labels range from 1 to 3, but the network has 3 classes, 0 to 2"),
        ({}, LABELS - 1, "labels range from -1 to 1, but"),
        ({"stage_steps": ()}, LABELS, "has no stage"),
        ({"stage_steps": (1,) * 5}, LABELS, "of 8 x 8 pixels cannot be averaged down by 16 in"),
        ({"cross_entropy_weight": 0.0, "statistics_weight": 0.0}, LABELS, "every weight"),
        ({"competition_weight": 1.0}, LABELS, "competition_weight=1 needs a network to compete"),
    ],
)
def test_bad_input_is_told_before_any_work(options, labels, message):
    with pytest.raises(ValueError, match=message):
        invert(changed(PLAIN, **options), labels=labels)


def test_a_label_that_the_head_does_not_know_yet_is_an_error():
    with pytest.raises(ValueError, match="labels contain 1, but the head knows 2 classes"):
        invert(PLAIN, class_mask=np.asarray([True, False, True]))


def test_inside_a_trace_nothing_is_known_of_devices():
    config = changed(PLAIN, statistics_scope="device")
    with pytest.raises(ValueError, match="needs to know on which devices the images lie"):
        jax.jit(functools.partial(invert, config))(normal(1, BATCH, *SHAPE))


# Variants.


def test_every_variant_has_a_row_and_works():
    """On two images, for a step of two stages, with every term there is."""
    names = typing.get_args(annotations(DeepInversionConfig)["variant"][0])
    assert names == tuple(DEEP_INVERSION_VARIANTS)
    for name in names:
        config = DeepInversionConfig(variant=name, stage_steps=(1, 1), competition_weight=1.0)
        made = deep_inversion(classifier(), LABELS, KEY, config=config, student=STUDENT())
        assert bool(made.finite) and made.images.shape == (BATCH, *SHAPE)
