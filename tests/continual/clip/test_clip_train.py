import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import block_input
from jaxpmi.config import AugmentConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import losses
from jaxpmi.continual.clip.train import TERMS
from jaxpmi.continual.clip.train import ClipLearner
from jaxpmi.continual.clip.train import ClipProgram
from jaxpmi.continual.clip.train import ClipTask
from jaxpmi.continual.clip.train import class_text_features
from jaxpmi.continual.clip.train import clip_learning_rates
from jaxpmi.continual.clip.train import clip_optimiser
from jaxpmi.continual.clip.train import clip_train_steps
from jaxpmi.continual.clip.variants import CLIP_VARIANTS
from jaxpmi.continual.clip.variants import ClipVariant
from jaxpmi.continual.train import Chunk
from jaxpmi.models import clip

MODEL = clip.clip(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, features=8, vocabulary=12,
    context=6, text_width=16, text_depth=2, text_num_heads=2,
)  # fmt: skip
CLASSES, BATCH, REPLAY = 4, 6, 5
TRAIN = TrainConfig(learning_rate=3e-3, warmup_steps=2)
LOSSES = MethodConfig(
    ce_weight=1.0, hkd_weight=0.1, tkd_weight=0.2, ft_weight=0.001, joint_weight=0.5
)
MEAN, STD = jnp.full(3, 0.5), jnp.full(3, 0.25)
ADAPTED = clip.adapted(MODEL)


@functools.cache
def base():
    """Random weights, larger than at the start, so that features differ from image to image."""
    variables = clip.init_clip(MODEL, jax.random.key(0))
    embedding = dict(variables.text["embedding"])
    embedding["tokens"] = 20 * embedding["tokens"]
    text = {**variables.text, "embedding": embedding}
    return variables._replace(text=text)


@functools.cache
def adapters(seed):
    fresh = clip.init_clip_adapters(MODEL, jax.random.key(seed), rank=4)
    leaves, treedef = jax.tree.flatten(fresh)
    rng = np.random.default_rng(seed)
    noisy = [leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, noisy)


def task(num_old, seed=1):
    tokens = np.zeros((CLASSES, 2, 6), np.int32)
    for c in range(CLASSES):
        tokens[c, 0, :3], tokens[c, 1, :4] = [10, c, 11], [10, 5, c, 11]
    classes = np.arange(CLASSES)
    new, old = np.float32(classes >= num_old), np.float32(classes < num_old)
    if num_old == 0:
        new = np.float32(classes < 2)
    return ClipTask(
        base(), adapters(seed), jnp.asarray(tokens), jnp.asarray(new), jnp.asarray(old), MEAN, STD
    )


def chunk(num_steps, size, num_old, seed=0):
    rng = np.random.default_rng(seed)
    first, last = (num_old, CLASSES) if num_old else (0, 2)
    labels = rng.integers(first, last, (size, BATCH)).astype(np.int32)
    replay_labels = rng.integers(0, max(num_old, 1), (size, REPLAY)).astype(np.int32)
    paint = rng.integers(0, 256, (CLASSES, 8, 8, 3)).astype(np.uint8)
    rates = clip_learning_rates(TRAIN, size, ClipVariant())
    return Chunk(
        paint[labels], labels, paint[replay_labels], replay_labels, rates,
        np.int32(0), np.int32(num_steps),
    )  # fmt: skip


def learner(seed=1):
    own = jax.tree.map(jnp.copy, adapters(seed))
    return ClipLearner(own, clip_optimiser(0.0).init(own))


PROGRAM = ClipProgram(ADAPTED, 0.0, LOSSES, AugmentConfig())


def train(num_steps, num_old, *, seed=1, program=PROGRAM, size=4):
    key = jax.random.key(3)
    return clip_train_steps(
        learner(seed), chunk(num_steps, size, num_old), task(num_old), key, program=program
    )


def test_the_first_task_is_cross_entropy_alone():
    _, metrics = train(1, num_old=0)
    assert set(metrics.terms) == set(TERMS) and metrics.terms["cross_entropy"] > 0
    assert all(metrics.terms[name] == 0 for name in TERMS if name != "cross_entropy")


def test_terms_of_the_first_step_against_their_definitions(monkeypatch):
    """Without dropout and gate noise, so that everything can be computed again from outside."""
    monkeypatch.setattr("jaxpmi.models.adapters.DROPOUT", 0.0)
    monkeypatch.setattr("jaxpmi.models.adapters.NOISE_FLOOR", 0.0)
    monkeypatch.setattr(jax.nn, "softplus", jnp.zeros_like)
    num_old, program = 2, ClipProgram(ADAPTED, 0.0, LOSSES, AugmentConfig(flip=False))
    jax.clear_caches()
    _, metrics = train(1, num_old, seed=2, program=program)
    data, given = chunk(1, 4, num_old), task(num_old)
    student, teacher = (clip.with_clip_adapters(MODEL, base(), adapters(seed)) for seed in (2, 1))
    texts, old_texts = (class_text_features(ADAPTED, v, given.tokens) for v in (student, teacher))
    real, replay = (
        normalise(jnp.asarray(x[0]), MEAN, STD) for x in (data.images, data.replay_images)
    )

    def logits(variables, x, texts):
        features = clip.encode_images(ADAPTED, variables, x)
        return clip.similarity_logits(features, texts, base().logit_scale)

    alpha, beta = np.log2(2 / 2 + 1), 1.0
    cross_entropy = losses.masked_cross_entropy(
        logits(student, real, texts), data.labels[0], given.new_mask
    )
    gap = np.abs(logits(student, replay, texts) - logits(teacher, replay, old_texts))[:, :2]
    seen = given.new_mask + given.old_mask
    over_all = losses.masked_cross_entropy(logits(student, real, texts), data.labels[0], seen)
    over_all += losses.masked_cross_entropy(
        logits(student, replay, texts), data.replay_labels[0], seen
    )
    want = {
        "cross_entropy": cross_entropy * (1 + 1 / alpha) / beta,
        "replay_logits": 0.1 * alpha * beta * gap.mean(),
        "text_features": 0.2 * alpha * beta * np.abs(texts - old_texts)[:2].mean(),
        "all_classes": 0.001 * over_all,
        "joint": 0.5 * over_all,
    }
    for name in TERMS:
        np.testing.assert_allclose(metrics.terms[name], want[name], rtol=1e-3)
    jax.clear_caches()


def test_each_part_of_the_loss_over_all_classes_trains_one_tower():
    """`ft_weight` moves the names alone, `joint_weight` the images alone."""
    off = {"ce_weight": 0.0, "hkd_weight": 0.0, "tkd_weight": 0.0}
    for field, still in (("ft_weight", "image"), ("joint_weight", "text")):
        weights = {**off, "ft_weight": 0.0, "joint_weight": 0.0, field: 1.0}
        config = dataclasses.replace(LOSSES, **weights)
        before = jax.tree.map(np.array, learner().adapters)
        after, _ = train(2, 2, program=dataclasses.replace(PROGRAM, losses=config))
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after.adapters)
        for tower in ("image", "text"):
            largest = max(jax.tree.leaves(getattr(moved, tower)))
            assert (largest == 0) == (tower == still), (field, tower)


@pytest.mark.parametrize("teacher_texts", ["frozen", "live"])
def test_the_teacher_moves_with_live_texts_only(teacher_texts, monkeypatch):
    """Adam's first moment is a tenth of the gradient: of the replay's logits, here nothing else."""
    monkeypatch.setattr("jaxpmi.models.adapters.DROPOUT", 0.0)
    monkeypatch.setattr("jaxpmi.models.adapters.NOISE_FLOOR", 0.0)
    monkeypatch.setattr(jax.nn, "softplus", jnp.zeros_like)
    jax.clear_caches()
    alone = {"ce_weight": 0.0, "tkd_weight": 0.0, "ft_weight": 0.0, "hkd_weight": 1.0}
    weights = dataclasses.replace(LOSSES, **alone)
    live = teacher_texts == "live"
    program = dataclasses.replace(PROGRAM, losses=weights, live_texts=live)
    after, metrics = train(1, 2, seed=2, program=program)
    given = task(2)
    replay = normalise(jnp.asarray(chunk(1, 4, 2).replay_images[0]), MEAN, STD)
    teacher = clip.with_clip_adapters(MODEL, base(), adapters(1))

    def distance(text_adapters, through_teacher):
        own = adapters(2)._replace(text=text_adapters)
        student = clip.with_clip_adapters(MODEL, base(), own)
        texts = class_text_features(ADAPTED, student, given.tokens)
        old = class_text_features(ADAPTED, teacher, given.tokens)
        wanted = {"frozen": old, "live": texts, "detached": jax.lax.stop_gradient(texts)}
        logits = lambda v, t: clip.similarity_logits(  # noqa: E731
            clip.encode_images(ADAPTED, v, replay), t, base().logit_scale
        )
        gap = logits(student, texts) - logits(teacher, wanted[through_teacher])
        return jnp.abs(gap[:, :2]).mean()

    def gradient(through_teacher):
        grads = jax.grad(distance)(adapters(2).text, through_teacher)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])

    want = gradient(teacher_texts)
    moments = after.opt_state[0].mu.text
    got = np.concatenate([10 * np.ravel(leaf) for leaf in jax.tree.leaves(moments)])
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=2e-3 * scale)
    np.testing.assert_allclose(
        metrics.terms["replay_logits"], distance(adapters(2).text, teacher_texts), rtol=1e-3
    )
    if teacher_texts == "live":  # the path through the teacher matters
        assert np.abs(want - gradient("detached")).max() > 0.1 * scale
    jax.clear_caches()


def test_only_adapters_change_and_the_loss_falls():
    before = learner()
    start = jax.tree.map(np.array, before.adapters)
    num_steps = 40
    data = chunk(num_steps, num_steps, 2)
    one = Chunk(*(np.repeat(part[:1], num_steps, 0) for part in data[:4]), *data[4:])
    one = one._replace(learning_rates=10 * data.learning_rates)
    after, metrics = clip_train_steps(before, one, task(2), jax.random.key(0), program=PROGRAM)
    first = clip_train_steps(
        learner(), one._replace(num_steps=np.int32(1)), task(2), jax.random.key(0), program=PROGRAM
    )[1]
    assert sum(metrics.terms.values()) / num_steps < 0.7 * sum(first.terms.values())
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, after.adapters)
    assert min(jax.tree.leaves(moved)) > 0
    assert all(int(step) == -1 for step in metrics.bad_step.values())


def test_padding_steps_do_nothing():
    """A chunk of 4 with 2 steps is one of 2; and a chunk after it goes on where it ended."""
    data, key = chunk(4, 4, 2), jax.random.key(3)
    run = functools.partial(clip_train_steps, program=PROGRAM)
    parts = [Chunk(*(p[rows] for p in data[:5]), *data[5:]) for rows in (slice(2), slice(2, 4))]
    first, second = (
        part._replace(first_step=np.int32(i), num_steps=np.int32(2))
        for i, part in zip((0, 2), parts, strict=True)
    )
    exact, _ = run(learner(), first, task(2), key)
    padded, _ = run(learner(), data._replace(num_steps=np.int32(2)), task(2), key)
    chex.assert_trees_all_equal(padded, exact)
    whole, _ = run(learner(), data, task(2), key)
    resumed, _ = run(exact, second, task(2), key)
    chex.assert_trees_all_equal(whole, resumed)


def test_one_program_serves_every_task():
    traced = []
    for num_old in (0, 2):
        train(1, num_old)
        traced.append(clip_train_steps._cache_size())
    assert traced[0] == traced[1]


@pytest.mark.parametrize("own", [0, 1], ids=["real images", "names"])
def test_patch_embeddings_teach_what_their_images_teach(own):
    """The patch embedding is frozen; random views are of images alone."""
    data, key = chunk(3, 4, 2), jax.random.key(3)

    def embedded(images):
        x = normalise(jnp.asarray(images).reshape(-1, 8, 8, 3), MEAN, STD)
        maps = block_input(MODEL.image, base().image, x, 1)
        return np.asarray(maps).reshape(*images.shape[:2], *maps.shape[1:])

    views = AugmentConfig(crop_padding=2)
    program = dataclasses.replace(PROGRAM, first_block=own, replay_first_block=1)
    maps = data._replace(replay_images=embedded(data.replay_images))
    if own:
        maps = maps._replace(images=embedded(data.images))
        program = dataclasses.replace(program, augment=views)
    wanted, metrics = clip_train_steps(learner(), data, task(2), key, program=PROGRAM)
    found, others = clip_train_steps(learner(), maps, task(2), key, program=program)
    for name in TERMS:
        np.testing.assert_allclose(others.terms[name], metrics.terms[name], rtol=1e-3, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found.adapters), jax.tree.leaves(wanted.adapters), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_a_term_that_is_not_finite_is_told_with_its_step():
    data = chunk(4, 4, 2)
    learning_rates = np.asarray([0.0, np.nan, 0.0, 0.0], np.float32)
    bad = data._replace(learning_rates=learning_rates)
    _, metrics = clip_train_steps(learner(), bad, task(2), jax.random.key(0), program=PROGRAM)
    assert {name: int(step) for name, step in metrics.bad_step.items()} == dict.fromkeys(TERMS, 2)


@pytest.mark.parametrize("num_steps", [1, 5, 200])
def test_learning_rates_span_the_real_length(num_steps):
    rates = clip_learning_rates(
        TrainConfig(learning_rate=1e-3, warmup_steps=30), num_steps, ClipVariant()
    )
    assert rates.shape == (num_steps,) and (rates > 0).all()
    np.testing.assert_allclose(rates.max(), 1e-3, rtol=1e-5)
    if num_steps == 200:
        np.testing.assert_allclose(rates[30], 1e-3, rtol=1e-5)
        assert (np.diff(rates[:31]) > 0).all() and (np.diff(rates[30:]) < 0).all()
        assert rates[-1] < 1e-6


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("cosine", lambda t: 0.5 * (1 + np.cos(np.pi * t))),
        ("quarter_cosine", lambda t: np.cos(99 * np.pi * t / 200)),
    ],
)
def test_a_schedule_of_fixed_length_goes_on_beyond_it(schedule, want):
    """The published schedule has three epochs; with five the one rises, the other is negative."""
    config = TrainConfig(epochs=5, learning_rate=1e-3, warmup_steps=30)
    variant = dataclasses.replace(CLIP_VARIANTS["published"], schedule=schedule)
    rates = clip_learning_rates(config, 5 * 50, variant)
    progress = (np.arange(250) - 30) / (3 * 50 - 30)
    np.testing.assert_allclose(rates[30:], 1e-3 * want(progress)[30:], atol=1e-8)
    np.testing.assert_allclose(
        rates[:30], 1e-3 * (1 / 30 + np.arange(30) / 30 * 29 / 30), rtol=1e-4
    )
    alone = dataclasses.replace(config, warmup_steps=0)
    end, last = clip_learning_rates(alone, 5 * 5000, variant)[[15000, -1]]
    assert end == pytest.approx({"cosine": 0.0, "quarter_cosine": 1.57e-5}[schedule], abs=1e-7)
    assert last == pytest.approx(
        {"cosine": 0.75e-3, "quarter_cosine": -0.853e-3}[schedule], abs=1e-6
    )


def test_a_quarter_cosine_of_the_real_length_ends_above_0():
    config = TrainConfig(learning_rate=1e-3)
    rates = clip_learning_rates(config, 3000, ClipVariant(schedule="quarter_cosine"))
    last = 1e-3 * np.cos(0.495 * np.pi * 2999 / 3000)
    np.testing.assert_allclose(rates[[0, -1]], [1e-3, last], rtol=1e-4)
    assert (np.diff(rates) <= 0).all() and rates[-1] > 1.5e-5
